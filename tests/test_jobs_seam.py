import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from backends.devices import Device
from backends.registry import open_backend
from jobs.checkpoint import latest
from jobs.context import StopRequested
from jobs.events import Evaluated, Note, Seam
from jobs.spec import QuantizationSection

sys.path.insert(0, str(Path(__file__).parent))
tiny = importlib.import_module("test_jobs_training")
pytestmark = tiny.pytestmark
dataset, model_folder = tiny.dataset, tiny.model_folder
open_here = partial(open_backend, device=Device.CPU)


def begun_on_int8(output, model_folder, dataset, stop_after=5):
    config = tiny.make_config(
        model_folder, quantization__kind="int8", quantization__group_size=32, training__evaluate_every_steps=4
    )
    with pytest.raises(StopRequested):
        tiny.run(output, config, dataset, tiny.Recorder(stop_after=stop_after), backend=open_here("int8"))
    return output / "checkpoints"


def goes_on(output, kind, model_folder, dataset, recorder, *, group_size=128, **options):
    config = tiny.make_config(
        model_folder,
        quantization__kind=kind,
        quantization__group_size=group_size,
        training__evaluate_every_steps=4,
    )
    backend = open_here(kind)
    return tiny.run(output, config, dataset, recorder, backend=backend, open_backend=open_here, **options)


@pytest.mark.parametrize("kind", ["nf4", "none"])
def test_a_run_that_goes_on_with_another_base_tells_the_gap_of_the_held_out_loss(tmp_path, dataset, model_folder, kind):
    folder = begun_on_int8(tmp_path, model_folder, dataset)
    recorder = tiny.Recorder()
    result = goes_on(tmp_path, kind, model_folder, dataset, recorder, resume_from=folder)
    (seam,) = recorder.of(Seam)
    assert (seam.step, seam.before, seam.after) == (5, "int8 on cpu", f"{kind} on cpu")
    assert 0 < abs(seam.loss_after - seam.loss_before) < 0.05
    (numbers,) = result["seams"]
    assert numbers["loss_before"] == seam.loss_before
    assert numbers["loss_after"] == seam.loss_after
    assert numbers["base_loss_before"] == result["loss_before"]
    assert numbers["base_loss_after"] != pytest.approx(numbers["loss_after"], abs=1e-4)
    state = json.loads((latest(folder) / "state.json").read_text())["state"]
    points = [(one["step"], one["loss"]) for one in state["measurements"]]
    assert points[2:4] == [(5, seam.loss_before), (5, seam.loss_after)]
    assert [event.step for event in recorder.of(Evaluated)] == [8, 12]


def test_another_group_size_is_another_base(tmp_path, dataset, model_folder):
    folder = begun_on_int8(tmp_path, model_folder, dataset)
    recorder = tiny.Recorder()
    goes_on(tmp_path, "int8", model_folder, dataset, recorder, group_size="row", resume_from=folder)
    (seam,) = recorder.of(Seam)
    assert (seam.before, seam.after) == ("int8 on cpu with groups of 32", "int8 on cpu with one scale a row")
    assert 0 < abs(seam.loss_after - seam.loss_before) < 0.05


def test_integer_products_have_one_scale_a_row_whatever_was_asked_for():
    asked = [
        QuantizationSection(kind="int8", compute="int8", group_size="row"),
        QuantizationSection(kind="int8", compute="int8"),
    ]
    assert [one.chosen_group for one in asked] == ["row", "row"]


def test_a_checkpoint_that_does_not_tell_its_group_size_goes_on_without_a_seam(tmp_path, dataset, model_folder):
    folder = begun_on_int8(tmp_path, model_folder, dataset)
    tiny.rewrite_state(folder / "step-5", lambda data: data["state"]["execution"].pop("group_size"))
    recorder = tiny.Recorder()
    goes_on(tmp_path, "int8", model_folder, dataset, recorder, resume_from=folder)
    assert not recorder.of(Seam)


def test_the_loss_before_a_seam_is_what_the_run_would_have_measured_there(tmp_path, dataset, model_folder):
    config = tiny.make_config(
        model_folder,
        quantization__kind="int8",
        quantization__group_size=32,
        training__evaluate_every_steps=5,
        training__max_steps=6,
    )
    whole = tiny.Recorder()
    tiny.run(tmp_path / "whole", config, dataset, whole, backend=open_here("int8"))
    measured = next(event.loss for event in whole.of(Evaluated) if event.step == 5)
    recorder = tiny.Recorder()
    folder = tmp_path / "whole" / "checkpoints" / "step-5"
    goes_on(tmp_path / "on", "nf4", model_folder, dataset, recorder, resume_from=folder)
    assert recorder.of(Seam)[0].loss_before == measured


def test_a_seam_whose_old_side_cannot_be_measured_here_says_why(tmp_path, dataset, model_folder):
    folder = begun_on_int8(tmp_path, model_folder, dataset)
    config = tiny.make_config(model_folder)
    recorder = tiny.Recorder()
    tiny.run(tmp_path, config, dataset, recorder, resume_from=folder)
    assert recorder.of(Seam)[0].loss_before is None
    assert any("before, it is not known (no other backend" in note.message for note in recorder.of(Note))


def test_where_the_old_base_was_never_measured_gains_are_told_from_the_new_one(tmp_path, dataset, model_folder):
    folder = begun_on_int8(tmp_path, model_folder, dataset)
    tiny.rewrite_state(folder / "step-5", lambda data: data["state"]["measurements"].clear())
    recorder = tiny.Recorder()
    result = goes_on(tmp_path, "none", model_folder, dataset, recorder, resume_from=folder)
    assert result["loss_before"] == result["seams"][0]["base_loss_after"]
    assert "base_loss_before" not in result["seams"][0]


def test_the_best_loss_moves_by_the_gap(tmp_path, dataset, model_folder):
    folder = begun_on_int8(tmp_path, model_folder, dataset)

    def remember(data):
        data["state"]["best"] = {"step": 3, "loss": 4.0}

    tiny.rewrite_state(folder / "step-5", remember)
    recorder = tiny.Recorder(stop_after=6)
    with pytest.raises(StopRequested):
        goes_on(tmp_path, "none", model_folder, dataset, recorder, resume_from=folder)
    (seam,) = recorder.of(Seam)
    best = json.loads((folder / "step-6" / "state.json").read_text())["state"]["best"]
    assert best == {"step": 3, "loss": pytest.approx(4.0 + seam.loss_after - seam.loss_before)}


def test_a_run_that_goes_on_as_it_began_has_no_seam(tmp_path, dataset, model_folder):
    folder = begun_on_int8(tmp_path, model_folder, dataset)
    config = tiny.make_config(model_folder, quantization__kind="int8", quantization__group_size=32)
    recorder = tiny.Recorder()
    tiny.run(tmp_path, config, dataset, recorder, backend=open_here("int8"), resume_from=folder)
    assert not recorder.of(Seam)
