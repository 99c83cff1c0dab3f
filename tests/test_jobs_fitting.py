from dataclasses import replace

import pytest

from backends.devices import GIB, Device
from backends.memory import Recipe
from jobs.fitting import estimator_of, first_that_fits, least, options, recipe_of, what_would_fit
from jobs.spec import Config

STARCODER2_3B = {
    "model_type": "starcoder2",
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
}
ESTIMATOR = estimator_of(STARCODER2_3B)


def ways(recipe=None, effective_batch=16, recomputation="auto"):
    return options(STARCODER2_3B, recipe or Recipe(micro_batch=8), effective_batch, recomputation)


def test_the_fastest_way_is_the_largest_micro_batch_with_activations_kept():
    first = ways()[0]
    assert (first.micro_batch, first.checkpointing) == (8, False)


def test_micro_batches_divide_the_effective_batch_and_never_exceed_the_configured_one():
    recipes = ways(Recipe(micro_batch=6), effective_batch=12)
    assert {way.micro_batch for way in recipes} == {6, 4, 3, 2, 1}


def test_recomputation_that_is_set_stays_as_it_is():
    assert {way.checkpointing for way in ways(recomputation="on")} == {True}
    assert {way.checkpointing for way in ways(recomputation="off")} == {False}


def test_a_small_micro_batch_is_faster_than_recomputing_a_large_one_where_a_pass_costs_little():
    order = [(way.micro_batch, way.checkpointing) for way in ways()]
    assert order.index((1, False)) < order.index((8, True))


def test_on_a_gpu_tiny_passes_are_slower_than_recomputing():
    recipe = Recipe(micro_batch=8, sequence_length=128, device="cuda")
    order = [(way.micro_batch, way.checkpointing) for way in ways(recipe)]
    assert order.index((8, True)) < order.index((1, False))


def test_what_is_chosen_fits_and_everything_faster_does_not():
    room = 8 * GIB
    fit = first_that_fits(ways(), room, ESTIMATOR)
    assert fit.need.total <= room
    faster = ways()[: ways().index(fit.recipe)]
    assert faster
    assert all(ESTIMATOR(way).total > room for way in faster)


def test_nothing_fits_into_nothing_and_the_least_is_one_row_recomputed():
    assert first_that_fits(ways(), GIB, ESTIMATOR) is None
    smallest = least(ways(), ESTIMATOR).recipe
    assert (smallest.micro_batch, smallest.checkpointing) == (1, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"micro_batch": 2, "sequence_length": 2048}, "set optimization.micro_batch to 1"),
        ({"checkpointing": False}, "set training.gradient_checkpointing to auto"),
        ({"sequence_length": 4096}, "set dataset.sequence_length to 2048"),
        ({"sequence_length": 128, "compute_bytes": 2, "quantization": "none"}, "set quantization.kind to int4"),
        ({"sequence_length": 128, "quantization": "nf4", "rank": 256}, "set lora.rank to 128"),
        ({"sequence_length": 128, "quantization": "nf4", "rank": 8}, "set optimization.optimizer to adamw8bit"),
    ],
)
def test_the_first_change_that_fits_is_named_with_what_it_takes(changes, said):
    recipe = Recipe(**changes)
    key, value = said.removeprefix("set ").split(" to ")
    fields = {"auto": True, "1": 1}
    changed = {"training.gradient_checkpointing": "checkpointing", "quantization.kind": "quantization"}
    name = changed.get(key, key.rpartition(".")[2])
    wanted = replace(recipe, **{name: fields.get(value, int(value) if value.isdigit() else value)})
    room = ESTIMATOR(wanted).total
    assert what_would_fit(recipe, room, ESTIMATOR).startswith(f"{said} ({room / GIB:.1f} GiB), or use a machine")


def test_where_no_single_change_is_enough_all_are_named():
    clause = what_would_fit(Recipe(sequence_length=4096), int(3.3 * GIB), ESTIMATOR)
    assert clause.startswith("set dataset.sequence_length to 128, quantization.kind to int4, lora.rank to 8, ")


def test_where_nothing_helps_the_model_is_too_large():
    assert what_would_fit(Recipe(), GIB, ESTIMATOR).startswith("use a smaller model or a machine with more memory")


def test_every_choice_of_the_configuration_that_memory_depends_on_reaches_the_recipe():
    sections = {
        "quantization": {"kind": "int8", "group_size": "row"},
        "lora": {"rank": 5, "dora": True, "dropout": 0.1, "target_modules": ["q_proj"], "layers": "last:2"},
        "optimization": {"micro_batch": 3, "optimizer": "adafactor"},
        "training": {"gradient_checkpointing": "off", "attention": "blocked", "ema": 0.9},
    }
    recipe = recipe_of(Config.model_validate(sections), Device.CPU, 512)
    assert recipe == Recipe(
        group_size=None,
        rank=5,
        dora=True,
        dropout=True,
        target=("q_proj",),
        layers="last:2",
        ema=True,
        micro_batch=3,
        optimizer="adafactor",
        checkpointing=False,
        attention="blocked",
        sequence_length=512,
    )
