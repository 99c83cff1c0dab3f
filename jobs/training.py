"""The training job: packed rows in, a LoRA adapter out. One loop (`_train_steps`), read top to bottom.

An optimizer step takes `micro_batch x accumulation` rows, a micro-batch at a time, and divides the summed loss once by
the label tokens of all of them: splitting a step differently changes the memory it needs and nothing else. Each step
ends in a line of `metrics.jsonl`; checkpoints make the run resumable at any step, exactly. See `jobs.order` for the end
of an epoch, `jobs.loss` for packing, `jobs.snapshot` for what a checkpoint holds.

Accelerate gives gradient scaling and clipping. It never touches the model, which its backend has placed and typed.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.state import AcceleratorState

from backends import allocator
from backends.contract import AdapterRequest, Backend, LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import BackendUnavailable, RepotuneError
from backends.hardware import is_out_of_memory
from jobs import checkpoint, report, snapshot
from jobs.adapter import publish_adapter
from jobs.context import JobContext, OutputExists, StopRequested
from jobs.evaluation import evaluation_rows, measure
from jobs.events import Checkpointed, Evaluated, Note, Progress, StageStarted, StepDone
from jobs.expectation import Expectation
from jobs.loss import NextTokenLoss, count_labels, make_batch
from jobs.metrics import FILE as METRICS
from jobs.metrics import Metrics, Speed
from jobs.optimizer import make_optimizer, refuse_unavailable, trainable
from jobs.order import Order
from jobs.planner import plan_training
from jobs.randomness import seed_everything
from jobs.schedule import CheckpointClock, LearningRate
from jobs.shards import PackedDataset, open_dataset
from jobs.snapshot import Identity, Snapshot, TrainingState
from jobs.spec import Config, InvalidSpec

CHECKPOINTS = "checkpoints"
RESULT = "result.json"

#: Skipped steps in a row after which a run is given up. With a gradient scaler the first steps of a healthy run
#: overflow until the scale fits: from 65536 down to 1 takes 16.
MAX_SKIPPED = 5
MAX_SKIPPED_WITH_SCALER = 20

_PROGRESS_SECONDS = 0.5


class OutOfMemory(RepotuneError):
    """The device has no memory left for a step."""


class Diverged(RepotuneError):
    """The loss or the gradient is no longer a number."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same from the first step to the last."""

    config: Config
    context: JobContext
    data: PackedDataset
    identity: Identity
    loaded: LoadedModel
    accelerator: Any
    optimizer: Any
    loss: NextTokenLoss
    order: Order
    micro_batch: int
    metrics: Metrics
    clock: CheckpointClock
    state: TrainingState
    expectation: Expectation


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What one optimizer step came to."""

    loss: float
    grad_norm: float
    tokens: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train(  # noqa: PLR0917 - callers name them
    config: Config,
    dataset: Path,
    backend: Backend,
    device: Device,
    context: JobContext,
    resume_from: Path | None = None,
    micro_batch_divisor: int = 1,
) -> dict[str, Any]:
    """Train an adapter on a packed dataset.

    Writes `adapter/`, `checkpoints/step-N/`, `metrics.jsonl`, `report.html` and, last, `result.json` below
    `context.output`.

    Args:
        config: As it holds on `device` (`Config.for_device`).
        dataset: Folder that `jobs.dataset` wrote.
        backend: Holds the model.
        device: Where to train.
        context: Where to write, whom to tell, when to stop.
        resume_from: A checkpoint, or a folder of checkpoints of which the newest whole one is taken.
        micro_batch_divisor: Divides the micro-batch after a lack of memory; the effective batch stays.

    Returns:
        The result: adapter, report, steps, tokens, seconds, loss and perplexity before and after.

    Raises:
        OutputExists: the output holds a run already and `resume_from` is None.
        OutOfMemory: halve the micro-batch and resume.
        StopRequested: `context.should_stop()`; a checkpoint was saved if there was anything to save.
        RepotuneError: anything else that a person can act on.
    """
    with _errors_as_sentences(context.output):
        _refuse_existing(context.output, resume_from)
        _make_folder(context.output)
        data = open_dataset(dataset)
        identity = Identity.of(config, data.manifest)
        known = _find_snapshot(resume_from, identity, context) if resume_from else None
        run = _prepare(
            config,
            data,
            identity=identity,
            backend=backend,
            device=device,
            context=context,
            known=known,
            micro_batch_divisor=micro_batch_divisor,
        )
        _train_steps(run)
        return _save_results(run, device)


def _train_steps(run: _Run) -> None:
    """The loop. A resumed run enters it where the checkpoint left it."""
    state, order, context = run.state, run.order, run.context
    rate = LearningRate(
        peak=run.config.optimization.learning_rate,
        total_steps=order.total_steps,
        warmup_ratio=run.config.optimization.warmup_ratio,
    )
    speed = Speed()
    _measure_if_due(run)
    left = max(0, order.total_steps - state.step)
    context.emit(StageStarted(stage="train", message=f"{left} optimizer steps to go"))
    _tell_time(run, left)
    for numbers, position in order.steps_from(state.position):
        lr = rate.at(state.step + 1)
        step = _optimizer_step(run, [run.data.train[number] for number in numbers], lr)
        state.step += 1
        state.position = position
        state.tokens += step.tokens
        state.seconds += step.seconds
        state.skipped_in_a_row = 0 if step.is_finite else state.skipped_in_a_row + 1
        speed.add(step.tokens, step.seconds)
        run.expectation.step_done(len(numbers) * run.data.sequence_length, step.seconds, _teller(context))
        done = StepDone(
            step=state.step,
            total_steps=order.total_steps,
            loss=step.loss,
            lr=lr,
            grad_norm=step.grad_norm,
            tokens=state.tokens,
            tokens_per_second=speed.tokens_per_second,
            memory_bytes=run.loaded.memory_in_use(),
            eta_seconds=speed.eta_seconds(order.total_steps - state.step),
        )
        run.metrics.append(done)
        context.emit(done)
        for line in run.loaded.news():
            context.emit(Note(message=line))
        if not step.is_finite:
            _tell_skipped(run)
        if context.should_stop():
            _leave(run)
        if run.clock.is_due(state.step) or state.step == order.total_steps:
            _save_checkpoint(run)
        _measure_if_due(run)


def _tell_time(run: _Run, steps: int) -> None:
    tokens = steps * run.identity.effective_batch * run.data.sequence_length
    sentence = run.expectation.time_sentence(tokens, steps)
    if sentence:
        run.context.emit(Note(message=sentence))


def _teller(context: JobContext) -> Callable[[str], None]:
    return lambda sentence: context.emit(Note(message=sentence))


def _optimizer_step(run: _Run, rows: Sequence[Any], lr: float) -> _Step:
    """Forward and backward over the rows of one effective batch, then one update of the adapter."""
    began = time.perf_counter()
    accelerator, optimizer = run.accelerator, run.optimizer
    tokens = count_labels(rows)
    total = torch.zeros((), dtype=torch.float32, device=run.loaded.torch_device)
    tell = _throttled_progress(run.context, "train", "steps", first=run.state.step, total=run.order.total_steps)
    for start in range(0, len(rows), run.micro_batch):
        part = rows[start : start + run.micro_batch]
        loss = run.loss(make_batch(part, run.loaded.torch_device))
        accelerator.backward(loss / max(tokens, 1))
        total += loss.detach()
        tell((start + len(part)) / len(rows))
    norm = accelerator.clip_grad_norm_(trainable(run.loaded.model).values(), run.config.optimization.max_grad_norm)
    mean, norm = float(total) / max(tokens, 1), float(norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    # The scaler must see overflowing gradients to lower its scale; it skips the update by itself.
    if accelerator.scaler is not None or (math.isfinite(mean) and math.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad()
    return _Step(loss=mean, grad_norm=norm, tokens=tokens, seconds=time.perf_counter() - began)


def _prepare(
    config: Config,
    data: PackedDataset,
    *,
    identity: Identity,
    backend: Backend,
    device: Device,
    context: JobContext,
    known: Snapshot | None,
    micro_batch_divisor: int,
) -> _Run:
    """Load the model, with the state of `known` where there is one."""
    context.emit(StageStarted(stage="load model", message=f"{config.model.name} ({backend.name})"))
    optimization, training = config.optimization, config.training
    refuse_unavailable(optimization, device, resumes=known is not None)
    plan = plan_training(
        config,
        device,
        data.sequence_length,
        micro_batch_divisor=micro_batch_divisor,
        calibration_file=context.calibration,
    )
    if plan.recipe.checkpointing:
        allocator.return_large_blocks()
    seed_everything(training.seed)
    loaded = backend.load(_model_request(config, device, known, checkpointing=plan.recipe.checkpointing))
    for note in (*loaded.notes, *plan.notes):
        context.emit(Note(message=note))
    _refuse_other_vocabulary(data, loaded)
    loaded.model.train()
    accelerator = _make_accelerator(loaded)
    optimizer = accelerator.prepare_optimizer(make_optimizer(loaded.model, optimization))
    loss = NextTokenLoss.of(loaded.model, loaded.torch_device)
    seed_everything(training.seed)
    if known:
        known.restore(optimizer, loaded.model, accelerator.scaler)
    state = known.state if known else TrainingState()
    order = Order(
        rows=len(data.train),
        effective_batch=identity.effective_batch,
        seed=training.seed,
        epochs=training.epochs,
        max_steps=training.max_steps,
    )
    return _Run(
        config=config,
        context=context,
        data=data,
        identity=identity,
        loaded=loaded,
        accelerator=accelerator,
        optimizer=optimizer,
        loss=loss,
        order=order,
        micro_batch=plan.recipe.micro_batch,
        metrics=Metrics(context.output / METRICS, known.metrics if known else b""),
        clock=CheckpointClock(training.checkpoint_every_steps, training.checkpoint_every_minutes, state.step),
        state=state,
        expectation=Expectation.of(plan, loaded, order.total_steps * identity.effective_batch, context.calibration),
    )


def _refuse_other_vocabulary(data: PackedDataset, loaded: LoadedModel) -> None:
    known = loaded.model.get_base_model().get_input_embeddings().num_embeddings
    needed = data.manifest.get("tokenizer", {}).get("vocabulary_size", 0)
    if needed > known:
        raise InvalidSpec(
            f"The dataset was built with another tokenizer: it has {needed} tokens and the model {known}; "
            "build the dataset with this model."
        )


def _model_request(config: Config, device: Device, known: Snapshot | None, *, checkpointing: bool) -> ModelRequest:
    lora = config.lora
    return ModelRequest(
        name=config.model.name,
        revision=config.model.revision,
        adapter=AdapterRequest(
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=lora.target_modules,
            rslora=lora.rslora,
            dora=lora.dora,
            resume_from=known.path / snapshot.ADAPTER if known else None,
        ),
        device=device,
        group_size=config.quantization.scale_group,
        compute=config.quantization.compute,
        attention=config.training.attention,
        gradient_checkpointing=checkpointing,
        seed=config.training.seed,
    )


def _make_accelerator(loaded: LoadedModel) -> Any:
    """Accelerate for the device that the model is on already.

    "fp16" stands for its gradient scaler. Autocast is not used: the backend has chosen the type of every weight.
    """
    # Its state is one per process; another device or precision than the last run's would be refused.
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    precision = "fp16" if loaded.needs_scaler else "no"
    try:
        return accelerate.Accelerator(cpu=loaded.torch_device.type == "cpu", mixed_precision=precision)
    except ValueError as error:
        raise BackendUnavailable(f"This version of torch cannot train in fp16 on this device ({error}).") from error


def _find_snapshot(resume_from: Path, identity: Identity, context: JobContext) -> Snapshot | None:
    found, problems = snapshot.find_snapshot(resume_from, identity)
    for problem in problems:
        context.emit(Note(level="warning", message=problem))
    if found:
        context.emit(Note(message=f"Resumes after step {found.state.step} from {found.path}"))
    else:
        context.emit(Note(message=f"There is no checkpoint in {resume_from}: starts from the beginning"))
    return found


def _refuse_existing(output: Path, resume_from: Path | None) -> None:
    if resume_from is not None:
        return
    if (output / snapshot.ADAPTER).exists():
        raise OutputExists(f"{output} already holds an adapter: choose another output folder, or resume to go on.")
    if checkpoint.steps(output / CHECKPOINTS):
        raise OutputExists(f"{output} holds checkpoints of a run: resume to go on, or choose another output folder.")


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InvalidSpec(
            f"{output} cannot be made a folder ({error.strerror}): choose another output folder."
        ) from error


def _measure_if_due(run: _Run) -> None:
    """Held-out loss before the first step, after the last, and every so many steps between."""
    state, every = run.state, run.config.training.evaluate_every_steps
    at_an_end = state.step == 0 or state.step >= run.order.total_steps
    due = at_an_end or (every is not None and state.step % every == 0)
    if not due or any(measurement.step == state.step for measurement in state.measurements):
        return
    run.context.emit(StageStarted(stage="evaluate", message=f"held-out loss after {state.step} steps"))
    numbers = _held_out_numbers(run)
    tell = _throttled_progress(run.context, "evaluate", "rows", total=len(numbers))

    def on_progress(done: int, _total: int) -> None:
        tell(done)
        if run.context.should_stop():
            _leave(run)

    measured = measure(
        run.loss,
        [run.data.held_out[number] for number in numbers],
        micro_batch=run.micro_batch,
        device=run.loaded.torch_device,
        step=state.step,
        on_progress=on_progress,
    )
    if not math.isfinite(measured.perplexity):
        raise Diverged(
            f"The held-out loss after {state.step} steps is no usable number ({measured.loss:.0f}): {_REMEDY}"
        )
    state.measurements.append(measured)
    run.context.emit(
        Evaluated(step=state.step, loss=measured.loss, perplexity=measured.perplexity, tokens=measured.tokens)
    )


_REMEDY = "lower optimization.learning_rate, or check that the model gives finite numbers on this device."


def _tell_skipped(run: _Run) -> None:
    """A step without finite numbers was skipped; several in a row end the run."""
    limit = MAX_SKIPPED if run.accelerator.scaler is None else MAX_SKIPPED_WITH_SCALER
    in_a_row, step = run.state.skipped_in_a_row, run.state.step
    if in_a_row >= limit:
        raise Diverged(
            f"Loss or gradient was not a finite number {in_a_row} steps in a row, up to step {step}: {_REMEDY}"
        )
    message = f"Step {step} was skipped: its loss or gradient is not a finite number ({in_a_row} in a row)"
    run.context.emit(Note(level="warning", message=message))


def _leave(run: _Run) -> None:
    """Save what is not saved yet and say that the job stopped because it was asked to."""
    if run.state.step > run.clock.step:
        _save_checkpoint(run)
    raise StopRequested


def _save_checkpoint(run: _Run) -> None:
    def write(folder: Path) -> None:
        snapshot.write_snapshot(
            folder,
            state=run.state,
            identity=run.identity,
            config=run.config,
            model=run.loaded.model,
            optimizer=run.optimizer,
            scaler=run.accelerator.scaler,
            metrics_so_far=run.metrics.content(),
        )

    folder = run.context.output / CHECKPOINTS
    path = checkpoint.save(folder, run.state.step, write, run.config.output.keep_checkpoints)
    run.clock.saved(run.state.step)
    run.context.emit(Checkpointed(step=run.state.step, path=str(path)))


def _save_results(run: _Run, device: Device) -> dict[str, Any]:
    """Write the adapter, the report, and the result last."""
    output = run.context.output
    run.context.emit(StageStarted(stage="save", message=str(output / snapshot.ADAPTER)))
    publish_adapter(run.loaded.model, output / snapshot.ADAPTER, run.config)
    result = _result(run)
    facts = report.Facts(
        config=run.config,
        result=result,
        measurements=run.state.measurements,
        manifest=run.data.manifest,
        device=device.value,
        notes=run.loaded.notes,
    )
    report.write_report(output, facts)
    checkpoint.write_json(output / RESULT, result)
    return result


def _result(run: _Run) -> dict[str, Any]:
    state, before, after = run.state, run.state.measurements[0], run.state.measurements[-1]
    return {
        "adapter": snapshot.ADAPTER,
        "report": report.FILE,
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "best_loss": min(measurement.loss for measurement in state.measurements),
        "held_out_rows": len(_held_out_numbers(run)),
        "held_out_tokens": after.tokens,
        "model": run.config.model.name,
        "revision": run.config.model.revision,
        "quantization": run.config.quantization.kind,
        "group_size": run.config.quantization.scale_group,
        "compute": run.config.quantization.compute,
        "optimizer": run.config.optimization.optimizer,
        "dataset_sha256": run.identity.dataset,
    }


def _held_out_numbers(run: _Run) -> list[int]:
    return evaluation_rows(len(run.data.held_out), run.config.training.evaluation_rows)


def _throttled_progress(
    context: JobContext, stage: str, unit: str, *, total: float, first: float = 0.0
) -> Callable[[float], None]:
    """A function that tells how far a stage is, twice a second at most."""
    told = time.monotonic()

    def tell(done: float) -> None:
        nonlocal told
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            context.emit(Progress(stage=stage, done=round(first + done, 3), total=total, unit=unit))

    return tell


@contextmanager
def _errors_as_sentences(output: Path) -> Iterator[None]:
    """Tell a lack of memory and a full disk from defects."""
    try:
        with checkpoint.disk_full_as_sentence(output):
            yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "The device ran out of memory: lower optimization.micro_batch or dataset.sequence_length, set "
            "training.gradient_checkpointing to on, or use a machine with more memory."
        ) from error
