"""Saves the trained adapter in PEFT's own format: it loads wherever PEFT does."""

import shutil
from pathlib import Path
from typing import Any

from jobs.base import full_name
from jobs.spec import Config


def save_adapter(model: Any, folder: Path, config: Config) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` to `folder`, the same bytes for the same adapter.

    The base is named as the person named it, never by a path of this machine's cache; a folder or file in full, so that
    it is found from any folder.
    """
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = full_name(config.model.name)
        peft_config.revision = config.model.revision
        if isinstance(peft_config.target_modules, set):  # in another order each time
            peft_config.target_modules = sorted(peft_config.target_modules)
    # "auto" would ask the model hub whether the vocabulary grew; the embeddings are never trained here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    # PEFT's model card is a form with every field empty.
    (folder / "README.md").unlink(missing_ok=True)


def publish_adapter(model: Any, folder: Path, config: Config) -> None:
    """Save the adapter so that `folder` never holds a part of one: the old one gives way to the new one."""
    beside, old = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    save_adapter(model, beside, config)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
