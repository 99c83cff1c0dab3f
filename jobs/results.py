"""What a finished run leaves behind: the adapter, the report and, last, `result.json`."""

from typing import Any

from jobs import checkpoint, snapshot
from jobs.adapter import publish_adapter
from jobs.events import StageStarted
from jobs.last_evaluation import evaluate_run, outcome
from jobs.leaving import write_pages
from jobs.measuring import held_out_numbers
from jobs.run import Run

RESULT = "result.json"


def save_results(run: Run) -> dict[str, Any]:
    """Write the adapter, the report, and the result last; returns the result."""
    output = run.context.output
    run.context.emit(StageStarted(stage="save", message=str(output / snapshot.ADAPTER)))
    publish_adapter(run.loaded.model, output / snapshot.ADAPTER, run.config)
    ended = "early" if run.state.step < run.order.total_steps else "complete"
    evaluation = evaluate_run(run)
    result = _result(run, ended) | outcome(evaluation)
    result |= write_pages(run, result, evaluation)
    checkpoint.write_json(output / RESULT, result)
    return result


def _result(run: Run, ended: str) -> dict[str, Any]:
    state, before, after = run.state, run.state.measurements[0], run.state.measurements[-1]
    return {
        "adapter": snapshot.ADAPTER,
        "steps": state.step,
        "skipped": state.skipped,
        "ended": ended,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "best_loss": min(measurement.loss for measurement in state.measurements),
        "held_out_rows": len(held_out_numbers(run)),
        "held_out_tokens": after.tokens,
        "model": run.config.model.name,
        "revision": run.config.model.revision,
        "quantization": run.config.quantization.kind,
        "group_size": run.config.quantization.scale_group,
        "compute": run.config.quantization.compute,
        "optimizer": run.config.optimization.optimizer,
        "dataset_sha256": run.identity.dataset,
    }
