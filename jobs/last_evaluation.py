"""The evaluation at the end of a training: bounded by a share of its time, and never the reason that it is lost."""

from collections.abc import Mapping
from typing import Any

from backends.errors import RepotuneError
from backends.hardware import is_out_of_memory
from backends.models import read_tokenizer, tokenizer_folder
from jobs.context import StopRequested
from jobs.dataset.fim import layout_of
from jobs.dataset.tokens import Vocabulary
from jobs.evaluate import FILE, Subject, base_facts, evaluate_loaded, write_evaluation
from jobs.events import Note
from jobs.run import Run
from jobs.saving import leave
from jobs.scores import ADAPTER, BASE
from jobs.shards import FUTURE
from jobs.snapshot import ADAPTER as FOLDER
from jobs.time_limit import TimeLimit, evaluation_seconds


def evaluate_run(run: Run) -> dict[str, Any] | None:
    """Compare base and adapter, and write `evaluation.json`; None, with a warning, where that cannot be.

    Raises:
        StopRequested: asked to leave; the last checkpoint holds all that was trained.
    """
    limit = TimeLimit(evaluation_seconds(run.state.seconds, run.config.evaluation.minutes))
    try:
        subject = _subject(run)
        found = evaluate_loaded(subject, run.data, run.config.evaluation, run.context, limit)
        write_evaluation(run.context.output, found)
    except StopRequested:
        leave(run)
    except RepotuneError as error:
        run.context.emit(Note(level="warning", message=f"Base and adapter were not compared: {error}"))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        run.context.emit(Note(level="warning", message="Base and adapter were not compared: memory ran out."))
    else:
        return found
    return None


def outcome(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the result of a training says of its evaluation."""
    if evaluation is None:
        return {"evaluation": None}
    found: dict[str, Any] = {"evaluation": FILE}
    future = evaluation["splits"].get(FUTURE)
    if future is not None:
        difference = future["difference"]["loss"] or {}
        found |= {
            "future_loss_before": future[BASE]["loss"],
            "future_loss_after": future[ADAPTER]["loss"],
            "future_interval": [difference.get("low"), difference.get("high")],
        }
    return found


def _subject(run: Run) -> Subject:
    model, lora = run.config.model, run.config.lora
    tokenizer = read_tokenizer(tokenizer_folder(model.name, model.revision))
    vocabulary = Vocabulary(tokenizer)
    return Subject(
        loss=run.loss,
        device=run.loaded.torch_device,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        layout=layout_of(vocabulary.special),
        base=base_facts(run.config, run.execution.device),
        adapter={"path": FOLDER, "rank": lora.rank, "alpha": lora.alpha, "steps": run.state.step},
        step=run.state.step,
    )
