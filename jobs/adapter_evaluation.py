"""Evaluates a saved adapter, or a base alone, on a dataset: what `repotune evaluate` does."""

import json
from pathlib import Path
from typing import Any

from backends.contract import AdapterRequest, Backend, LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import ModelNotLoadable
from backends.models import read_tokenizer, tokenizer_folder
from jobs.context import JobContext
from jobs.dataset.fim import layout_of
from jobs.dataset.tokens import Vocabulary
from jobs.evaluate import Subject, base_facts, evaluate_loaded, refuse_other_tokenizer
from jobs.events import Note, StageStarted
from jobs.loss import NextTokenLoss
from jobs.shards import DatasetError, open_dataset, verify
from jobs.spec import Config
from jobs.time_limit import TimeLimit

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def evaluate(  # noqa: PLR0917 - callers name them
    config: Config, dataset: Path, adapter: Path | None, backend: Backend, device: Device, context: JobContext
) -> dict[str, Any]:
    """Measure an adapter beside its base, or a base alone.

    Args:
        config: As it holds on `device` (`Config.for_device`).
        dataset: Folder that `jobs.dataset` wrote.
        adapter: Folder in PEFT format; None measures the base.
        backend: Holds the model.
        device: Where to compute.
        context: Whom to tell, when to stop.

    Returns:
        What `evaluation.json` holds.

    Raises:
        RepotuneError: what is missing or does not go together.
        StopRequested: asked to leave.
    """
    known = None if adapter is None else read_adapter(adapter)
    data = open_dataset(dataset)
    context.emit(StageStarted(stage="check", message=str(dataset)))
    verify(dataset)
    model = config.model
    tokenizer = read_tokenizer(tokenizer_folder(model.name, model.revision))
    vocabulary = Vocabulary(tokenizer)
    refuse_other_tokenizer(data, vocabulary, model.name)
    loaded = _load(config, adapter, backend, device, context)
    _refuse_short_embeddings(loaded, vocabulary, model.name)
    if adapter is not None and known is not None:
        refuse_other_base(loaded.model, adapter, model.name)
        _tell_other_name(known, model.name, context)
    subject = Subject(
        loss=NextTokenLoss.of(loaded.model, loaded.torch_device),
        device=loaded.torch_device,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        layout=layout_of(vocabulary.special),
        base=base_facts(config, device.value),
        adapter=None if known is None else _adapter_facts(known),
    )
    limit = TimeLimit(60 * config.evaluation.minutes)
    return evaluate_loaded(subject, data, config.evaluation, context, limit)


def read_adapter(folder: Path) -> dict[str, Any]:
    """The configuration of a saved adapter.

    Raises:
        ModelNotLoadable: there is none, or a part of it is missing.
    """
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise ModelNotLoadable(f"There is no adapter in {folder}: no {name}.")
    try:
        found = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotLoadable(f"The adapter in {folder} cannot be read: {_CONFIG} ({error}).") from error
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise ModelNotLoadable(f"The adapter in {folder} is no LoRA adapter: train one with repotune.")
    _weight_names(folder)
    return found


def _weight_names(folder: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelNotLoadable(f"The adapter in {folder} cannot be read: {_WEIGHTS} ({error}).") from error


def refuse_other_base(model: Any, folder: Path, name: str) -> None:
    """PEFT leaves out what a base has no layer for, and starts what the file lacks afresh, with a warning at most.

    Raises:
        ModelNotLoadable: the file's weights are not those that the model has places for.
    """
    from peft import get_peft_model_state_dict

    saved = _weight_names(folder)
    places = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if saved != places:
        first = min(saved ^ places)
        raise ModelNotLoadable(
            f"The adapter in {folder} was trained on another base than {name}: they differ in "
            f"{len(saved ^ places)} of {len(saved)} weights, first {first}; name its own base with --model."
        )


def _load(config: Config, adapter: Path | None, backend: Backend, device: Device, context: JobContext) -> LoadedModel:
    context.emit(StageStarted(stage="load model", message=f"{config.model.name} ({backend.name})"))
    # Without an adapter there is a new one all the same, which is never at work.
    lora = AdapterRequest(rank=1, alpha=1, target_modules=config.lora.target_modules, resume_from=adapter)
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


def _tell_other_name(adapter: dict[str, Any], name: str, context: JobContext) -> None:
    trained_on = adapter.get("base_model_name_or_path")
    if trained_on and trained_on != name:
        message = f"The adapter names another base: it was trained on {trained_on} and is measured on {name}"
        context.emit(Note(level="warning", message=message))


def _adapter_facts(adapter: dict[str, Any]) -> dict[str, Any]:
    return {
        "trained_on": adapter.get("base_model_name_or_path"),
        "rank": adapter.get("r"),
        "alpha": adapter.get("lora_alpha"),
    }
