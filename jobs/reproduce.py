"""The commands that make a run again: dataset and training, with every setting that is not the default."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from backends.devices import Device
from jobs.base import public_name
from jobs.config import load_config
from jobs.repository import RepositoryError, is_url, shown
from jobs.spec import Config

#: Sections that decide what the training computes.
_SECTIONS = ("quantization", "lora", "optimization", "training")


def reproduce_lines(config: Config, manifest: Mapping[str, Any], device: str) -> tuple[str, str]:
    """The commands for the dataset and for the training, each on one line, ready for a shell.

    Paths of this machine are not told: a local repository or model is named by its last part.

    Args:
        config: As it held on `device`.
        manifest: Of the dataset.
        device: Where the run was, e.g. `mps`.
    """
    model = ["--model", public_name(config.model.name)]
    revision = [f"model.revision={json.dumps(config.model.revision)}"] if config.model.revision else []
    data = ["dataset", "--repo", public_repository(manifest), "--ref", _ref(manifest), *model, "--output", "dataset"]
    run = ["train", "--dataset", "dataset", *model, "--device", device, "--output", "run"]
    return (
        _typed([*data, *_flags([*revision, *_dataset_settings(manifest)])]),
        _typed([*run, *_flags([*revision, *_training_settings(config, Device(device))])]),
    )


def public_repository(manifest: Mapping[str, Any]) -> str:
    """The repository's URL without user and password, or the name of its folder."""
    source = manifest.get("source")
    name = str(source.get("repository", "") if isinstance(source, Mapping) else source or "")
    try:
        fetched = is_url(name) and not name.startswith("file:")
    except RepositoryError:
        fetched = False
    return shown(name) if fetched else PurePath(name).name or "repository"


def _ref(manifest: Mapping[str, Any]) -> str:
    source = manifest.get("source")
    since = source.get("since") if isinstance(source, Mapping) else None
    commit = str(manifest.get("commit", "HEAD"))
    return f"{since}..{commit}" if since else commit


def _dataset_settings(manifest: Mapping[str, Any]) -> Iterator[str]:
    standard = load_config().dataset.model_dump(mode="json")
    for key, value in dict(manifest.get("config") or {}).items():
        if key in standard and value != standard[key]:
            yield f"dataset.{key}={json.dumps(value)}"


def _training_settings(config: Config, device: Device) -> Iterator[str]:
    shipped = load_config()
    standard, asked = (one.model_dump(mode="json") for one in (shipped.for_device(device), config))
    # A key that the shipped file sets for this device wins over the same key set for all.
    owned = getattr(shipped, device.value).model_dump(exclude_unset=True)
    for section in _SECTIONS:
        for key, value in asked[section].items():
            if value != standard[section][key]:
                prefix = f"{device.value}." if key in (owned.get(section) or {}) else ""
                yield f"{prefix}{section}.{key}={json.dumps(value)}"


def _flags(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _typed(words: list[str]) -> str:
    return shlex.join(["repotune", *words])
