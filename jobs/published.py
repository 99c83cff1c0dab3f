"""An adapter as training published it: PEFT's two files in a folder, read and checked."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.errors import ExitCode, RepotuneError

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

    Raises:
        NoAdapter: there is none, or it is of a kind that repotune does not train.
    """
    if not (folder / CONFIG).is_file() and (folder / "adapter" / CONFIG).is_file():
        folder = folder / "adapter"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoAdapter(f"There is no adapter in {folder}: {CONFIG} is missing or cannot be read.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not _is_plain(config):
        raise NoAdapter(f"The adapter in {folder} is no LoRA adapter of the kind that repotune trains.")
    if not (folder / WEIGHTS).is_file():
        raise NoAdapter(f"The adapter in {folder} has no weights: {WEIGHTS} is missing.")
    return Published(folder, config)


def _is_plain(config: dict[str, Any]) -> bool:
    """One rank and alpha for all layers, no trained biases, nothing trained beside the adapter."""
    numbers = isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")
    beside = config.get("modules_to_save") or config.get("bias", "none") != "none" or config.get("lora_bias")
    return numbers and not patterns and not beside
