"""Memory that runs out in a step: on cuda and mps by what torch says there (fakes), on the CPU by a real limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from backends.devices import Device
from backends.full import FullPrecision
from jobs import healing, shards
from jobs.context import JobContext, StopRequested
from jobs.events import Evaluated, Healed, Note, StageStarted, StepDone
from jobs.run import OutOfMemory
from jobs.spec import Config
from jobs.training import train
from workers.failure import failure_of

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("no_picture")

LENGTH = 32
VOCABULARY = 96
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 8.90 GB, max allowed: 9.07 GB).")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(17)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Starcoder2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes, **heads)
    Starcoder2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", LENGTH, VOCABULARY)


def write_dataset(folder, length, vocabulary, train_rows=18):
    random = np.random.default_rng(3)
    files, splits = {}, {}
    for split, rows in (("train", train_rows), ("held_out", 4)):
        with shards.ShardWriter(folder, split, length, "uint16") as writer:
            for _ in range(rows):
                ids = (np.arange(length) * 3 + random.integers(0, vocabulary)) % vocabulary
                flags = np.full(length, shards.LABEL, dtype=np.uint8)
                flags[[0, int(random.integers(2, length - 8))]] = shards.DOCUMENT_START
                writer.append(ids.astype(np.int64), flags)
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * length}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": length, "commit": "c" * 40}
    shards.write_manifest(folder, manifest)
    return folder


def make_config(model, micro_batch=4, accumulation=1, recomputation="off", **sections):
    training = {"epochs": 2, "gradient_checkpointing": recomputation, "checkpoint_every_steps": 1000}
    return Config.model_validate(
        {
            "model": {"name": str(model)},
            "quantization": {"kind": "none"},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "optimization": {"learning_rate": 5e-3, "micro_batch": micro_batch, "accumulation": accumulation},
            "training": training,
        }
        | sections
    )


class Small(FullPrecision):
    """A device on which forward passes of more rows than `holds` run out of memory, with what torch says of it.

    `holds` may change from pass to pass of the training; measurements hold `measured` rows, or any number.
    """

    def __init__(self, error, holds, measured=None):
        self.error, self.measured = error, measured
        self.holds = holds if callable(holds) else lambda _number: holds
        self.rows, self.recomputes = [], []

    def load(self, request):
        loaded = super().load(request)
        loaded.model.get_base_model().model.register_forward_hook(self.forward, with_kwargs=True)
        return loaded

    def forward(self, module, _arguments, keywords, output):
        rows = keywords["input_ids"].shape[0]
        if not module.training:
            if self.measured is not None and self.rows and rows > self.measured:
                raise self.error
            return output
        self.rows.append(rows)
        self.recomputes.append(module.layers[0].gradient_checkpointing)
        torch.rand(3)  # a failed pass has drawn random numbers
        if rows > self.holds(len(self.rows)):
            raise self.error
        return output


def run(output, config, dataset, backend):
    events = []
    result = train(config, dataset, backend, Device.CPU, JobContext(output=output, emit=events.append))
    return result, events


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def numbers(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [[line[key] for key in ("step", "loss", "lr", "grad_norm", "tokens")] for line in lines]


def weights(output):
    return load_file(output / "adapter" / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def row_by_row(tmp_path_factory, dataset, model):
    """The output of a run that took every step in parts of one row from its start."""
    output = tmp_path_factory.mktemp("small")
    run(output, make_config(model, micro_batch=1, accumulation=4), dataset, Small(CUDA, holds=1))
    return output


@pytest.fixture(scope="module")
def plain(tmp_path_factory, dataset, model):
    """The output and the result of a run that had memory enough."""
    output = tmp_path_factory.mktemp("plain")
    return output, run(output, make_config(model), dataset, FullPrecision())[0]


@pytest.mark.parametrize("error", [CUDA, MPS, CPU, MemoryError()])
def test_a_step_that_does_not_fit_is_done_again_as_a_run_with_a_smaller_micro_batch_does_it(
    tmp_path, dataset, model, row_by_row, error
):
    _, events = run(tmp_path / "healed", make_config(model), dataset, Small(error, holds=1))
    assert [(healed.step, healed.micro_batch, healed.accumulation) for healed in of(Healed, events)] == [
        (0, 2, 2),
        (0, 1, 4),
    ]
    assert numbers(tmp_path / "healed") == numbers(row_by_row)
    assert same(weights(tmp_path / "healed"), weights(row_by_row))


def test_memory_that_runs_out_later_repeats_that_step_only_and_the_smaller_parts_stay(tmp_path, dataset, model):
    # 18 rows in steps of 4 are 5 steps an epoch; the first three fit.
    backend = Small(MPS, holds=lambda number: 4 if number <= 3 else 2)
    _, events = run(tmp_path, make_config(model), dataset, backend)
    assert [step.step for step in of(StepDone, events)] == list(range(1, 11))
    assert backend.rows[:4] == [4] * 4
    assert set(backend.rows[4:]) == {2}
    (healed,) = of(Healed, events)
    assert (healed.step, healed.micro_batch, healed.accumulation) == (3, 2, 2)
    assert "MPS backend out of memory" in healed.message
    state = json.loads(next(tmp_path.glob("checkpoints/*/state.json")).read_text())["state"]
    assert state["execution"]["micro_batch"] == 2
    assert [(incident["kind"], incident["step"]) for incident in state["incidents"]] == [("healed", 3)]


def test_recomputation_comes_on_where_there_is_nothing_to_halve_and_the_configuration_leaves_it_open(
    tmp_path, dataset, model
):
    backend = Small(CUDA, holds=lambda _number: 1 if backend.recomputes[-1] else 0)
    _, events = run(tmp_path / "healed", make_config(model, 1, 4, "auto"), dataset, backend)
    assert "activations" in of(Healed, events)[0].message
    run(tmp_path / "plain", make_config(model, 1, 4, "on"), dataset, Small(CUDA, holds=1))
    assert numbers(tmp_path / "healed") == numbers(tmp_path / "plain")


def test_a_run_of_which_not_one_row_fits_says_what_would_and_is_not_tried_again(tmp_path, dataset, model):
    with pytest.raises(
        OutOfMemory, match=r"Memory ran out in step 1, with 1 row at a time: .*machine with more"
    ) as told:
        run(tmp_path, make_config(model), dataset, Small(CUDA, holds=0))
    failed = failure_of(told.value)
    assert (failed.cause, failed.final) == ("out_of_memory", True)


def test_a_step_that_fails_for_another_reason_is_not_done_again(tmp_path, dataset, model):
    with pytest.raises(RuntimeError, match="a defect"):
        run(tmp_path, make_config(model), dataset, Small(RuntimeError("a defect"), holds=0))


def test_a_measurement_halves_its_own_micro_batch_and_leaves_the_training_s(tmp_path, dataset, model, plain):
    backend = Small(MPS, holds=4, measured=1)
    result, events = run(tmp_path / "small", make_config(model), dataset, backend)
    assert not of(Healed, events)
    assert set(backend.rows) <= {4, 2}  # the last step of an epoch has two rows
    warnings = [note.message for note in of(Note, events) if note.level == "warning"]
    assert [message.rpartition(": ")[2] for message in warnings[:2]] == [
        "again with 2 rows at a time",
        "again with 1 row at a time",
    ]
    assert result["loss_before"] == pytest.approx(plain[1]["loss_before"], abs=1e-6)
    with pytest.raises(OutOfMemory, match="while the held-out loss was measured"):
        run(tmp_path / "none", make_config(model), dataset, Small(MPS, holds=4, measured=0))


def test_an_optimizer_whose_state_was_allocated_half_way_begins_it_again(tmp_path, dataset, model, monkeypatch, plain):
    """The third tensor of AdamW's state fails: some parameters have moved or hold half a state by then."""
    allocate, calls = torch.zeros_like, []

    def fail_once(*arguments, **keywords):
        if "memory_format" in keywords:
            calls.append(arguments)
            if len(calls) == 4:
                raise CPU
        return allocate(*arguments, **keywords)

    monkeypatch.setattr(torch, "zeros_like", fail_once)
    healed, events = run(tmp_path / "healed", make_config(model), dataset, FullPrecision())
    assert len(calls) > 4
    assert "state of the optimizer" in of(Healed, events)[0].message
    output, result = plain
    assert numbers(tmp_path / "healed") == numbers(output)
    assert same(weights(tmp_path / "healed"), weights(output))
    assert healed["loss_after"] == result["loss_after"]


def test_a_gradient_scaler_takes_the_gradients_that_come_after_the_failed_ones(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    healing._forget_unscaled(scaler, torch.device("cpu"))
    for _ in range(2):
        scaler.scale(parameter.sum()).backward()
        scaler.unscale_(optimizer)  # a second time it refuses, unless the first is forgotten
        healing._forget_unscaled(scaler, torch.device("cpu"))
    assert scaler.get_scale() == 8.0


def test_what_runs_out_of_memory_lets_go_of_its_tensors():
    import weakref

    held = []

    def fail():
        tensor = torch.zeros(8)
        held.append(weakref.ref(tensor))
        raise CPU

    done, told = healing.attempt(fail)
    assert done is None
    assert told == "DefaultCPUAllocator: can't allocate memory: you tried"
    assert held[0]() is None


LIMITED = """
import resource, sys
from pathlib import Path
import numpy
from backends.devices import Device
from backends.full import FullPrecision
from jobs.context import JobContext
from jobs.events import Healed, StageStarted
from jobs.spec import Config
from jobs.training import train

# What numpy's BLAS takes once, and would end the process for, is no part of a training.
numpy.ones((256, 256)) @ numpy.ones((256, 256))
output, dataset, config, room = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def emit(event):
    if isinstance(event, Healed):
        print(event.to_json(), flush=True)
    if isinstance(event, StageStarted) and event.stage == "train":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))


train(Config.model_validate_json(config), dataset, FullPrecision(), Device.CPU, JobContext(output=output, emit=emit))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS does not enforce a limit of the address space")
def test_a_real_limit_on_the_process_s_memory_is_survived_with_the_same_result(tmp_path):
    """The limit holds 16 rows in parts of 4 or less: all 16 at once would take about 130 MB of activations."""
    torch.manual_seed(17)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Starcoder2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes, **heads)
    Starcoder2ForCausalLM(config).save_pretrained(tmp_path / "model")
    dataset = write_dataset(tmp_path / "dataset", 256, VOCABULARY, train_rows=32)
    # Without dropout, whose masks depend on how rows are grouped, all ways of splitting a step give the same.
    training = {"epochs": 1, "gradient_checkpointing": "off", "checkpoint_every_steps": 1000}
    plain = {"lora": {"rank": 4, "alpha": 8}, "training": training}
    config = make_config(tmp_path / "model", 16, 1, **plain)
    healed = [json.loads(line) for line in limited(tmp_path / "healed", dataset, config, room=96_000_000)]
    assert healed, "it was never short of memory"
    assert healed[0]["step"] == 0
    assert all(event["micro_batch"] * event["accumulation"] == 16 for event in healed)
    run(tmp_path / "small", make_config(tmp_path / "model", 2, 8, **plain), dataset, FullPrecision())
    for one, other in zip(numbers(tmp_path / "healed"), numbers(tmp_path / "small"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def limited(output, dataset, config, room):
    root = Path(__file__).resolve().parent.parent
    # One thread, one arena: what a thread reserves of the address space is not what is measured here.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-c", LIMITED, output, dataset, config.model_dump_json(), str(room)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_the_base_is_measured_late_as_it_would_be_before_the_first_step(tmp_path, dataset, model):
    training = {"epochs": 8, "gradient_checkpointing": "off", "checkpoint_every_steps": 1000}
    backend = FullPrecision()
    result, events = run(tmp_path, make_config(model, training=training), dataset, backend)
    order = [(type(event).__name__, event.step) for event in events if isinstance(event, StepDone | Evaluated)]
    assert order[19:21] == [("StepDone", 20), ("Evaluated", 0)]
    assert [step for kind, step in order if kind == "Evaluated"] == [0, 40]
    # LoRA's B is zero at first: the base alone is what step 0 computes.
    short = make_config(model, training=training | {"epochs": 1, "evaluate_every_steps": 1})
    first, _ = run(tmp_path / "short", short, dataset, backend)
    assert result["loss_before"] == first["loss_before"]


def test_a_run_that_is_stopped_while_the_base_is_measured_goes_on_exactly(tmp_path, dataset, model):
    training = {"epochs": 5, "gradient_checkpointing": "off", "checkpoint_every_steps": 1000}
    config, events = make_config(model, training=training), []

    def measures():
        return bool(events) and isinstance(events[-1], StageStarted) and events[-1].stage == "evaluate"

    context = JobContext(output=tmp_path / "stopped", emit=events.append, should_stop=measures)
    with pytest.raises(StopRequested):
        train(config, dataset, FullPrecision(), Device.CPU, context)
    context = JobContext(output=tmp_path / "stopped", emit=events.append)
    resumed = train(config, dataset, FullPrecision(), Device.CPU, context, resume_from=tmp_path / "stopped/checkpoints")
    straight, _ = run(tmp_path / "straight", config, dataset, FullPrecision())
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "straight")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))
    assert resumed["loss_before"] == straight["loss_before"]
