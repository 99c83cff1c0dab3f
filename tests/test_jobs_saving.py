import contextlib
import importlib
import json
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import checkpoint, saving
from jobs.checkpoint import DiskFull
from jobs.context import StopRequested
from jobs.events import Checkpointed, Evaluated, Note, StepDone
from jobs.metrics import Metrics, Speed, read_metrics

sys.path.insert(0, str(Path(__file__).parent))
tiny = importlib.import_module("test_jobs_training")
dataset, model_folder = tiny.dataset, tiny.model_folder
small_disk = importlib.import_module("test_jobs_checkpoint").small_disk


class FullDisk:
    """A disk that has no room for some checkpoints: those whose turn `is_full` names, counted from 1."""

    def __init__(self, monkeypatch, is_full):
        self.tries = 0
        self._is_full = is_full
        self._write = saving.snapshot.write_snapshot
        monkeypatch.setattr(saving.snapshot, "write_snapshot", self.write)

    def write(self, folder, **parts):
        self.tries += 1
        self._write(folder, **parts)
        if self._is_full(self.tries):
            raise OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def warnings_of(recorder):
    """But for the closing evaluation's: the model of these tests has no tokenizer to complete with."""
    told = [note.message for note in recorder.of(Note) if note.level == "warning"]
    return [message for message in told if "were not compared" not in message]


def test_a_full_disk_is_told_training_goes_on_and_the_next_checkpoint_is_tried(
    tmp_path, dataset, model_folder, monkeypatch
):
    tiny.run(tmp_path / "whole", tiny.make_config(model_folder), dataset)
    FullDisk(monkeypatch, lambda turn: turn == 2)
    recorder = tiny.Recorder()
    tiny.run(tmp_path / "full", tiny.make_config(model_folder), dataset, recorder)
    (warning,) = warnings_of(recorder)
    assert "No room left on the disk for a checkpoint of step 6: the last one, of step 3, stands" in warning
    assert [event.step for event in recorder.of(Checkpointed)] == [3, 9, 12]
    assert tiny.losses(tmp_path / "full") == tiny.losses(tmp_path / "whole")
    assert tiny.adapter_bytes(tmp_path / "full") == tiny.adapter_bytes(tmp_path / "whole")
    (line,) = (tmp_path / "full" / "incidents.jsonl").read_text().splitlines()
    assert (json.loads(line)["kind"], json.loads(line)["step"]) == ("disk_full", 6)


def test_on_a_full_disk_old_checkpoints_give_way_while_a_good_one_stands(tmp_path, dataset, model_folder, monkeypatch):
    disk = FullDisk(monkeypatch, lambda turn: turn == 3)
    recorder = tiny.Recorder()
    tiny.run(tmp_path, tiny.make_config(model_folder), dataset, recorder)
    assert not warnings_of(recorder)
    assert [event.step for event in recorder.of(Checkpointed)] == [3, 6, 9, 12]
    assert disk.tries == 5


def test_room_is_never_made_of_the_last_good_checkpoint(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, lambda folder: (folder / "weights").write_bytes(b"w"), keep=3)
    (tmp_path / "step-3" / "weights").unlink()
    assert checkpoint.make_room(tmp_path)
    assert names(tmp_path) == ["step-2"]
    assert not checkpoint.make_room(tmp_path)
    assert names(tmp_path) == ["step-2"]


def test_leaving_with_a_full_disk_leaves_with_the_checkpoint_before(tmp_path, dataset, model_folder, monkeypatch):
    FullDisk(monkeypatch, lambda turn: turn == 2)
    with pytest.raises(StopRequested):
        tiny.run(tmp_path, tiny.make_config(model_folder), dataset, tiny.Recorder(stop_after=5))
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-3"


def test_a_really_full_disk_ends_no_run(small_disk, tmp_path, dataset, model_folder):
    config = tiny.make_config(model_folder, training__checkpoint_every_steps=1, output__keep_checkpoints=1)
    tiny.run(tmp_path / "whole", config, dataset)

    class Filler(list):
        """Fills the disk after each of the steps 4 to 7 and frees it after step 8."""

        def append(self, event):
            super().append(event)
            if isinstance(event, StepDone) and 4 <= event.step < 8:
                fill(small_disk / f"filler-{event.step}")
            if isinstance(event, StepDone) and event.step == 8:
                for file in small_disk.glob("filler-*"):
                    file.unlink()

    recorder = tiny.Recorder()
    recorder.events = Filler()
    tiny.run(small_disk / "out", config, dataset, recorder)
    saved = [event.step for event in recorder.of(Checkpointed)]
    assert {1, 2, 3, 8, 9, 10, 11, 12} <= set(saved)
    assert len(set(saved)) < 12
    assert any("No room left" in warning for warning in warnings_of(recorder))
    assert tiny.losses(small_disk / "out") == tiny.losses(tmp_path / "whole")


def fill(file):
    with contextlib.suppress(OSError), file.open("wb", 0) as stream:
        while True:
            stream.write(b"f" * 4096)


def test_lines_that_a_full_disk_refuses_are_written_as_soon_as_there_is_room(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.append(step(1))

    def refuse(_line):
        with metrics.file.open("ab") as stream:
            stream.write(b'{"ste')
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "_write", refuse)
        metrics.append(step(2))
    assert metrics.waits
    assert [line["step"] for line in read_metrics(metrics.file)] == [1]
    metrics.append(step(3))
    assert not metrics.waits
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert metrics.content() == (tmp_path / "metrics.jsonl").read_bytes()


def step(number):
    return StepDone(
        step=number, total_steps=3, loss=1.0, lr=0.1, grad_norm=1.0, tokens=9, tokens_per_second=1.0, memory_bytes=1
    )


def test_a_pause_of_the_process_does_not_count_as_slowness():
    speed = Speed()
    for seconds in (1.0, 1.0, 600.0, 1.0):
        speed.add(100, seconds)
    assert speed.tokens_per_second == 100


def test_a_clock_that_jumps_changes_nothing(tmp_path, dataset, model_folder, monkeypatch):
    tiny.run(tmp_path / "whole", tiny.make_config(model_folder), dataset)
    times = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    recorder = tiny.Recorder()
    tiny.run(tmp_path / "jumping", tiny.make_config(model_folder), dataset, recorder)
    assert [event.step for event in recorder.of(Checkpointed)] == [3, 6, 9, 12]
    assert tiny.losses(tmp_path / "jumping") == tiny.losses(tmp_path / "whole")


# ---- the best one ----


def measured_as(monkeypatch, losses):
    """Let the held-out losses come out as `losses` tells by step."""
    measuring = importlib.import_module("jobs.measuring")
    measure = measuring.measure

    def measured(*arguments, **options):
        held_out = measure(*arguments, **options)
        return tiny.replace(held_out, loss=losses.get(held_out.step, held_out.loss))

    monkeypatch.setattr(measuring, "measure", measured)


WORSE_AFTER_4 = {0: 4.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6, 10: 2.7, 12: 2.8}


def best_config(model_folder, **changes):
    return tiny.make_config(
        model_folder,
        training__evaluate_every_steps=2,
        training__checkpoint_every_steps=3,
        output__keep_checkpoints=1,
        **changes,
    )


def test_the_checkpoint_of_the_best_held_out_loss_is_kept_beside_the_newest(
    tmp_path, dataset, model_folder, monkeypatch
):
    measured_as(monkeypatch, WORSE_AFTER_4)
    recorder = tiny.Recorder()
    result = tiny.run(tmp_path, best_config(model_folder), dataset, recorder)
    assert names(tmp_path / "checkpoints") == ["step-12", "step-4"]
    assert [event.step for event in recorder.of(Checkpointed) if event.best] == [2, 4]
    assert result["published_step"] == 12
    state = json.loads((tmp_path / "checkpoints" / "step-12" / "state.json").read_text())["state"]
    assert state["best"] == {"step": 4, "loss": 2.0}


def test_without_keep_best_only_the_newest_are_kept(tmp_path, dataset, model_folder, monkeypatch):
    measured_as(monkeypatch, WORSE_AFTER_4)
    tiny.run(tmp_path, best_config(model_folder, output__keep_best=False), dataset)
    assert names(tmp_path / "checkpoints") == ["step-12"]


def test_the_best_adapter_is_the_result_where_that_is_asked_for(tmp_path, dataset, model_folder, monkeypatch):
    measured_as(monkeypatch, WORSE_AFTER_4)
    config = best_config(model_folder, output__publish="best")
    result = tiny.run(tmp_path, config, dataset)
    assert (result["published_step"], result["loss_after"]) == (4, 2.0)
    best = tmp_path / "checkpoints" / "step-4" / "adapter" / "adapter_model.safetensors"
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == load_file(best).keys()
    assert tiny.adapter_bytes(tmp_path) == best.read_bytes()


def test_a_worker_that_has_only_the_newest_checkpoint_still_gives_the_best_adapter(
    tmp_path, dataset, model_folder, monkeypatch
):
    measured_as(monkeypatch, WORSE_AFTER_4)
    config = best_config(model_folder, output__publish="best")
    tiny.run(tmp_path / "whole", config, dataset)
    with pytest.raises(StopRequested):
        tiny.run(tmp_path / "first", config, dataset, tiny.Recorder(stop_after=8))
    newest = checkpoint.latest(tmp_path / "first" / "checkpoints")
    moved = tmp_path / "fetched" / newest.name
    moved.parent.mkdir()
    newest.rename(moved)
    tiny.run(tmp_path / "second", config, dataset, resume_from=moved)
    assert tiny.adapter_bytes(tmp_path / "second") == tiny.adapter_bytes(tmp_path / "whole")


def test_where_the_best_checkpoint_is_gone_the_last_adapter_is_the_result_and_that_is_said(
    tmp_path, dataset, model_folder, monkeypatch
):
    measured_as(monkeypatch, WORSE_AFTER_4)
    config = best_config(model_folder, output__publish="best")

    class Remover(list):
        def append(self, event):
            super().append(event)
            if isinstance(event, Evaluated) and event.step == 12:
                for name in ("step-4", "step-9"):
                    (tmp_path / "checkpoints" / name / "manifest.json").unlink(missing_ok=True)

    recorder = tiny.Recorder()
    recorder.events = Remover()
    assert tiny.run(tmp_path, config, dataset, recorder)["published_step"] == 12
    assert any("of step 4, is gone" in warning for warning in warnings_of(recorder))


def test_a_measurement_that_would_lose_too_much_work_is_preceded_by_a_checkpoint(
    tmp_path, dataset, model_folder, monkeypatch
):
    loop = importlib.import_module("jobs.loop")
    clock = iter(range(0, 10**9, 400))  # every look at the clock is 400 s later, more than the interval of 300
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    recorder = tiny.Recorder()
    tiny.run(tmp_path, best_config(model_folder, output__keep_best=False), dataset, recorder)
    order = [event for event in recorder.events if isinstance(event, Checkpointed | Evaluated)]
    assert [type(event).__name__ for event in order if event.step == 4] == ["Checkpointed", "Evaluated"]
