import pytest
from transformers import LlamaConfig

from backends import calibration, models
from backends.devices import GIB, Device
from backends.errors import ExitCode
from backends.memory import PROCESS_BYTES
from jobs import planner
from jobs.planner import DoesNotFit, plan_training
from jobs.spec import Config

MODEL = LlamaConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)


@pytest.fixture
def machine(monkeypatch):
    """Gives the machine so much free memory."""
    monkeypatch.setattr(models, "load_config", lambda _name, _revision: MODEL)

    def offer(gib):
        for name in ("free_bytes", "limit_bytes"):
            monkeypatch.setattr(planner, name, lambda _device: int(gib * GIB) - PROCESS_BYTES["cpu"])

    return offer


def plan(micro_batch=4, recomputation="auto", **options):
    sections = {
        "optimization": {"micro_batch": micro_batch, "accumulation": 4},
        "training": {"gradient_checkpointing": recomputation},
    }
    return plan_training(Config.model_validate(sections), Device.CPU, 1024, **options)


def choice(taken):
    return taken.recipe.micro_batch, taken.recipe.checkpointing


def test_with_much_memory_nothing_is_recomputed(machine):
    machine(1000)
    taken = plan()
    assert choice(taken) == (4, False)
    assert len(taken.notes) == 1
    assert taken.notes[0].startswith("Gradient checkpointing is off: without it the training takes about ")


def test_with_less_memory_the_micro_batch_shrinks_before_anything_is_recomputed(machine):
    machine(1000)
    one_row_kept = plan(1, "off").modelled.total
    machine(one_row_kept / GIB / 0.8 + 0.1)
    taken = plan()
    assert choice(taken) == (1, False)
    assert taken.notes[1] == "The micro-batch is 1 instead of 4 to save memory; the effective batch stays 16"


def test_with_little_memory_activations_are_recomputed_and_the_line_says_what_that_saves(machine):
    machine(1000)
    one_row = plan(1, "on").modelled.total
    machine(one_row / GIB + 0.01)  # not comfortable, but it fits
    taken = plan()
    assert choice(taken) == (1, True)
    assert "on: without it the training would take about" in taken.notes[0]


def test_what_does_not_fit_is_refused_with_what_would(machine):
    machine(1000)
    machine(plan(1, "on").modelled.total / GIB - 0.05)
    with pytest.raises(DoesNotFit, match=r"set dataset\.sequence_length to \d+ \(.* GiB\), or use a machine") as caught:
        plan()
    assert caught.value.exit_code == ExitCode.DEVICE_UNAVAILABLE


def test_recomputation_switched_off_is_not_switched_on_but_proposed(machine):
    machine(1000)
    machine(plan(1, "on").modelled.total / GIB + 0.1)
    with pytest.raises(DoesNotFit, match=r"set training\.gradient_checkpointing to auto"):
        plan(recomputation="off")


def test_after_a_lack_of_memory_the_micro_batch_is_halved_and_then_activations_recomputed(machine):
    machine(1000)
    assert [choice(plan(micro_batch_divisor=divisor)) for divisor in (1, 2, 4, 8)] == [
        (4, False),
        (2, False),
        (1, False),
        (1, True),
    ]


def test_what_this_machine_measured_counts(machine, tmp_path):
    machine(1000)
    file = tmp_path / calibration.FILE
    plain = plan(calibration_file=file)
    machine(plain.modelled.total / GIB / 0.8 + 0.1)
    assert choice(plan(calibration_file=file)) == (4, False)
    calibration.add(file, plain.kind, memory_factor=1.5)
    assert choice(plan(calibration_file=file)) != (4, False)


def test_an_architecture_without_known_sizes_is_recomputed_unless_told_otherwise(machine, monkeypatch):
    machine(1)
    monkeypatch.setattr(models, "load_config", lambda _name, _revision: {"model_type": "strange"})
    taken = plan()
    assert choice(taken) == (4, True)
    assert "not known" in taken.notes[0]
    assert choice(plan(recomputation="off")) == (4, False)
