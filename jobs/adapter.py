"""Saves the trained adapter in PEFT's own format: it loads wherever PEFT does."""

import shutil
from pathlib import Path
from typing import Any

from jobs.spec import Config


def save_adapter(model: Any, folder: Path, config: Config) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` to `folder`.

    The base is named as the person named it, never by a path of this machine's cache.
    """
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = config.model.name
        peft_config.revision = config.model.revision
    # "auto" would ask the model hub whether the vocabulary grew; the embeddings are never trained here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    # PEFT's model card is a form with every field empty.
    (folder / "README.md").unlink(missing_ok=True)


def publish_adapter(model: Any, folder: Path, config: Config) -> None:
    """Save the adapter so that `folder` is the old adapter or the new one, whole."""
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    save_adapter(model, beside, config)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
