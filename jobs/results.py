"""What a finished run leaves behind: the adapter with its card, the report and, last, `result.json`."""

from typing import Any

from jobs import checkpoint, snapshot
from jobs.adapter import publish_adapter
from jobs.base import licence_of_base
from jobs.best import take_best
from jobs.card import CardFacts, read_object, write_card
from jobs.events import StageStarted
from jobs.last_evaluation import evaluate_run, outcome
from jobs.leaving import write_pages
from jobs.measuring import held_out_numbers
from jobs.run import Run
from jobs.saving import CHECKPOINTS, write_incidents

RESULT = "result.json"


def save_results(run: Run) -> dict[str, Any]:
    """Write the adapter, the report, and the result last; returns the result."""
    output = run.context.output
    run.context.emit(StageStarted(stage="save", message=str(output / snapshot.ADAPTER)))
    published = take_best(run, output / CHECKPOINTS)
    publish_adapter(run.loaded.model, output / snapshot.ADAPTER, run.config)
    write_incidents(run)
    ended = "early" if run.state.step < run.order.total_steps else "complete"
    evaluation = evaluate_run(run)
    result = _result(run, ended, published) | outcome(evaluation)
    _write_card(run, result, evaluation)
    result |= write_pages(run, result, evaluation)
    checkpoint.write_json(output / RESULT, result)
    return result


def _write_card(run: Run, result: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
    model = run.config.model
    facts = CardFacts(
        config=run.config,
        result=result,
        manifest=run.data.manifest,
        device=run.execution.device,
        licence=licence_of_base(model.name, model.revision),
        stats=read_object(run.data.folder / "stats.json"),
        evaluation=evaluation or {},
    )
    write_card(run.context.output / snapshot.ADAPTER, facts)


def _result(run: Run, ended: str, published: int) -> dict[str, Any]:
    state = run.state
    before = next((one for one in state.measurements if one.step == 0), state.measurements[0])
    after = next(one for one in reversed(state.measurements) if one.step == published)
    return {
        "adapter": snapshot.ADAPTER,
        "steps": state.step,
        "skipped": state.skipped,
        "ended": ended,
        "published_step": published,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "best_loss": min(measurement.loss for measurement in state.measurements),
        "held_out_rows": len(held_out_numbers(run)),
        "held_out_tokens": after.tokens,
        "resumes": sum(one["kind"] == "resumed" for one in state.incidents),
        "seams": [one["numbers"] for one in state.incidents if one["kind"] == "seam"],
        "model": run.config.model.name,
        "revision": run.config.model.revision,
        "quantization": run.config.quantization.kind,
        "group_size": run.config.quantization.scale_group,
        "compute": run.config.quantization.compute,
        "optimizer": run.config.optimization.optimizer,
        "dataset_sha256": run.identity.dataset,
    }
