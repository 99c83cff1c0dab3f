"""Can the base model be had: its files, its terms, its licence. Asks the hub once, briefly, and never for weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queue_app.gguf_header import NotGguf, read_gguf_header
from queue_app.model_facts import HUB_TIMEOUT_SECONDS, ModelFacts
from queue_app.preflight.line import CheckLine, Grade, Place, passed, warned

#: One of them makes a tokenizer (as `backends.models` looks for them).
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_CACHED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_UNKNOWN_LICENCE = "its licence is not stated"
_CHECK_LICENCE = "look it up before you pass the adapter on"
_REFUSED = frozenset({401, 403})
_NOT_FOUND = 404


@dataclass(frozen=True, kw_only=True)
class HubAnswer:
    """What the hub says of a model."""

    #: HTTP status; None: no answer.
    status: int | None
    #: Why there was none, as a clause.
    problem: str = ""
    about: Mapping[str, Any]

    @property
    def licence(self) -> str:
        """As its card states it; "" where it does not."""
        card = self.about.get("cardData")
        stated = card.get("license") if isinstance(card, Mapping) else None
        return str(stated) if stated else ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights in the format that would be fetched."""
        files = [file for file in self.about.get("siblings", []) if isinstance(file, Mapping)]
        for ending in _WEIGHTS:
            sizes = [int(file.get("size") or 0) for file in files if str(file.get("rfilename")).endswith(ending)]
            if sizes:
                return sum(sizes)
        return 0


@dataclass(frozen=True, kw_only=True)
class Access:
    """Whether the model can be had, and what must be fetched for it."""

    line: CheckLine
    #: Bytes to fetch before the training; 0 where it is here, or nobody knows.
    download_bytes: int = 0


def check_access(facts: ModelFacts, revision: str | None, place: Place) -> Access:
    """Look whether the model can be had."""
    if facts.is_path and facts.config is None:
        problem = f"The model cannot be loaded: {facts.problem}."
        if place is Place.QUEUE:
            return Access(line=warned("model", problem, "only a worker that has it can run the job"))
        return Access(line=CheckLine(name="model", grade=Grade.FAIL, text=problem))
    if facts.is_path:
        return Access(line=_of_path(facts, Path(facts.name).expanduser()))
    return _of_hub(facts, revision, place)


def _of_path(facts: ModelFacts, path: Path) -> CheckLine:
    lacking = _lacking(path) if path.is_dir() else ""
    if lacking:
        return CheckLine(name="model", grade=Grade.FAIL, text=f"The folder {path} has {lacking}: save the model again.")
    licence = _licence_of_folder(path) if path.is_dir() else _licence_of_gguf(path)
    text = f"{facts.name} ({facts.origin}), {f'licence {licence}' if licence else _UNKNOWN_LICENCE}"
    return _judged(text, facts, licence)


def _lacking(folder: Path) -> str:
    names = [file.name for file in folder.iterdir()]
    if not any(name.endswith(_WEIGHTS) for name in names):
        return "a config.json and no weights"
    return "" if any(name in _TOKENIZERS for name in names) else "no tokenizer"


def _judged(text: str, facts: ModelFacts, licence: str) -> CheckLine:
    """Warn of what is known to go wrong later."""
    if (facts.config or {}).get("auto_map"):
        kind = (facts.config or {}).get("model_type")
        return warned(
            "model",
            f"{text}; it brings Python code of its own (auto_map), which is never run here",
            f"it loads only where transformers itself knows the type {kind}",
        )
    return passed("model", text) if licence else warned("model", text, _CHECK_LICENCE)


def _licence_of_folder(folder: Path) -> str:
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        head = ""
    if head.startswith("---"):
        for line in head.split("---")[1].splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "license" and value.strip():
                return value.strip().strip("\"'")
    files = sorted(file.name for file in folder.iterdir() if file.stem.upper() in {"LICENSE", "LICENCE", "COPYING"})
    return f"in {files[0]}" if files else ""


def _licence_of_gguf(file: Path) -> str:
    try:
        return str(read_gguf_header(file).metadata.get("general.license") or "")
    except (OSError, NotGguf):
        return ""


# ---- The hub ---------------------------------------------------------------------------------------------------------


def _of_hub(facts: ModelFacts, revision: str | None, place: Place) -> Access:
    here = is_cached(facts.name, revision)
    answer = ask_hub(facts.name, revision)
    if answer.status is None or answer.status >= 500:  # noqa: PLR2004 - the hub's own trouble
        return Access(line=_without_hub(facts, answer, place, here=here))
    if answer.status in _REFUSED | {_NOT_FOUND} and not here:
        return Access(line=_refused(facts.name, revision, place))
    if answer.about.get("gated") and not here and not _may_read(facts.name, revision):
        return Access(line=_gated(facts.name, place))
    where = "in the cache of this machine" if here else "on the hub"
    licence = answer.licence
    text = f"{facts.name} ({where}), {f'licence {licence}' if licence else _UNKNOWN_LICENCE}"
    return Access(line=_judged(text, facts, licence), download_bytes=0 if here else answer.weight_bytes)


def _without_hub(facts: ModelFacts, answer: HubAnswer, place: Place, *, here: bool) -> CheckLine:
    if here:
        return passed("model", f"{facts.name} (in the cache of this machine; the hub was not asked: {answer.problem})")
    remedy = "connect this machine, or name a folder or a .gguf file with model.name"
    if place is not Place.HERE:
        remedy = "the worker must reach the hub, or have the model in its cache"
    return CheckLine(
        name="model",
        grade=place.lacking,
        text=f"{facts.name} is not in the cache of this machine, and the hub does not answer ({answer.problem})",
        remedy=remedy,
    )


def _refused(name: str, revision: str | None, place: Place) -> CheckLine:
    at = f" at revision {revision}" if revision else ""
    return CheckLine(
        name="model",
        grade=Grade.WARN if place is Place.QUEUE else Grade.FAIL,
        text=f"The hub shows no model {name}{at}",
        remedy="check model.name and model.revision, or log in (`hf auth login`) if it is private",
    )


def _gated(name: str, place: Place) -> CheckLine:
    from huggingface_hub import constants

    return CheckLine(
        name="model",
        grade=Grade.WARN if place is Place.QUEUE else Grade.FAIL,
        text=f"{name} is gated and this machine may not read it",
        remedy=f"accept its terms at {constants.ENDPOINT}/{name} and log in (`hf auth login`) where it trains",
    )


def is_cached(name: str, revision: str | None) -> bool:
    """Whether the weights are in this machine's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _CACHED)
    except Exception:  # noqa: BLE001 - a name that the library refuses is in no cache
        return False


def ask_hub(name: str, revision: str | None) -> HubAnswer:
    """What the hub knows of the model; waits a few seconds at most."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return HubAnswer(status=None, problem="HF_HUB_OFFLINE is set", about={})
    at = f"/revision/{revision}" if revision else ""
    try:
        response = _get(f"{constants.ENDPOINT}/api/models/{name}{at}?blobs=true")
        about = json.loads(response.text) if response.is_success else {}
    except Exception as error:  # noqa: BLE001 - the many errors of a network all mean that nobody answers
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return HubAnswer(status=None, problem=first_line.rstrip("."), about={})
    about = about if isinstance(about, dict) else {}
    return HubAnswer(status=int(response.status_code), problem=f"HTTP status {response.status_code}", about=about)


def _may_read(name: str, revision: str | None) -> bool:
    """Whether a file behind the terms is given out; one that is not there counts as given out."""
    from huggingface_hub import hf_hub_url

    try:
        return _get(hf_hub_url(name, "config.json", revision=revision)).status_code not in _REFUSED
    except Exception:  # noqa: BLE001 - as above: then nobody can tell
        return True


def _get(url: str) -> Any:
    from huggingface_hub import get_session
    from huggingface_hub.utils._headers import build_hf_headers

    return get_session().get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_SECONDS, follow_redirects=True)
