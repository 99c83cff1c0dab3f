"""Events travel as one line of JSON each."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.events import Checkpointed, Evaluated, Failed, Healed, Note, Scores, Seam, StepDone, event_from_json

STEP = StepDone(
    step=1, total_steps=2, loss=1.5, lr=1e-4, grad_norm=0.5, tokens=512, tokens_per_second=200.0, memory_bytes=1
)


@pytest.mark.parametrize(
    "event",
    [
        STEP,
        Evaluated(step=1, loss=1.0, perplexity=2.7, tokens=9, split="future"),
        Checkpointed(step=1, path="x", best=True, seconds=0.5),
        Healed(step=1, micro_batch=2, accumulation=8, message="m"),
        Seam(step=1, before="int8 on mps", after="nf4 on cuda", loss_before=1.0),
        Scores(split="held_out", base={"loss": 2.0}, adapter={"loss": 1.0}),
    ],
    ids=lambda event: event.kind,
)
def test_an_event_comes_back_equal(event):
    assert event_from_json(event.to_json()) == event


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"checkpoint","step":3,"path":"x"}',
        '{"event":"evaluation","step":3,"loss":1,"perplexity":2,"tokens":3}',
    ],
)
def test_lines_of_an_older_job_are_read(line):
    assert event_from_json(line).step == 3


@given(message=st.text())
def test_any_text_stays_on_one_line_and_comes_back(message):
    line = Note(message=message).to_json()
    assert "\n" not in line
    assert event_from_json(line).message == message


def test_a_loss_that_is_not_a_number_becomes_null_so_that_the_line_stays_json():
    line = StepDone(**(vars(STEP) | {"loss": math.nan, "grad_norm": math.inf})).to_json()
    assert json.loads(line)["loss"] is None
    assert json.loads(line)["grad_norm"] is None


def test_fields_of_a_newer_job_are_dropped():
    line = json.dumps({"event": "failed", "cause": "stalled", "message": "m", "time": 1.0, "colour": "red"})
    assert event_from_json(line) == Failed(cause="stalled", message="m", time=1.0)


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"event":"party"}', '{"event":"note"}'])
def test_rubbish_is_a_value_error(line):
    with pytest.raises(ValueError, match=r"."):
        event_from_json(line)
