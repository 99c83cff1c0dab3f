import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from backends.devices import Device
from backends.errors import BackendUnavailable
from backends.free_memory import free_bytes
from backends.full import FullPrecision
from backends.hardware import is_out_of_memory
from jobs import planner, preparation, shards
from jobs.checkpoint import CheckpointDamaged, latest, sha256_of
from jobs.context import JobContext, OutputExists, StopRequested
from jobs.events import Checkpointed, Evaluated, Note, StageStarted, StepDone
from jobs.execution import Execution
from jobs.order import Order
from jobs.run import Diverged, OutOfMemory
from jobs.spec import Config, InvalidSpec
from jobs.training import train

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("no_picture")

LENGTH = 32
VOCABULARY = 96


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), dropout=0.0)


@pytest.fixture(scope="module")
def model_folder_with_dropout(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model-with-dropout"), dropout=0.1)


def write_model(folder, dropout):
    torch.manual_seed(17)
    Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            attention_dropout=dropout,
            residual_dropout=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", train_rows=22, seed=3)


def write_dataset(folder: Path, train_rows: int, seed: int) -> Path:
    """Rows of two or three documents of different lengths, some with padding, ids that are learnable."""
    random = np.random.default_rng(seed)
    files, splits = {}, {}
    for split, rows in (("train", train_rows), ("held_out", 5)):
        with shards.ShardWriter(folder, split, LENGTH, "uint16") as writer:
            for _ in range(rows):
                writer.append(*random_row(random))
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * LENGTH}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": LENGTH, "commit": "c" * 40}
    shards.write_manifest(folder, manifest)
    return folder


def random_row(random):
    ids = (np.arange(LENGTH) * 3 + random.integers(0, VOCABULARY)) % VOCABULARY
    flags = np.full(LENGTH, shards.LABEL, dtype=np.uint8)
    flags[[0, *random.choice(np.arange(2, LENGTH - 8), size=2, replace=False)]] = shards.DOCUMENT_START
    padding = int(random.integers(0, 8))
    if padding:
        flags[-padding:] = 0
        flags[-padding] = shards.DOCUMENT_START
    return ids.astype(np.int64), flags


def make_config(model_folder, **changes) -> Config:
    values = {
        "model.name": str(model_folder),
        "quantization.kind": "none",
        "lora.rank": 4,
        "lora.alpha": 8,
        "optimization.learning_rate": 5e-3,
        "optimization.micro_batch": 2,
        "optimization.accumulation": 2,
        "training.epochs": 2,
        "training.checkpoint_every_steps": 3,
        "training.gradient_checkpointing": "off",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    sections: dict = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return Config.model_validate(sections)


class Recorder:
    """Takes the events of a run and asks it to stop after a step."""

    def __init__(self, stop_after=None):
        self.events = []
        self.stop_after = stop_after

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def should_stop(self):
        return self.stop_after is not None and any(step.step >= self.stop_after for step in self.of(StepDone))


def run(output, config, dataset, recorder=None, **options):
    recorder = recorder or Recorder()
    context = JobContext(output=output, emit=recorder.events.append, should_stop=recorder.should_stop)
    backend = options.pop("backend", FullPrecision())
    return train(config, dataset, backend, Device.CPU, context, **options)


def losses(output):
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def adapter_bytes(output):
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def test_training_lowers_the_held_out_loss_and_leaves_adapter_metrics_report_and_result(
    tmp_path, dataset, model_folder
):
    recorder = Recorder()
    result = run(tmp_path, make_config(model_folder, training__epochs=4), dataset, recorder)
    assert result["steps"] == 4 * 6
    assert result["loss_after"] < result["loss_before"] - 0.1
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert "</html>" in (tmp_path / "report.html").read_text()
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 25))
    fields = {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory_bytes"}
    assert all(fields <= step.keys() for step in steps)
    assert steps[-1]["tokens"] == result["tokens"]
    assert [event.stage for event in recorder.of(StageStarted)] == [
        "check dataset",
        "load model",
        "train",
        "evaluate",
        "evaluate",
        "save",
    ]
    assert [event.step for event in recorder.of(Evaluated)] == [0, 24]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_the_adapter_loads_with_plain_peft_and_has_the_reported_loss(tmp_path, dataset, model_folder):
    result = run(tmp_path, make_config(model_folder), dataset)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(model_folder)
    assert saved["target_modules"] == sorted(saved["target_modules"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "adapter").eval()
    total, count = 0.0, 0
    for row in shards.open_dataset(dataset).held_out:
        targets = torch.from_numpy(shards.labels(row.ids, row.flags))[1:]
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(row.ids)[None],
                position_ids=torch.from_numpy(shards.position_ids(row.flags))[None],
                use_cache=False,
            ).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += int((targets != -100).sum())
    assert result["held_out_tokens"] == count
    assert result["loss_after"] == pytest.approx(total / count, abs=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path, dataset, model_folder, model_folder_with_dropout, dropout
):
    config = make_config(model_folder_with_dropout if dropout else model_folder, lora__dropout=dropout)
    whole = run(tmp_path / "whole", config, dataset)
    recorder = Recorder(stop_after=5)
    with pytest.raises(StopRequested):
        run(tmp_path / "cut", config, dataset, recorder)
    assert recorder.of(Checkpointed)[-1].step == 5
    torch.rand(100)  # whatever else drew random numbers in between
    resumed = run(tmp_path / "cut", config, dataset, resume_from=tmp_path / "cut" / "checkpoints")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")
    assert resumed["resumes"] == 1
    assert {**resumed, "seconds": 0, "resumes": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor"])
def test_a_resumed_run_equals_an_uninterrupted_one_with_other_optimizers_too(
    tmp_path, dataset, model_folder, optimizer
):
    # Of rank 128 every matrix is large enough for 8-bit state.
    config = make_config(model_folder, optimization__optimizer=optimizer, lora__rank=128, training__max_steps=6)
    run(tmp_path / "whole", config, dataset)
    with pytest.raises(StopRequested):
        run(tmp_path / "cut", config, dataset, Recorder(stop_after=4))
    run(tmp_path / "cut", config, dataset, resume_from=tmp_path / "cut" / "checkpoints")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")


def test_an_optimizer_that_cannot_run_here_is_said_before_a_model_is_loaded(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr("backends.optimizers.find_spec", lambda _: None)
    config = make_config("no/such/model", optimization__optimizer="adamw8bit")
    with pytest.raises(BackendUnavailable, match="to adamw or adafactor"):
        run(tmp_path, config, dataset)


def test_a_checkpoint_from_before_there_was_a_choice_goes_on(tmp_path, dataset, model_folder):
    config = make_config(model_folder)
    with pytest.raises(StopRequested):
        run(tmp_path, config, dataset, Recorder(stop_after=2))
    folder = tmp_path / "checkpoints" / "step-2"

    def make_older(data):
        first = {"model", "revision", "rank", "alpha", "rslora", "target_modules", "dataset", "effective_batch", "seed"}
        data["identity"] = {name: data["identity"][name] for name in first}
        first = {"step", "tokens", "seconds", "position", "measurements", "skipped_in_a_row"}
        data["state"] = {name: data["state"][name] for name in first}

    rewrite_state(folder, make_older)
    adafactor = make_config(model_folder, optimization__optimizer="adafactor")
    with pytest.raises(InvalidSpec, match="optimizer was adamw then and is adafactor now"):
        run(tmp_path, adafactor, dataset, resume_from=folder)
    assert run(tmp_path, config, dataset, resume_from=folder)["steps"] > 2


def test_a_checkpoint_says_how_the_run_computed(tmp_path, dataset, model_folder):
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(model_folder), dataset, Recorder(stop_after=1))
    state = json.loads((tmp_path / "checkpoints" / "step-1" / "state.json").read_text())["state"]
    assert Execution.from_json(state["execution"] | {"of a newer program": 1}) == Execution(
        device="cpu",
        kind="none",
        compute="exact",
        dtype="float32",
        micro_batch=2,
        checkpointing=False,
        attention=state["execution"]["attention"],
        compile=False,
        threads=1,
    )


def rewrite_state(folder, change):
    """Change what a checkpoint's state.json says, and the manifest with it."""
    written = folder / "state.json"
    data = json.loads(written.read_text())
    change(data)
    written.write_text(json.dumps(data))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": written.stat().st_size, "sha256": sha256_of(written)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_a_newer_program_goes_on_without_what_is_not_known_here(tmp_path, dataset, model_folder):
    config = make_config(model_folder, training__evaluate_every_steps=4)
    run(tmp_path / "whole", config, dataset)
    with pytest.raises(StopRequested):
        run(tmp_path / "cut", config, dataset, Recorder(stop_after=5))

    def make_newer(data):
        assert [one["step"] for one in data["state"]["measurements"]] == [0, 4]
        data["state"] |= {"of a newer program": 1}
        data["state"]["position"] |= {"of a newer program": 1}
        data["state"]["measurements"] = [one | {"of a newer program": 1} for one in data["state"]["measurements"]]

    rewrite_state(tmp_path / "cut" / "checkpoints" / "step-5", make_newer)
    run(tmp_path / "cut", config, dataset, resume_from=tmp_path / "cut" / "checkpoints")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("free", [(1 << 40, 1 << 22), (1 << 22, 1 << 40)])
def test_a_resumed_run_computes_as_before_whatever_memory_is_free(tmp_path, dataset, model_folder, monkeypatch, free):
    config = make_config(
        model_folder,
        training__gradient_checkpointing="auto",
        optimization__micro_batch=4,
        optimization__accumulation=1,
    )
    monkeypatch.setattr(planner, "free_bytes", lambda _device: free[0])
    run(tmp_path / "whole", config, dataset)
    with pytest.raises(StopRequested):
        run(tmp_path / "cut", config, dataset, Recorder(stop_after=5))
    before = execution_of(tmp_path / "cut", 5)
    monkeypatch.setattr(planner, "free_bytes", lambda _device: free[1])
    recorder = Recorder()
    run(tmp_path / "cut", config, dataset, recorder, resume_from=tmp_path / "cut" / "checkpoints")
    assert execution_of(tmp_path / "cut", 12) == before
    assert any("Computes as before" in note.message for note in recorder.of(Note))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")


def execution_of(output, step):
    return json.loads((output / "checkpoints" / f"step-{step}" / "state.json").read_text())["state"]["execution"]


@pytest.mark.parametrize("reason", ["it does not fit", "memory ran out since", "another number of threads"])
def test_a_resumed_run_that_computes_otherwise_says_so(tmp_path, dataset, model_folder, monkeypatch, reason):
    config = make_config(model_folder)
    with pytest.raises(StopRequested):
        run(tmp_path, config, dataset, Recorder(stop_after=5))
    options = {}
    match reason:
        case "it does not fit":
            rewrite_state(
                tmp_path / "checkpoints" / "step-5", lambda data: data["state"]["execution"].update(micro_batch=4)
            )
            monkeypatch.setattr("jobs.continuation.limit_bytes", lambda _device: -(1 << 40))
        case "memory ran out since":
            options = {"micro_batch_divisor": 2}
        case "another number of threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    recorder = Recorder()
    run(tmp_path, config, dataset, recorder, resume_from=tmp_path / "checkpoints", **options)
    expected = {
        "it does not fit": "micro_batch was 4 and is 2",
        "memory ran out since": "micro_batch was 2 and is 1",
        "another number of threads": "threads was 1 and is 3",
    }
    told = [note.message for note in recorder.of(Note) if note.level == "warning"]
    assert [expected[reason] in message for message in told].count(True) == 1
    (incident,) = (tmp_path / "incidents.jsonl").read_text().splitlines()
    assert json.loads(incident)["kind"] == "resumed"


@pytest.mark.parametrize("healed_divisor_taken", [(1, 2, 1), (4, 2, 2), (2, 4, 1)])
def test_after_a_kill_for_want_of_memory_the_smaller_micro_batch_holds(
    tmp_path, dataset, model_folder, healed_divisor_taken
):
    healed_to, divisor, taken = healed_divisor_taken
    config = make_config(model_folder, optimization__micro_batch=4, optimization__accumulation=1, training__max_steps=3)
    with pytest.raises(StopRequested):
        run(tmp_path, config, dataset, Recorder(stop_after=2))
    folder = tmp_path / "checkpoints" / "step-2"
    rewrite_state(folder, lambda data: data["state"]["execution"].update(micro_batch=healed_to))
    run(tmp_path, config, dataset, resume_from=folder, micro_batch_divisor=divisor)
    assert execution_of(tmp_path, 3)["micro_batch"] == taken


def test_every_choice_of_the_configuration_reaches_the_backend(tmp_path, dataset, model_folder):
    class Asked(Exception):
        pass

    class Backend(FullPrecision):
        def load(self, request):
            raise Asked(request)

    config = make_config(
        model_folder,
        quantization__kind="int8",
        quantization__group_size="row",
        quantization__compute="int8",
        lora__dora=True,
        training__attention="blocked",
    )
    with pytest.raises(Asked) as caught:
        run(tmp_path, config, dataset, backend=Backend())
    (request,) = caught.value.args
    assert (request.group_size, request.compute, request.attention) == (None, "int8", "blocked")
    assert request.adapter.dora


def test_steps_after_the_checkpoint_are_done_again_and_not_written_twice(tmp_path, dataset, model_folder):
    config = make_config(model_folder)
    run(tmp_path / "whole", config, dataset)
    folder = tmp_path / "killed"
    script = (
        "import os, sys, signal; sys.path[:0] = [sys.argv[1], os.getcwd()]\n"
        "from pathlib import Path\n"
        "import test_jobs_training as t\n"
        "recorder = t.Recorder()\n"
        "class Killed(list):\n"
        "    def append(self, event):\n"
        "        super().append(event)\n"
        "        if isinstance(event, t.StepDone) and event.step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "recorder.events = Killed()\n"
        "t.run(Path(sys.argv[2]), t.make_config(Path(sys.argv[4])), Path(sys.argv[3]), recorder)\n"
    )
    arguments = [Path(__file__).parent, folder, dataset, model_folder]
    process = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], cwd=Path.cwd(), check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(losses(folder)) == 8
    assert latest(folder / "checkpoints").name == "step-6"
    run(folder, config, dataset, resume_from=folder / "checkpoints")
    assert losses(folder) == losses(tmp_path / "whole")
    assert adapter_bytes(folder) == adapter_bytes(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_note(tmp_path, dataset, model_folder):
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(model_folder), dataset, Recorder(stop_after=5))
    damaged = tmp_path / "checkpoints" / "step-5" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    recorder = Recorder()
    run(tmp_path, make_config(model_folder), dataset, recorder, resume_from=tmp_path / "checkpoints" / "step-5")
    notes = [note.message for note in recorder.of(Note)]
    assert any("step-5 is damaged" in note for note in notes)
    assert any("after step 3" in note for note in notes)
    assert recorder.of(StepDone)[0].step == 4


def test_resuming_without_any_whole_checkpoint_is_refused(tmp_path, dataset, model_folder):
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(model_folder), dataset, Recorder(stop_after=1))
    (tmp_path / "checkpoints" / "step-1" / "manifest.json").unlink()
    with pytest.raises(CheckpointDamaged, match="to start from the beginning"):
        run(tmp_path, make_config(model_folder), dataset, resume_from=tmp_path / "checkpoints")


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(tmp_path, dataset, model_folder):
    recorder = Recorder()
    config = make_config(model_folder, training__max_steps=1)
    run(tmp_path, config, dataset, recorder, resume_from=tmp_path / "checkpoints")
    assert any("from the beginning" in note.message for note in recorder.of(Note))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lora__rank": 8}, "lora.rank was 4 then and is 8 now"),
        ({"model__name": "other/model"}, "model.name"),
        ({"training__seed": 5}, "training.seed"),
        ({"optimization__accumulation": 3}, "optimization.accumulation"),
        ({"optimization__optimizer": "adafactor"}, "optimization.optimizer was adamw then and is adafactor now"),
        ({"lora__dora": True}, "lora.dora was False then and is True now"),
    ],
)
def test_resuming_another_run_is_refused(tmp_path, dataset, model_folder, change, key):
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(model_folder), dataset, Recorder(stop_after=1))
    with pytest.raises(InvalidSpec, match=key):
        run(tmp_path, make_config(model_folder, **change), dataset, resume_from=tmp_path / "checkpoints")


def test_resuming_on_another_dataset_is_refused(tmp_path, dataset, model_folder):
    with pytest.raises(StopRequested):
        run(tmp_path / "out", make_config(model_folder), dataset, Recorder(stop_after=1))
    other = write_dataset(tmp_path / "other", train_rows=22, seed=4)
    with pytest.raises(InvalidSpec, match="dataset"):
        run(tmp_path / "out", make_config(model_folder), other, resume_from=tmp_path / "out" / "checkpoints")


def test_half_the_micro_batch_gives_the_same_losses(tmp_path, dataset, model_folder):
    config = make_config(model_folder, optimization__micro_batch=4, optimization__accumulation=1)
    run(tmp_path / "whole", config, dataset)
    recorder = Recorder()
    run(tmp_path / "halves", config, dataset, recorder, micro_batch_divisor=2)
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    run(tmp_path / "singles", config, dataset, micro_batch_divisor=64)
    assert losses(tmp_path / "singles") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert any("micro-batch" in note.message for note in recorder.of(Note))


def test_a_step_is_the_mean_over_all_its_label_tokens(tmp_path, dataset, model_folder):
    config = make_config(model_folder, optimization__micro_batch=1, optimization__accumulation=4, training__max_steps=1)
    run(tmp_path, config, dataset)
    data = shards.open_dataset(dataset)
    order = Order(rows=len(data.train), effective_batch=4, seed=17, epochs=2)
    base = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    total, count = 0.0, 0
    for number in order.permutation(0)[:4]:
        row = data.train[number]
        targets = torch.from_numpy(shards.labels(row.ids, row.flags))[1:]
        positions = torch.from_numpy(shards.position_ids(row.flags))[None]
        with torch.no_grad():
            logits = base(torch.from_numpy(row.ids)[None], position_ids=positions, use_cache=False).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += int((targets != -100).sum())
    assert losses(tmp_path)[0] == pytest.approx(total / count, abs=1e-5)


def test_an_existing_adapter_or_unfinished_run_is_never_overwritten(tmp_path, dataset, model_folder):
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(model_folder), dataset, Recorder(stop_after=1))
    with pytest.raises(OutputExists, match="checkpoints of a run"):
        run(tmp_path, make_config(model_folder), dataset)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(OutputExists, match="already holds an adapter"):
        run(tmp_path, make_config(model_folder), dataset)


def test_an_output_that_is_a_file_is_a_sentence(tmp_path, dataset, model_folder):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidSpec, match="choose another output"):
        run(tmp_path / "file", make_config(model_folder), dataset)


def test_checkpoints_follow_the_clock_and_only_the_newest_are_kept(tmp_path, dataset, model_folder):
    config = make_config(
        model_folder,
        training__checkpoint_every_steps=1000,
        training__checkpoint_every_minutes=1e-9,
        output__keep_best=False,
    )
    recorder = Recorder()
    run(tmp_path, config, dataset, recorder)
    assert [event.step for event in recorder.of(Checkpointed)] == list(range(1, 13))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-11", "step-12"]


def test_held_out_loss_is_measured_every_so_many_steps_on_the_same_rows(tmp_path, dataset, model_folder):
    recorder = Recorder()
    config = make_config(model_folder, training__evaluate_every_steps=5, training__evaluation_rows=2)
    result = run(tmp_path, config, dataset, recorder)
    assert [event.step for event in recorder.of(Evaluated)] == [0, 5, 10, 12]
    assert len({event.tokens for event in recorder.of(Evaluated)}) == 1
    assert result["held_out_rows"] == 2


def test_the_learning_rate_warms_up_and_falls(tmp_path, dataset, model_folder):
    recorder = Recorder()
    run(tmp_path, make_config(model_folder, optimization__warmup_ratio=0.25), dataset, recorder)
    rates = [step.lr for step in recorder.of(StepDone)]
    assert rates[:3] == pytest.approx([5e-3 / 3, 10e-3 / 3, 5e-3])
    assert all(later <= earlier for earlier, later in pairwise(rates[2:]))
    assert 0 < rates[-1] < 5e-4


class Failing(FullPrecision):
    """Raises an error, or computes NaN, from a later forward pass of training on."""

    def __init__(self, error=None):
        self.error = error

    def load(self, request):
        loaded = super().load(request)
        passes = iter(range(10**6))

        def fail(module, _arguments, output):
            if not module.training or next(passes) < 8:
                return output
            if self.error:
                raise self.error
            return output * float("nan")

        loaded.model.get_base_model().model.norm.register_forward_hook(fail)
        return loaded


def test_steps_that_are_not_finite_are_skipped_and_several_in_a_row_end_the_run(tmp_path, dataset, model_folder):
    recorder = Recorder()
    with pytest.raises(Diverged, match=r"5 steps in a row.*learning_rate"):
        run(tmp_path, make_config(model_folder), dataset, recorder, backend=Failing())
    assert [note.level for note in recorder.of(Note) if "skipped" in note.message] == ["warning"] * 4
    weights = load_file(latest(tmp_path / "checkpoints") / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert losses(tmp_path)[-1] is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.90 GB, max allowed: 9.07 GB)."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_while_the_model_loads_is_told_as_such(tmp_path, dataset, model_folder, error):
    class Full(FullPrecision):
        def load(self, _request):
            raise error

    with pytest.raises(OutOfMemory, match="micro_batch"):
        run(tmp_path, make_config(model_folder), dataset, backend=Full())


def test_a_real_allocation_failure_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert is_out_of_memory(caught.value)


def test_other_errors_stay_what_they_are(tmp_path, dataset, model_folder):
    with pytest.raises(RuntimeError, match="a defect"):
        run(tmp_path, make_config(model_folder), dataset, backend=Failing(RuntimeError("a defect")))


def test_a_dataset_of_another_vocabulary_is_refused(tmp_path, model_folder):
    folder = tmp_path / "dataset"
    write_dataset(folder, train_rows=3, seed=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    shards.write_manifest(folder, manifest | {"tokenizer": {"vocabulary_size": VOCABULARY + 1}})
    with pytest.raises(InvalidSpec, match="tokenizer"):
        run(tmp_path / "out", make_config(model_folder), folder)


def test_a_shard_that_was_cut_or_altered_is_named_before_a_model_is_loaded(tmp_path, model_folder):
    folder = write_dataset(tmp_path / "dataset", train_rows=8, seed=1)
    shard = folder / "train" / "00000.ids"
    content = shard.read_bytes()
    for damaged in (content[:-64], content[:-1] + bytes([content[-1] ^ 1])):
        shard.write_bytes(damaged)
        with pytest.raises(shards.DatasetError, match=r"train/00000\.ids (is cut|was altered)"):
            run(tmp_path / "out", make_config("no/such/model"), folder)


def test_a_dataset_without_rows_to_train_on_is_refused(tmp_path):
    folder = write_dataset(tmp_path / "dataset", train_rows=0, seed=1)
    with pytest.raises(shards.DatasetError, match="no rows to train on"):
        run(tmp_path / "out", make_config("no/such/model"), folder)


def test_fp16_scales_gradients_and_lowers_the_scale_until_they_fit(tmp_path, dataset, model_folder, monkeypatch):
    """The scaler of cuda and mps, run on the CPU, which needs none."""
    scalers = []

    def with_scaler(loaded):
        accelerator = make_accelerator(replace(loaded, needs_scaler=True))
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        scalers.append(accelerator.scaler)
        return accelerator

    make_accelerator = preparation.make_accelerator
    monkeypatch.setattr(preparation, "make_accelerator", with_scaler)
    recorder = Recorder(stop_after=8)
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(model_folder), dataset, recorder)
    skipped = [note for note in recorder.of(Note) if "skipped" in note.message]
    assert 1 <= len(skipped) < 8
    state = json.loads((latest(tmp_path / "checkpoints") / "state.json").read_text())["state"]
    assert state["skipped"] == len(skipped)
    norms = [step.grad_norm for step in recorder.of(StepDone) if math.isfinite(step.grad_norm)]
    assert all(0.1 < norm < 1.0 for norm in norms)  # of the gradients, not of the scaled ones
    weights = load_file(latest(tmp_path / "checkpoints") / "adapter" / "adapter_model.safetensors")
    assert any(bool((tensor != 0).any()) for name, tensor in weights.items() if "lora_B" in name)
    run(tmp_path, make_config(model_folder), dataset, Recorder(), resume_from=tmp_path / "checkpoints")
    assert scalers[1].get_scale() == scalers[0].get_scale() < 2.0**127


@pytest.mark.parametrize("memory", [(1 << 40, "off"), (1 << 22, "on")])
def test_auto_recomputes_activations_where_memory_is_short(
    tmp_path, dataset, model_folder_with_dropout, monkeypatch, memory
):
    free, state = memory
    monkeypatch.setattr(planner, "free_bytes", lambda _device: free)
    recorder = Recorder()
    config = make_config(model_folder_with_dropout, training__gradient_checkpointing="auto", training__max_steps=2)
    run(tmp_path / "auto", config, dataset, recorder)
    assert any(f"Gradient checkpointing is {state}: " in note.message for note in recorder.of(Note))
    kept = make_config(model_folder_with_dropout, training__gradient_checkpointing="off", training__max_steps=2)
    run(tmp_path / "kept", kept, dataset)
    assert losses(tmp_path / "auto") == pytest.approx(losses(tmp_path / "kept"), abs=1e-6)


def test_a_machine_knows_its_free_memory():
    assert (1 << 20) < free_bytes(Device.CPU) < (1 << 50)
