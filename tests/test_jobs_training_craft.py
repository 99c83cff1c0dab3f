"""The craft in whole runs: each part does what it is for, and a resumed run is one that never stopped."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from backends.devices import Device
from backends.full import FullPrecision
from jobs import neftune, shards
from jobs.checkpoint import steps as checkpoints
from jobs.context import JobContext, StopRequested
from jobs.events import Evaluated, Note, StageStarted, StepDone
from jobs.run import Diverged
from jobs.spec import Config
from jobs.training import train

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("no_picture")

LENGTH = 32
VOCABULARY = 96


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def skilled_model_folder(model_folder, tmp_path_factory):
    """Knows that every number is three more than the one before, and so has something to lose."""
    model = Starcoder2ForCausalLM.from_pretrained(model_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = (torch.arange(LENGTH) * 3 + torch.arange(VOCABULARY)[:, None]) % VOCABULARY
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("skilled-model")
    model.save_pretrained(folder)
    return folder


def write_model(folder):
    torch.manual_seed(17)
    config = Starcoder2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    Starcoder2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Rows of one document each, in which every number is three more than the one before."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    random = np.random.default_rng(3)
    files, splits = {}, {}
    for split, rows in (("train", 22), ("held_out", 5)):
        with shards.ShardWriter(folder, split, LENGTH, "uint16") as writer:
            for _ in range(rows):
                flags = np.full(LENGTH, shards.LABEL, dtype=np.uint8)
                flags[0] = shards.DOCUMENT_START
                writer.append((np.arange(LENGTH) * 3 + random.integers(0, VOCABULARY)) % VOCABULARY, flags)
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * LENGTH}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": LENGTH, "commit": "c" * 40}
    shards.write_manifest(folder, manifest)
    return folder


def make_config(model_folder: Path, *, lora=None, optimization=None, training=None) -> Config:
    values = {
        "model": {"name": str(model_folder)},
        "quantization": {"kind": "none"},
        "lora": {"rank": 4, "alpha": 8, **(lora or {})},
        "optimization": {"learning_rate": 5e-3, "micro_batch": 2, "accumulation": 2, **(optimization or {})},
        "training": {"epochs": 2, "checkpoint_every_steps": 3, "gradient_checkpointing": "off", **(training or {})},
    }
    return Config.model_validate(values)


class Recorder:
    """Takes the events of a run and asks it to stop after a step."""

    def __init__(self, stop_after=math.inf):
        self.events = []
        self.stop_after = stop_after

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def should_stop(self):
        return any(step.step >= self.stop_after for step in self.of(StepDone))


def run(output, config, dataset, recorder=None, **options):
    recorder = recorder or Recorder()
    context = JobContext(output=output, emit=recorder.events.append, should_stop=recorder.should_stop)
    return train(config, dataset, FullPrecision(), Device.CPU, context, **options)


def lines(output):
    kept = ("step", "loss", "lr", "grad_norm", "tokens")
    read = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in kept] for line in read]


def adapter_bytes(output):
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def learning_rates(output):
    return [line[2] for line in lines(output)]


EARLY = {"evaluate_every_steps": 2, "early_stopping": 2, "early_stopping_delta": 5.0, "epochs": 20}

CRAFT = {
    "wsd": {"optimization": {"schedule": "wsd", "decay_ratio": 0.5}},
    "lora+": {"optimization": {"lora_plus_ratio": 8.0}},
    "lora+ and adafactor": {"optimization": {"lora_plus_ratio": 8.0, "optimizer": "adafactor"}},
    "lora+ in 8 bits": {"optimization": {"lora_plus_ratio": 8.0, "optimizer": "adamw8bit"}, "lora": {"rank": 128}},
    "early stopping": {"training": EARLY},
    "early stopping of an average": {"training": {**EARLY, "ema": 0.9}},
    "ema": {"training": {"ema": 0.9, "evaluate_every_steps": 4}},
    "neftune": {"training": {"neftune_alpha": 5.0}},
    "neftune recomputed": {
        "training": {"neftune_alpha": 5.0, "gradient_checkpointing": "on"},
        "lora": {"dropout": 0.1},
    },
    "layers": {"lora": {"layers": "last:2"}},
}


@pytest.mark.parametrize("changes", CRAFT.values(), ids=CRAFT.keys())
def test_a_resumed_run_is_one_that_never_stopped(tmp_path, dataset, model_folder, changes):
    changes = changes | {"training": {"epochs": 1, **changes.get("training", {})}}
    config = make_config(model_folder, **changes)
    whole = run(tmp_path / "whole", config, dataset)
    with pytest.raises(StopRequested):
        run(tmp_path / "cut", config, dataset, Recorder(stop_after=4))
    torch.rand(7)  # whatever else drew random numbers in between
    resumed = run(tmp_path / "cut", config, dataset, resume_from=tmp_path / "cut" / "checkpoints")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")
    assert {**resumed, "seconds": 0, "resumes": 0} == {**whole, "seconds": 0}


def test_the_learning_rate_follows_the_schedule_of_the_configuration(tmp_path, dataset, model_folder):
    run(tmp_path, make_config(model_folder, optimization={"schedule": "constant"}, training={"max_steps": 4}), dataset)
    assert learning_rates(tmp_path) == [5e-3] * 4


def test_a_run_without_gain_stops_early_and_says_so(tmp_path, dataset, model_folder):
    recorder = Recorder()
    result = run(tmp_path, make_config(model_folder, training=EARLY), dataset, recorder)
    # The first measurement is the best so far; none falls by five nats after it.
    assert [event.step for event in recorder.of(Evaluated)] == [0, 2, 4, 6]
    assert (result["steps"], result["ended"]) == (6, "early")
    assert any("Stopped early after step 6 of 120" in note.message for note in recorder.of(Note))
    assert (tmp_path / "adapter").is_dir()


def test_a_run_that_had_stopped_early_does_not_go_on_when_it_is_resumed(tmp_path, dataset, model_folder):
    config = make_config(model_folder, training=EARLY)
    whole = run(tmp_path, config, dataset)
    (tmp_path / "result.json").unlink()  # as if it had been killed while it wrote its results
    recorder = Recorder()
    again = run(tmp_path, config, dataset, recorder, resume_from=tmp_path / "checkpoints")
    assert not recorder.of(StepDone)
    assert {**again, "seconds": 0, "resumes": 0} == {**whole, "seconds": 0}


def test_a_learning_rate_that_diverges_ends_with_curve_suggestion_and_checkpoints(
    tmp_path, dataset, skilled_model_folder
):
    config = make_config(skilled_model_folder, optimization={"learning_rate": 0.9}, training={"epochs": 30})
    with pytest.raises(Diverged, match=r"set optimization\.learning_rate to 0\.3 instead of 0\.9"):
        run(tmp_path, config, dataset)
    assert len(lines(tmp_path)) < 180
    assert "diverged" in (tmp_path / "report.html").read_text()
    assert checkpoints(tmp_path / "checkpoints")
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "adapter").exists()


def test_lora_plus_moves_b_faster_and_a_as_before(tmp_path, dataset, model_folder):
    for name, ratio in (("same", None), ("faster", 8.0)):
        # B is zero at first, so the first step's gradient to A is too.
        config = make_config(model_folder, optimization={"lora_plus_ratio": ratio}, training={"max_steps": 1})
        run(tmp_path / name, config, dataset)
    same, faster = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("same", "faster"))
    for name, weights in same.items():
        if "lora_B" in name:
            assert torch.allclose(8 * weights, faster[name], rtol=1e-4, atol=1e-7), name
        else:
            assert torch.equal(weights, faster[name]), name


def test_the_average_is_what_is_measured_saved_and_published(tmp_path, dataset, model_folder):
    file = "adapter/adapter_model.safetensors"
    for name, decay in (("plain", None), ("averaged", 0.9)):
        config = make_config(model_folder, training={"ema": decay, "max_steps": 3, "epochs": 1})
        run(tmp_path / name, config, dataset)
    # Training itself is the same; only what comes of it differs.
    assert lines(tmp_path / "plain") == lines(tmp_path / "averaged")
    step = tmp_path / "averaged" / "checkpoints" / "step-3"
    published, average = load_file(tmp_path / "averaged" / file), load_file(step / file)
    trained, plain = load_file(step / "ema.safetensors"), load_file(tmp_path / "plain" / file)
    assert int(trained.pop("updates")) == 3
    for name, weights in plain.items():
        assert torch.equal(published[name], average[name])
        assert torch.equal(trained[name.replace(".weight", ".default.weight")], weights)
        if "lora_B" in name:
            assert 0 < average[name].norm() < weights.norm()


def test_a_run_asked_to_stop_while_it_measures_the_average_saves_what_it_trained(tmp_path, dataset, model_folder):
    config = make_config(model_folder, training={"ema": 0.9, "evaluate_every_steps": 4, "epochs": 1})
    run(tmp_path / "whole", config, dataset)

    class InMeasurement(Recorder):
        def should_stop(self):
            return any(event.stage == "evaluate" for event in self.of(StageStarted)[2:])

    with pytest.raises(StopRequested):
        run(tmp_path / "cut", config, dataset, InMeasurement())
    run(tmp_path / "cut", config, dataset, resume_from=tmp_path / "cut" / "checkpoints")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")


def test_noise_on_the_embeddings_is_of_its_size_and_only_in_training(model_folder):
    base = Starcoder2ForCausalLM.from_pretrained(model_folder)

    class Adapted:
        def get_base_model(self):
            return base

    embedding, ids = base.get_input_embeddings(), torch.arange(LENGTH)[None]
    exact = embedding(ids)
    neftune.install(Adapted(), 5.0)
    noise = (embedding.train()(ids) - exact).abs()
    most = 5.0 / math.sqrt(LENGTH * 32)
    assert 0.9 * most < noise.max() <= most * (1 + 1e-4)
    assert torch.equal(embedding.eval()(ids), exact)


@pytest.mark.parametrize(("layers", "numbers"), [("all", {0, 1, 2}), ("last:1", {2}), ([0, 2], {0, 2})])
def test_only_the_chosen_layers_get_an_adapter(tmp_path, dataset, model_folder, layers, numbers):
    run(tmp_path, make_config(model_folder, lora={"layers": layers}, training={"max_steps": 1}), dataset)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {int(name.partition(".layers.")[2].partition(".")[0]) for name in names} == numbers
    assert len(names) == len(numbers) * 6 * 2  # two matrices of every linear layer
