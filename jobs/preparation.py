"""Makes a run: loads the model, with the state of a checkpoint where there is one, and puts its parts together.

Accelerate gives gradient scaling and clipping. It never touches the model, which its backend has placed and typed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import accelerate
import torch
from accelerate.state import AcceleratorState

from backends import allocator, models, positions, soundness
from backends.contract import AdapterRequest, Backend, LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import BackendUnavailable
from jobs import neftune, snapshot
from jobs.context import JobContext
from jobs.continuation import as_before, changes
from jobs.ema import Ema
from jobs.eta import Eta
from jobs.events import Note, StageStarted
from jobs.execution import Execution
from jobs.expectation import Expectation
from jobs.incident import Incident
from jobs.loss import NextTokenLoss
from jobs.metrics import FILE as METRICS
from jobs.metrics import Metrics
from jobs.optimizer import make_optimizer, refuse_unavailable
from jobs.order import Order
from jobs.planner import TrainingPlan, plan_training
from jobs.randomness import seed_everything
from jobs.run import Run
from jobs.schedule import CheckpointClock
from jobs.seam import look_back
from jobs.shards import PackedDataset
from jobs.snapshot import Identity, Snapshot, TrainingState
from jobs.spec import Config, InvalidSpec
from jobs.stopping import Watchdog


def prepare(
    config: Config,
    data: PackedDataset,
    *,
    identity: Identity,
    backend: Backend,
    device: Device,
    context: JobContext,
    known: Snapshot | None,
    micro_batch_divisor: int,
    open_backend: Callable[[str], Backend] | None,
) -> Run:
    """Plan, load, and restore `known`; the arguments are those of `jobs.training.train`.

    Raises:
        RepotuneError: what cannot run here, or does not go together.
    """
    context.emit(StageStarted(stage="load model", message=f"{config.model.name} ({backend.name})"))
    optimization, training = config.optimization, config.training
    refuse_unavailable(optimization, device, resumes=known is not None)
    _refuse_unfit(config, data, context)
    plan = plan_training(
        config,
        device,
        data.sequence_length,
        micro_batch_divisor=micro_batch_divisor,
        calibration_file=context.calibration,
    )
    before = _before(known)
    plan = as_before(plan, before, config, lessened=micro_batch_divisor > 1)
    old_base = None
    if known and before:
        load_old = partial(_load_other, device, open_backend, known, data.sequence_length)
        old_base = look_back(before, known.state, config, data, load_old)
    loaded = _load(config, device, backend, plan, known)
    for note in (*loaded.notes, *plan.notes):
        context.emit(Note(message=note))
    _refuse_other_vocabulary(data, loaded)
    loaded.model.train()
    accelerator = make_accelerator(loaded)
    optimizer = accelerator.prepare_optimizer(make_optimizer(loaded.model, optimization))
    loss = NextTokenLoss.of(loaded.model, loaded.torch_device)
    seed_everything(training.seed)
    if known:
        known.restore(optimizer, loaded.model, accelerator.scaler)
    neftune.install(loaded.model, training.neftune_alpha)
    ema = Ema.of(loaded.model, training.ema)
    if ema and known:
        ema.load(known.path)
    state = known.state if known else TrainingState()
    execution = _execution(config, device, plan, loaded)
    state.execution = execution.to_json()
    order = _order(config, data, identity)
    expectation = Expectation.of(plan, loaded, order.total_steps * identity.effective_batch, context.calibration)
    run = Run(
        config=config,
        context=context,
        data=data,
        identity=identity,
        loaded=loaded,
        accelerator=accelerator,
        optimizer=optimizer,
        loss=loss,
        order=order,
        metrics=Metrics(context.output / METRICS, known.metrics if known else b""),
        clock=CheckpointClock(training.checkpoint_every_steps, training.checkpoint_every_minutes, state.step),
        state=state,
        expectation=expectation,
        execution=execution,
        watchdog=Watchdog.of(config, state.stopping),
        ema=ema,
        eta=Eta.of(state.eta, expectation.kind(execution), expectation.forward_share),
        old_base=old_base,
        resumed_from=known.path if known else None,
    )
    if known:
        _note_resume(run, before)
    return run


def make_accelerator(loaded: LoadedModel) -> Any:
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


def _before(known: Snapshot | None) -> Execution | None:
    """How the run computed when its checkpoint was written, where that tells."""
    return Execution.from_json(known.state.execution) if known and known.state.execution else None


def _note_resume(run: Run, before: Execution | None) -> None:
    sentence = changes(before, run.execution) if before else None
    if sentence:
        run.happened("resumed", sentence, level="warning")
    else:
        resumed = Incident(kind="resumed", step=run.state.step, message=f"Resumed after step {run.state.step}")
        run.state.incidents.append(resumed.to_json())


def _load(config: Config, device: Device, backend: Backend, plan: TrainingPlan, known: Snapshot | None) -> LoadedModel:
    if plan.recipe.checkpointing:
        allocator.return_large_blocks()
    seed_everything(config.training.seed)
    return backend.load(_model_request(config, device, known, checkpointing=plan.recipe.checkpointing))


def _load_other(
    device: Device,
    open_backend: Callable[[str], Backend] | None,
    known: Snapshot,
    sequence_length: int,
    config: Config,
) -> LoadedModel:
    """The checkpoint's adapter on another base than the run goes on with, to measure it.

    Raises:
        RepotuneError: that base cannot be had here.
    """
    if open_backend is None:
        raise BackendUnavailable("no other backend is opened here")
    backend = open_backend(config.quantization.kind)
    plan = plan_training(config, device, sequence_length)
    return _load(config, device, backend, plan, known)


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
            layers=lora.layers,
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


def _refuse_unfit(config: Config, data: PackedDataset, context: JobContext) -> None:
    """Say before a model is loaded that the dataset's rows are not for it."""
    name, revision = config.model.name, config.model.revision
    warning = positions.refuse_long_rows(models.load_config(name, revision), data.sequence_length, name)
    if warning:
        context.emit(Note(level="warning", message=warning))
    soundness.refuse_other_tokenizer(data.manifest, name, revision)


def _refuse_other_vocabulary(data: PackedDataset, loaded: LoadedModel) -> None:
    known = loaded.model.get_base_model().get_input_embeddings().num_embeddings
    needed = data.manifest.get("tokenizer", {}).get("vocabulary_size", 0)
    if needed > known:
        raise InvalidSpec(
            f"The dataset was built with another tokenizer: it has {needed} tokens and the model {known}; "
            "build the dataset with this model."
        )


def _execution(config: Config, device: Device, plan: TrainingPlan, loaded: LoadedModel) -> Execution:
    return Execution(
        device=device.value,
        kind=config.quantization.kind,
        compute=config.quantization.compute,
        dtype=str(loaded.compute_dtype).removeprefix("torch."),
        micro_batch=plan.recipe.micro_batch,
        checkpointing=plan.recipe.checkpointing,
        attention=getattr(loaded.model.config, "_attn_implementation", None) or config.training.attention,
        compile=False,
        threads=torch.get_num_threads(),
        group_size=config.quantization.chosen_group,
    )


def _order(config: Config, data: PackedDataset, identity: Identity) -> Order:
    return Order(
        rows=len(data.train),
        effective_batch=identity.effective_batch,
        seed=config.training.seed,
        epochs=config.training.epochs,
        max_steps=config.training.max_steps,
    )
