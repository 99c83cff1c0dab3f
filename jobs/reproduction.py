"""The commands that make an adapter again: from the repository's commit, with every choice that is not the default.

The configuration is given as it held on the device, so that the commands need no file. For the owner they name the
repository and the model where they lie; for others (`published`) by what says nothing of this machine.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from backends.devices import Device
from jobs.base import public_name
from jobs.config import load_config
from jobs.repository import RepositoryError, is_url, shown
from jobs.spec import Config

#: Key and value.
Setting = tuple[str, Any]


def commands(config: Config, manifest: Mapping[str, Any], device: str) -> tuple[str, str]:
    """Shell commands that build the dataset and train, each on a line of its own.

    Args:
        config: As it held on the device.
        manifest: Of the dataset.
        device: Its name.
    """
    chosen = config.model_dump(mode="json", exclude={"model", "dataset", *Device})
    training = ["repotune", "train", "--dataset", "dataset", "--device", device, "--output", "out"]
    return _dataset(config, manifest), _line(training, [*_model(config), *_changed(chosen, device)])


def published(config: Config, manifest: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Configuration and manifest as others may see them: what is local goes by the last part of its path."""
    model = config.model.model_copy(update={"name": public_name(config.model.name)})
    sources = [{**one, "repository": _public(one.get("repository"))} for one in manifest.get("sources") or ()]
    source = {**(manifest.get("source") or {}), "repository": public_repository(manifest)}
    return config.model_copy(update={"model": model}), {**manifest, "source": source, "sources": sources}


def public_repository(manifest: Mapping[str, Any]) -> str:
    """The repository's URL without user and password, or the name of its folder."""
    return _public((manifest.get("source") or {}).get("repository"))


def _public(repository: str | None) -> str:
    name = repository or ""
    try:
        fetched = is_url(name) and not name.startswith("file:")
    except RepositoryError:
        fetched = False
    return shown(name) if fetched else PurePath(name).name or "repository"


def _dataset(config: Config, manifest: Mapping[str, Any]) -> str:
    source, commit = manifest.get("source") or {}, manifest.get("commit")
    words = ["repotune", "dataset", "--repo", str(source.get("repository") or "."), "--output", "dataset"]
    if commit:
        words += ["--ref", f"{source['since']}..{commit}" if source.get("since") else str(commit)]
    built_with = {"dataset": manifest.get("config") or {}}
    return _line(words, [*_model(config), *_also(manifest), *_changed(built_with, None)])


def _also(manifest: Mapping[str, Any]) -> list[Setting]:
    """The further repositories, each at its commit."""
    further = [
        {"repository": one.get("repository"), "ref": one.get("commit"), "weight": one.get("weight")}
        for one in list(manifest.get("sources") or ())[1:]
    ]
    return [("dataset.also", further)] if further else []


def _model(config: Config) -> list[Setting]:
    revision: list[Setting] = [("model.revision", config.model.revision)] if config.model.revision else []
    return [("model.name", config.model.name), *revision]


def _changed(sections: Mapping[str, Mapping[str, Any]], device: str | None) -> list[Setting]:
    """What is not as the shipped file has it, on `device` where one is named."""
    shipped = load_config()
    usual = (shipped.for_device(Device(device)) if device else shipped).model_dump(mode="json")
    overrides = getattr(shipped, device).model_dump(exclude_unset=True) if device else {}
    found = []
    for section, keys in sections.items():
        for key, value in keys.items():
            if value != usual.get(section, {}).get(key):
                # What the shipped file has in the device's own section is overridden there.
                own = key in (overrides.get(section) or {})
                found.append((f"{f'{device}.' if own else ''}{section}.{key}", value))
    return found


def _line(words: Sequence[str], settings: Sequence[Setting]) -> str:
    given = [word for key, value in settings for word in ("--set", f"{key}={_yaml(value)}")]
    return shlex.join([*words, *given])


def _yaml(value: Any) -> str:
    """As `--set` reads it back."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)
