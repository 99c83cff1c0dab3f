"""An adapter as training published it: PEFT's two files in a folder, read and checked."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.errors import ExitCode, RepotuneError
from jobs.base import public_name

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class NoAdapter(RepotuneError):
    """The folder holds no adapter that can be handed over."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Published:
    """A LoRA adapter on disk."""

    folder: Path
    #: `adapter_config.json`.
    config: dict[str, Any]

    @property
    def base(self) -> str:
        """The base as the person who trained named it; empty where the file does not say."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def revision(self) -> str | None:
        """Of a hub model."""
        return self.config.get("revision")

    @property
    def rank(self) -> int:
        """Of every adapted layer."""
        return int(self.config["r"])

    @property
    def alpha(self) -> float:
        """What, divided by the rank, scales the adapter, whichever way it was told (rsLoRA, arXiv 2312.03732)."""
        alpha = float(self.config["lora_alpha"])
        return alpha * math.sqrt(self.rank) if self.config.get("use_rslora") else alpha

    @property
    def is_dora(self) -> bool:
        """Whether rows are scaled by learned magnitudes, too."""
        return bool(self.config.get("use_dora"))

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS


def open_published(folder: Path) -> Published:
    """Read the adapter in `folder`, or in the folder `adapter` below it, as `train` and `pull` leave it.

    Every number of its weights is looked at once: a file that was cut, or a training that went wrong, is told here and
    not by whoever is handed the adapter.

    Raises:
        NoAdapter: there is none, it is damaged, or it is of a kind that repotune does not train.
    """
    if not (folder / CONFIG).is_file() and (folder / "adapter" / CONFIG).is_file():
        folder = folder / "adapter"
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NoAdapter(
                f"There is no adapter in {folder}: no {name}; name the folder that `train` or `pull` put it into."
            )
    config = _read_config(folder)
    if config.get("peft_type") != "LORA" or not _is_plain(config):
        raise NoAdapter(f"The adapter in {folder} is no LoRA adapter of the kind that repotune trains: train one.")
    _refuse_damaged(folder)
    return Published(folder, config)


def refuse_other_base(model: Any, published: Published, name: str) -> None:
    """PEFT leaves out what a base has no layer for, and starts what the file lacks afresh, with a warning at most.

    Args:
        model: PEFT's, with the adapter loaded.
        published: The adapter.
        name: Of the base, as the person named it.

    Raises:
        NoAdapter: the file's weights are not those that the model has places for.
    """
    from peft import get_peft_model_state_dict

    saved, places = _names(published.weights), set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if saved != places:
        raise NoAdapter(
            f"The adapter in {published.folder} was trained on another base than {name}: they differ in "
            f"{len(saved ^ places)} of {len(saved)} weights, first {min(saved ^ places)}; name its own base by --model."
        )


def other_name(published: Published, name: str) -> str | None:
    """A warning where the adapter names another base than `name`; folders and owners before the name do not count.

    A base of the same shape takes any adapter, and nothing but the name tells that it is not the adapter's own.
    """
    if not published.base or _last(published.base) == _last(name):
        return None
    return (
        f"The adapter names another base: it was trained on {published.base} and is used on {name}, which is of use "
        "only where both hold the same weights"
    )


def _last(name: str) -> str:
    return public_name(name).rsplit("/", 1)[-1]


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoAdapter(f"The adapter in {folder} cannot be read: {CONFIG} ({error}): fetch it anew.") from error
    return config if isinstance(config, dict) else {}


def _refuse_damaged(folder: Path) -> None:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            broken = next((name for name in file.keys() if not torch.isfinite(file.get_tensor(name)).all()), None)  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise NoAdapter(f"The adapter in {folder} cannot be read: {WEIGHTS} ({error}): fetch it anew.") from error
    if broken is not None:
        raise NoAdapter(
            f"The adapter in {folder} is damaged: {broken} holds numbers that are not finite; fetch it anew, or train "
            "it again with a lower optimization.learning_rate."
        )


def _names(weights: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return set(file.keys())


def _is_plain(config: dict[str, Any]) -> bool:
    """One rank and alpha for all layers, no trained biases, nothing trained beside the adapter."""
    numbers = isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")
    beside = config.get("modules_to_save") or config.get("bias", "none") != "none" or config.get("lora_bias")
    return numbers and not patterns and not beside
