"""Trackers get the metrics too, and whatever they do, the training goes on as if they were not there."""

import json
import math
import threading
from pathlib import Path

import pytest

from jobs import sinks
from jobs.context import JobContext
from jobs.events import Evaluated, Note, StepDone
from jobs.metrics import Metrics
from jobs.sinks import Sinks
from jobs.spec import Config

GATE_SECONDS = 20


def step(number, loss=1.0):
    return StepDone(
        step=number,
        total_steps=9,
        loss=loss,
        lr=1e-4,
        grad_norm=0.5,
        tokens=10 * number,
        tokens_per_second=5.0,
        memory_bytes=1000,
    )


class FakeTracker:
    """Named like Accelerate's and called like them; remembers everything."""

    made: list = []  # noqa: RUF012

    def __init__(self, project, **options):
        self.project, self.options = project, options
        self.logged, self.parameters, self.is_finished = [], None, False
        self.gate = threading.Event()
        self.gate.set()
        FakeTracker.made.append(self)

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.parameters = values

    def log(self, values, step):
        self.gate.wait(GATE_SECONDS)
        self.logged.append((step, values))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def fake(monkeypatch):
    """Every tracker is the fake one, whose library is installed."""
    FakeTracker.made = []
    monkeypatch.setattr(sinks, "tracker_class", lambda _name: FakeTracker)
    monkeypatch.setattr(sinks, "is_installed", lambda _name: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")
    return FakeTracker


def config_with(*names, **output):
    return Config.model_validate({"output": {"sinks": list(names), **output}})


def opened(tmp_path, *names, runs=None, at=0, events=None, **output):
    events = [] if events is None else events
    runs = {} if runs is None else runs
    return Sinks.open(config_with(*names, **output), tmp_path, runs, at, events.append)


def notes(events):
    return [event.message for event in events if isinstance(event, Note)]


def scalars(folder, tag):
    """What TensorBoard itself reads back: step -> value."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    files = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    files.Reload()
    return {event.step: event.value for event in files.Scalars(tag)}


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    events = []
    feed = opened(tmp_path, "tensorboard", events=events)
    for number in (1, 2, 3):
        feed.heard(step(number, loss=1.0 / number))
    feed.heard(Evaluated(step=3, loss=2.0, perplexity=math.exp(2.0), tokens=5))
    feed.close()
    folder = tmp_path / "tensorboard" / "repotune"
    assert scalars(folder, "train/loss") == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3})
    assert scalars(folder, "held_out/loss") == {3: 2.0}
    assert notes(events) == [f"TensorBoard files go to {tmp_path / 'tensorboard'}"]


def test_a_resumed_run_goes_on_in_the_same_curve_without_the_steps_that_were_lost(tmp_path):
    runs = {}
    first = opened(tmp_path, "tensorboard", runs=runs)
    for number in (1, 2, 3, 4):
        first.heard(step(number, loss=9.0))
    first.close()
    second = opened(tmp_path, "tensorboard", runs=runs, at=2)
    second.heard(step(3, loss=1.0))
    second.close()
    assert scalars(tmp_path / "tensorboard" / runs["tensorboard"], "train/loss") == {1: 9.0, 2: 9.0, 3: 1.0}


def test_a_run_resumed_on_another_machine_gets_the_steps_before(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for number in (1, 2):
        metrics.append(step(number, loss=float(number)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # as it may be while the training writes it
    feed = opened(tmp_path, "tensorboard", runs={"tensorboard": "repotune"}, at=2)
    feed.heard(step(3, loss=3.0))
    feed.close()
    assert scalars(tmp_path / "tensorboard" / "repotune", "train/loss") == {1: 1.0, 2: 2.0, 3: 3.0}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_names_the_run_that_it_goes_on_with(tmp_path, fake, name):
    runs = {}
    first = opened(tmp_path, name, runs=runs, project="mine")
    first.heard(step(1))
    first.close()
    opened(tmp_path, name, runs=runs, at=1, project="mine").close()
    one, two = fake.made
    key = "id" if name == "wandb" else "name"
    assert one.options[key] == two.options[key] == runs[name]
    assert (one.project, two.options["resume"]) == ("mine", "allow")
    assert one.is_finished
    assert one.parameters["lora.rank"] == 32
    assert two.parameters is None


def test_a_tracker_without_a_login_writes_offline_and_says_so(tmp_path, fake):
    events = []
    opened(tmp_path, "wandb", events=events).close()
    assert fake.made[0].options["mode"] == "offline"
    assert "to be sent by `wandb sync`" in notes(events)[0]


@pytest.mark.parametrize(
    ("name", "late"), [("wandb", (2, {"held_out/base_loss": 3.0})), ("trackio", (0, {"held_out/loss": 3.0}))]
)
def test_the_base_is_measured_late_and_still_arrives_where_only_the_newest_step_is_taken(tmp_path, fake, name, late):
    feed = opened(tmp_path, name)
    feed.heard(step(2))
    feed.heard(Evaluated(step=0, loss=3.0, perplexity=math.inf, tokens=5))
    feed.heard(Evaluated(step=2, loss=2.0, perplexity=math.inf, tokens=5))
    feed.heard(step(3))
    feed.close()
    logged = fake.made[0].logged
    assert [number for number, _ in logged] == [2, late[0], 2, 3]
    assert logged[1] == late
    assert logged[2] == (2, {"held_out/loss": 2.0})


def test_a_login_in_the_environment_is_used(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    opened(tmp_path, "wandb").close()
    assert "mode" not in fake.made[0].options


def test_the_first_error_is_one_note_and_the_tracker_is_off(tmp_path, fake):
    def refuse(self, _values, step):
        raise ConnectionError(f"no route at step {step}\nand a stack of details")

    fake_log, fake.log = fake.log, refuse
    try:
        events = []
        feed = opened(tmp_path, "wandb", events=events)
        for number in range(1, 50):
            feed.heard(step(number))
        feed.close()
    finally:
        fake.log = fake_log
    [told] = [note for note in notes(events) if "is off" in note]
    assert told == "wandb is off: no route at step 1. The training and metrics.jsonl go on"


def test_a_tracker_that_is_not_installed_is_one_note(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "is_installed", lambda _name: False)
    events = []
    feed = opened(tmp_path, "mlflow", events=events)
    feed.heard(step(1))
    feed.close()
    assert notes(events) == [
        "mlflow is off: it is not installed here: pip install mlflow. The training and metrics.jsonl go on"
    ]


def test_a_tracker_that_hangs_is_never_waited_for(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(sinks, "QUEUE_STEPS", 2)
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.1)
    hung = threading.Event()
    monkeypatch.setattr(fake, "start", lambda _self: hung.wait(GATE_SECONDS))
    events = []
    feed = opened(tmp_path, "trackio", events=events)
    for number in range(1, 100):
        feed.heard(step(number))
    feed.close()
    assert notes(events) == ["trackio did not take all numbers in time: some of them may be missing"]
    hung.set()


def test_numbers_that_are_none_do_not_reach_a_tracker(tmp_path, fake):
    feed = opened(tmp_path, "trackio")
    feed.heard(step(1, loss=math.nan))
    feed.close()
    [(_, values)] = fake.made[0].logged
    assert "train/loss" not in values
    assert values["train/lr"] == 1e-4


def test_a_project_cannot_leave_the_folder(tmp_path, fake):
    runs = {}
    opened(tmp_path, "tensorboard", runs=runs, project="../../elsewhere").close()
    assert "/" not in runs["tensorboard"]
    assert not runs["tensorboard"].startswith(".")


def test_further_repositories_are_no_business_of_a_tracker(tmp_path, fake):
    config = Config.model_validate(
        {
            "output": {"sinks": ["trackio"]},
            "dataset": {"also": [{"repository": "https://me:secret@example.org/a.git"}]},
            "model": {"name": str(tmp_path)},
        }
    )
    Sinks.open(config, tmp_path, {}, 0, lambda _event: None).close()
    assert "secret" not in json.dumps(fake.made[0].parameters)
    assert fake.made[0].parameters["model.name"] == tmp_path.name


def test_wandb_writes_offline_for_real(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 120.0)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    runs = {}
    feed = opened(tmp_path, "wandb", runs=runs)
    feed.heard(step(1))
    feed.close()
    [folder] = (tmp_path / "wandb").glob(f"offline-run-*-{runs['wandb']}")
    assert any(file.suffix == ".wandb" for file in folder.iterdir())


def test_a_training_feeds_its_trackers_and_is_the_same_without_them(tmp_path, small_run):
    """Metrics and adapter do not depend on who else listens."""
    told = small_run(tmp_path / "with", {"sinks": ["tensorboard"]})
    small_run(tmp_path / "without", {})
    assert scalars(tmp_path / "with" / "tensorboard" / "repotune", "train/loss").keys() == {1, 2}
    assert scalars(tmp_path / "with" / "tensorboard" / "repotune", "held_out/loss").keys() == {0, 2}
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    assert any("TensorBoard files go to" in note for note in notes(told))
    state = json.loads((tmp_path / "with" / "checkpoints" / "step-2" / "state.json").read_text())
    assert state["state"]["tracker_runs"] == {"tensorboard": "repotune"}


@pytest.fixture
def small_run(tmp_path, tiny_model_folder):
    """Trains two steps of the tiny model on random rows."""
    import numpy as np

    from backends.devices import Device
    from backends.full import FullPrecision
    from jobs import shards
    from jobs.training import train

    random, files = np.random.default_rng(3), {}
    folder = tmp_path / "dataset"
    for split, rows in (("train", 8), ("held_out", 2)):
        with shards.ShardWriter(folder, split, 32, "uint16") as writer:
            for _ in range(rows):
                flags = np.full(32, shards.LABEL, dtype=np.uint8)
                flags[0] = shards.DOCUMENT_START
                writer.append(random.integers(7, 200, size=32), flags)
        files |= writer.files
    splits = {"train": {"rows": 8, "tokens": 256}, "held_out": {"rows": 2, "tokens": 64}}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": 32, "commit": "c" * 40}
    shards.write_manifest(folder, manifest)

    def run(output: Path, section):
        events = []
        config = Config.model_validate(
            {
                "model": {"name": str(tiny_model_folder)},
                "quantization": {"kind": "none"},
                "lora": {"rank": 2},
                "training": {"max_steps": 2, "checkpoint_every_steps": 1, "gradient_checkpointing": "off"},
                "optimization": {"accumulation": 4},
                "output": section,
            }
        )
        context = JobContext(output=output, emit=events.append)
        train(config, folder, FullPrecision(), Device.CPU, context)
        return events

    return run
