"""Evaluates a saved adapter, or a base alone, on a dataset: what `repotune evaluate` does."""

from pathlib import Path
from typing import Any

from backends import soundness
from backends.contract import AdapterRequest, Backend, LoadedModel, ModelRequest
from backends.devices import Device
from backends.models import read_tokenizer, tokenizer_folder
from jobs.context import JobContext
from jobs.dataset.fim import layout_of
from jobs.dataset.tokens import Vocabulary
from jobs.evaluate import Subject, base_facts, evaluate_loaded
from jobs.events import Note, StageStarted
from jobs.loss import NextTokenLoss
from jobs.published import Published, other_name, refuse_other_base
from jobs.shards import DatasetError, open_dataset, verify
from jobs.spec import Config
from jobs.time_limit import TimeLimit


def evaluate(  # noqa: PLR0917 - callers name them
    config: Config, dataset: Path, adapter: Published | None, backend: Backend, device: Device, context: JobContext
) -> dict[str, Any]:
    """Measure an adapter beside its base, or a base alone.

    Args:
        config: As it holds on `device` (`Config.for_device`).
        dataset: Folder that `jobs.dataset` wrote.
        adapter: To measure; None measures the base alone.
        backend: Holds the model.
        device: Where to compute.
        context: Whom to tell, when to stop.

    Returns:
        What `evaluation.json` holds.

    Raises:
        RepotuneError: what is missing or does not go together.
        StopRequested: asked to leave.
    """
    data = open_dataset(dataset)
    context.emit(StageStarted(stage="check", message=str(dataset)))
    verify(dataset)
    model = config.model
    tokenizer = read_tokenizer(tokenizer_folder(model.name, model.revision))
    vocabulary = Vocabulary(tokenizer)
    soundness.refuse_other_tokenizer(data.manifest, model.name, model.revision)
    loaded = _load(config, adapter, backend, device, context)
    _refuse_short_embeddings(loaded, vocabulary, model.name)
    if adapter is not None:
        refuse_other_base(loaded.model, adapter, model.name)
        if told := other_name(adapter, model.name):
            context.emit(Note(level="warning", message=told))
    subject = Subject(
        loss=NextTokenLoss.of(loaded.model, loaded.torch_device),
        device=loaded.torch_device,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        layout=layout_of(vocabulary.special),
        base=base_facts(config, device.value),
        adapter=None if adapter is None else _adapter_facts(adapter),
    )
    limit = TimeLimit(60 * config.evaluation.minutes)
    return evaluate_loaded(subject, data, config.evaluation, context, limit)


def _load(
    config: Config, adapter: Published | None, backend: Backend, device: Device, context: JobContext
) -> LoadedModel:
    context.emit(StageStarted(stage="load model", message=f"{config.model.name} ({backend.name})"))
    # Without an adapter there is a new one all the same, which is never at work.
    lora = AdapterRequest(
        rank=1, alpha=1, target_modules=config.lora.target_modules, resume_from=adapter.folder if adapter else None
    )
    loaded = backend.load(
        ModelRequest(
            name=config.model.name,
            revision=config.model.revision,
            adapter=lora,
            device=device,
            group_size=config.quantization.scale_group,
            compute=config.quantization.compute,
            attention=config.training.attention,
        )
    )
    for note in loaded.notes:
        context.emit(Note(message=note))
    return loaded


def _refuse_short_embeddings(loaded: LoadedModel, vocabulary: Vocabulary, name: str) -> None:
    known = loaded.model.get_base_model().get_input_embeddings().num_embeddings
    if vocabulary.size > known:
        raise DatasetError(f"The model {name} has {known} embeddings, and its tokenizer {vocabulary.size} tokens.")


def _adapter_facts(adapter: Published) -> dict[str, Any]:
    return {"trained_on": adapter.base or None, "rank": adapter.rank, "alpha": adapter.config["lora_alpha"]}
