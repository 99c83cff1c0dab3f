"""The report of a run, however the run ends, and what it says of the time that is left."""

import json
import sys

import numpy as np
import pytest

from backends.devices import Device
from backends.full import FullPrecision
from jobs import shards
from jobs.context import JobContext, StopRequested
from jobs.evaluation import HeldOut
from jobs.events import Note, StepDone
from jobs.run import Diverged
from jobs.spec import Config
from jobs.training import train

LENGTH, TRAIN_ROWS, HELD_OUT_ROWS = 32, 22, 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "dataset"
    files, splits = {}, {}
    for split, rows in (("train", TRAIN_ROWS), ("held_out", HELD_OUT_ROWS)):
        with shards.ShardWriter(folder, split, LENGTH, "uint16") as writer:
            for row in range(rows):
                writer.append((np.arange(LENGTH) * 3 + row) % 300, np.full(LENGTH, shards.LABEL, dtype=np.uint8))
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * LENGTH}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": LENGTH, "commit": "c" * 40}
    shards.write_manifest(folder, manifest)
    return folder


def make_config(model_folder):
    return Config.model_validate(
        {
            "model": {"name": str(model_folder)},
            "quantization": {"kind": "none"},
            "lora": {"rank": 4},
            "optimization": {"learning_rate": 5e-3, "micro_batch": 2, "accumulation": 2},
            "training": {"epochs": 2, "checkpoint_every_steps": 3, "gradient_checkpointing": "off"},
            # Little beside the steps, whose progress then shows in the time left.
            "evaluation": {"prompts": 0, "rows": 1},
        }
    )


class Recorder:
    """Takes the events of a run and asks it to stop after a step."""

    def __init__(self, stop_after=None):
        self.events, self.stop_after = [], stop_after

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def should_stop(self):
        return self.stop_after is not None and any(step.step >= self.stop_after for step in self.of(StepDone))


def run(output, config, dataset, recorder=None, **options):
    recorder = recorder or Recorder()
    context = JobContext(output=output, emit=recorder.events.append, should_stop=recorder.should_stop)
    return train(config, dataset, FullPrecision(), Device.CPU, context, **options)


def page_of(output):
    return (output / "report.html").read_text(encoding="utf-8")


def test_a_finished_run_leaves_report_and_picture_and_tells_the_time_to_the_end(tmp_path, dataset, tiny_model_folder):
    pytest.importorskip("matplotlib")
    recorder = Recorder()
    result = run(tmp_path, make_config(tiny_model_folder), dataset, recorder)
    assert (result["report"], result["curve"]) == ("report.html", "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "Use the adapter" in page_of(tmp_path)
    left = [step.eta_seconds for step in recorder.of(StepDone)]
    assert all(seconds > 0 for seconds in left)
    assert left[-1] < left[1]


def test_a_run_that_is_stopped_says_how_far_it_came_and_how_long_the_rest_takes(tmp_path, dataset, tiny_model_folder):
    config = make_config(tiny_model_folder)
    with pytest.raises(StopRequested):
        run(tmp_path, config, dataset, Recorder(stop_after=5))
    assert "Stopped after step 5 of 12, as asked: its checkpoint lets it go on, for about" in page_of(tmp_path)
    state = json.loads((tmp_path / "checkpoints" / "step-5" / "state.json").read_text())["state"]
    assert len(state["eta"]["steps"]) == 4
    recorder = Recorder()
    run(tmp_path, config, dataset, recorder, resume_from=tmp_path / "checkpoints")
    assert any("from the steps before the checkpoint" in note.message for note in recorder.of(Note))
    assert "Stopped after" not in page_of(tmp_path)


def test_a_run_that_diverges_leaves_its_curve_and_the_reason(tmp_path, dataset, tiny_model_folder, monkeypatch):
    def diverged(*_, step, **__):
        return HeldOut(step=step, loss=1e9 if step else 3.0, tokens=9)

    monkeypatch.setattr("jobs.measuring.measure", diverged)
    with pytest.raises(Diverged):
        run(tmp_path, make_config(tiny_model_folder), dataset)
    page = page_of(tmp_path)
    assert "Ended after step 12 of 12" in page
    assert "optimization.learning_rate" in page
    assert "PeftModel" not in page


def test_a_report_that_cannot_be_written_does_not_hide_why_a_run_ended(
    tmp_path, dataset, tiny_model_folder, monkeypatch
):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.report.write_report", no_room)
    recorder = Recorder(stop_after=2)
    with pytest.raises(StopRequested):
        run(tmp_path, make_config(tiny_model_folder), dataset, recorder)
    assert any("The report could not be written" in note.message for note in recorder.of(Note))


def test_a_picture_that_cannot_be_drawn_costs_no_result(tmp_path, dataset, tiny_model_folder, monkeypatch):
    def broken(*_):
        raise ValueError("no fonts")

    monkeypatch.setattr("jobs.picture.write_picture", broken)
    recorder = Recorder()
    assert run(tmp_path, make_config(tiny_model_folder), dataset, recorder)["curve"] is None
    assert any("curve.png: no fonts" in note.message for note in recorder.of(Note))


def test_without_matplotlib_a_note_says_that_there_is_no_picture(tmp_path, dataset, tiny_model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    recorder = Recorder()
    assert run(tmp_path, make_config(tiny_model_folder), dataset, recorder)["curve"] is None
    assert any("matplotlib is not installed" in note.message for note in recorder.of(Note))
    assert not (tmp_path / "curve.png").exists()
