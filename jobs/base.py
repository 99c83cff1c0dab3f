"""The base model as others may know it: its name without the folders of this machine, and its licence."""

from pathlib import Path
from typing import Any

import yaml

from jobs.dataset.licences import is_licence_file, licence_of

#: A card's front matter stands between two such lines.
_FENCE = "---"
_CARD = "README.md"
#: Seconds to wait for the hub: the licence is told where it can be, and no training waits for it.
_HUB_TIMEOUT = 5.0


def is_local(name: str) -> bool:
    """Whether `name` is a file or folder, not a hub id."""
    return name.startswith(("/", "~", ".")) or name.endswith(".gguf") or Path(name).expanduser().exists()


def public_name(name: str) -> str:
    """A hub id as it is; of a file or folder the last part, which tells nothing of this machine."""
    return Path(name).expanduser().resolve().name if is_local(name) else name


def full_name(name: str) -> str:
    """A hub id as it is; a file or folder by its full path."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def licence_of_base(name: str, revision: str | None = None) -> str | None:
    """The licence of a base model in the words of its own card, GGUF header or licence file; None where none says it.

    Args:
        name: Hub id, folder, or path of a .gguf file.
        revision: Of a hub model.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _of_gguf(path)
    if path.is_dir():
        return _of_card(path / _CARD) or _of_text(path)
    card = _hub_card(name, revision)
    return _of_card(card) if card else None


def _of_card(file: Path) -> str | None:
    """`license` of the YAML that a model card begins with; "other" names itself by `license_name`."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith(_FENCE + "\n"):
        return None
    try:
        front: Any = yaml.safe_load(text.split(f"\n{_FENCE}", 1)[0])
    except yaml.YAMLError:
        return None
    return _said(front) if isinstance(front, dict) else None


def _said(front: dict[str, Any]) -> str | None:
    licence = front.get("license")
    if licence == "other":
        licence = front.get("license_name") or licence
    return licence if isinstance(licence, str) and licence else None


def _of_text(folder: Path) -> str | None:
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_licence_file(file.name):
            return licence_of(file.read_text(encoding="utf-8", errors="replace"))
    return None


def _of_gguf(file: Path) -> str | None:
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).get_field("general.license")
    except (OSError, ValueError, IndexError):
        return None
    return str(field.contents()) or None if field else None


def _hub_card(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _CARD, revision=revision, etag_timeout=_HUB_TIMEOUT))
    except Exception:  # noqa: BLE001 - a licence that cannot be looked up is unknown, whatever the reason
        return None
