"""Following a job: every event once, plain lines, the end."""

import json
import threading

import pytest
from click.testing import CliRunner

from jobs.events import Checkpointed, Evaluated, Healed, Note, Progress, Scores, Seam, StageStarted, StepDone
from jobs.states import Cause, State
from queue_app.cli import repotune
from queue_app.follow import PlainView, follow_pipeline
from queue_app.lines import describe
from queue_app.records import NewJob, new_claim_id, new_job_id
from queue_app.stage_bar import StageBar
from queue_app.store import JobStore


@pytest.fixture
def store(valkey_url, monkeypatch, tmp_path):
    monkeypatch.setenv("REPOTUNE_BROKER_URL", valkey_url)
    monkeypatch.setenv("REPOTUNE_HOME", str(tmp_path))
    store = JobStore.connect(valkey_url)
    yield store
    store.close()


class Recorder:
    """A view that keeps what it was shown."""

    def __init__(self):
        self.lines, self.waits, self.closed = [], [], False

    def show(self, job, event):
        self.lines.append((job.kind, describe(event)))

    def wait(self, job, why):
        self.waits.append((job.kind, why))

    def close(self):
        self.closed = True


def new_job(**fields):
    base = {"id": new_job_id("training"), "kind": "training", "name": "n", "device": "cpu", "queue": "cpu.8g"}
    return NewJob(**(base | {"spec": "{}"} | fields))


def a_step(step, moment=0.0, total=10):
    return StepDone(
        time=moment,
        step=step,
        total_steps=total,
        loss=2.5,
        lr=1e-4,
        grad_norm=1.0,
        tokens=9,
        tokens_per_second=812.3,
        memory_bytes=1,
        eta_seconds=120.0,
    )


def run_to_the_end(store, job, events=(), state=State.SUCCEEDED, **how):
    claim = store.claim(job.id, job.attempt, "anna", new_claim_id())
    store.emit(claim, [event.to_json() for event in events], 0)
    store.finish(claim, state, **how)


def test_a_step_says_step_loss_speed_and_eta():
    line = describe(json.loads(a_step(3).to_json()))
    assert line == "train  step 3/10  loss 2.5  812.3 tokens/s  ETA 2 min"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Evaluated(step=4, loss=2.0, perplexity=7.39, tokens=5, split="future"),
            "newer commits: loss 2, perplexity 7.39 at step 4",
        ),
        (Checkpointed(step=4, path="x"), "checkpoint at step 4"),
        (Checkpointed(step=4, path="x", best=True), "checkpoint at step 4, the best so far"),
        (Healed(step=4, micro_batch=1, accumulation=16, message="memory ran out"), "step 4: memory ran out"),
        (
            Seam(step=4, before="int8 on mps", after="nf4 on cuda"),
            "goes on at step 4 on nf4 on cuda, begun on int8 on mps",
        ),
        (
            Seam(step=4, before="int8 on mps", after="nf4 on cuda", loss_before=2.0, loss_after=2.5),
            "goes on at step 4 on nf4 on cuda, begun on int8 on mps: held-out loss 2 there, 2.5 here",
        ),
        (
            Scores(split="held_out", base={"loss": 2.0, "fim_exact": 0.1}, adapter={"loss": 1.5, "fim_exact": 0.3}),
            "held-out base -> adapter: loss 2 -> 1.5, fim exact 0.1 -> 0.3",
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_happens_on_the_way_is_a_line(event, line):
    assert describe(json.loads(event.to_json())) == line


def test_events_of_a_newer_job_are_passed_over():
    assert describe({"event": "something new"}) is None


def test_every_event_is_shown_once_and_the_end_is_returned(store):
    (job,) = store.submit([new_job()])
    events = [StageStarted(stage="train"), a_step(1), a_step(2), Evaluated(step=2, loss=2.0, perplexity=7.39, tokens=5)]
    run_to_the_end(store, job, events, result={"loss_after": 2.0})
    view = Recorder()
    ended = follow_pipeline(store, job.id, view)
    told = [line for _, line in view.lines]
    assert ended.state == State.SUCCEEDED
    assert [line for line in told if "step" in line and "loss 2.5" in line] == [
        describe(json.loads(e.to_json())) for e in events[1:3]
    ]
    assert "held-out loss 2, perplexity 7.39 at step 2" in told
    assert view.closed


def test_the_dataset_is_followed_before_the_training(store):
    data = new_job(id=new_job_id("dataset"), kind="dataset")
    dataset, training = store.submit([data, new_job(depends_on=data.id)])
    view = Recorder()
    looks = iter(range(1000))

    def between():
        look = next(looks)
        if look == 0:
            run_to_the_end(store, dataset, [Note(message="reading")])
        if look == 1:
            run_to_the_end(store, store.get(training.id), [a_step(10)])

    assert follow_pipeline(store, training.id, view, between).id == training.id
    kinds = [kind for kind, _ in view.lines]
    assert kinds == sorted(kinds)
    assert ("dataset", "reading") in view.lines


def test_a_job_that_waits_says_why_once(store):
    (job,) = store.submit([new_job()])
    view, looks = Recorder(), iter(range(1000))

    def between():
        if next(looks) == 2:
            store.cancel(job.id)

    follow_pipeline(store, job.id, view, between)
    assert [why for _, why in view.waits] == [
        "No worker is registered: start `device-worker --device cpu` on a machine with 8 GB."
    ]


def test_plain_steps_are_thinned_but_the_last_is_shown(store, capsys):
    (job,) = store.submit([new_job()])
    view = PlainView()
    for step in range(1, 11):
        view.show(job, json.loads(a_step(step, moment=1000.0 + step).to_json()))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines] == ["1/10", "6/10", "10/10"]


def test_a_clock_that_was_set_back_silences_nothing(store, capsys):
    (job,) = store.submit([new_job()])
    view = PlainView()
    for step, moment in ((1, 5000.0), (2, 100.0), (3, 101.0), (4, 106.0)):
        view.show(job, json.loads(a_step(step, moment=moment).to_json()))
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["1/10", "2/10", "4/10"]


def test_the_terminal_keeps_the_curve_of_the_loss(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("LINES", "40")
    bar = StageBar("waiting", to_stderr=False)
    for step in range(1, 9):
        bar.show({"event": "step", "step": step, "total_steps": 8, "loss": 3.0 - step / 10})
    bar.show({"event": "progress", "stage": "train", "unit": "steps", "done": 7.5, "total": 8})
    bar.close()
    title, *plot, axis = capsys.readouterr().out.splitlines()[-10:]
    assert (title, axis.split()) == ("training loss by optimizer step", ["1", "8"])
    assert len({len(line) for line in plot}) == 1


def test_progress_in_steps_is_an_echo_and_not_a_line(store, capsys):
    (job,) = store.submit([new_job()])
    PlainView().show(job, json.loads(Progress(stage="train", done=1.5, total=9, unit="steps").to_json()))
    assert capsys.readouterr().out == ""


def test_progress_without_a_total_is_shown_as_a_count():
    event = Progress(stage="tokenise", done=1200, unit="files")
    assert describe(json.loads(event.to_json())) == "tokenise  1,200 files"


@pytest.mark.parametrize(("state", "code"), [(State.SUCCEEDED, 0), (State.FAILED, 1)])
def test_follow_exits_with_the_end_of_the_job(store, state, code):
    (job,) = store.submit([new_job()])
    run_to_the_end(store, job, [a_step(10)], state, cause=None if not code else Cause.USER_ERROR, reason="Because.")
    done = CliRunner().invoke(repotune, ["follow", job.id, "--json"])
    assert done.exit_code == code
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["job"], told["state"]) == (job.id, state)
    assert "step 10/10" in done.stderr


def test_ctrl_c_stops_following_and_not_the_job(store, monkeypatch):
    (job,) = store.submit([new_job()])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("queue_app.follow.time.sleep", interrupt)
    done = CliRunner().invoke(repotune, ["follow", job.id], standalone_mode=True)
    assert "the job goes on" in done.stderr
    assert store.get(job.id).state == State.QUEUED


def test_a_store_that_is_away_for_a_moment_is_waited_for(store, redis_client):
    (job,) = store.submit([new_job()])
    view = Recorder()
    timer = threading.Timer(0.5, lambda: run_to_the_end(store, job))
    timer.start()
    for client in redis_client.client_list():
        redis_client.client_kill_filter(_id=client["id"], skipme=True)
    assert follow_pipeline(store, job.id, view).state == State.SUCCEEDED
    timer.join()
