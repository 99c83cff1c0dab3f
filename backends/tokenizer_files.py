"""Tokenizers without transformers, whose import takes seconds: read from their files by the `tokenizers` library.

That is allowed only where transformers would do the same. It takes `tokenizer.json` as it is for the classes named
below; for others (GPT2Tokenizer, Qwen2Tokenizer...) it builds a tokenizer of its own from the vocabulary, and tokens
that only `tokenizer_config.json` knows are added. Whatever it made of those is kept, and read the next time.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from backends.gguf_cache import cache_folder

#: Files that say what a tokenizer does. config.json is among them: its model_type chooses a class.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
)

#: Classes that take tokenizer.json as it is (transformers 5, `TokenizersBackend.convert_to_native_format`).
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
#: Types of models for which the class named in tokenizer_config.json is believed (transformers 5, `AutoTokenizer`).
_PLAIN_MODELS = (None, "starcoder2", "gpt_bigcode", "llama", "gpt2", "gpt_neox", "granite", "smollm3", "codegen", "phi")
#: Settings of tokenizer_config.json that make a difference of their own.
_SETTINGS = ("auto_map", "split_special_tokens", "added_tokens_decoder", "add_prefix_space", "fix_mistral_regex")


@dataclass(frozen=True)
class FileTokenizer:
    """What a dataset needs of a tokenizer, under the names that transformers gives it."""

    #: A `tokenizers.Tokenizer`.
    backend_tokenizer: Any
    eos_token_id: int | None
    pad_token_id: int | None

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens too."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


def files_key(folder: Path) -> str:
    """Identity of the tokenizer's files in `folder`, in hex."""
    digest = hashlib.sha256()
    for name in FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                digest.update(f"{name}\0".encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def light_tokenizer(folder: Path) -> FileTokenizer | None:
    """The tokenizer of `folder` where its files, or what was kept of it, tell it; None where transformers must."""
    return plain_tokenizer(folder) or kept_tokenizer(folder)


def plain_tokenizer(folder: Path) -> FileTokenizer | None:
    """The tokenizer that `folder`'s tokenizer.json describes; None where transformers may make another one of it."""
    settings = _read_json(folder / "tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file() or not _is_plain(settings, _read_json(folder / "config.json")):
        return None
    try:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - tokenizers raises nothing narrower; transformers will tell what is wrong
        return None
    settings |= _read_json(folder / "special_tokens_map.json")
    added = {token.content: identifier for identifier, token in backend.get_added_tokens_decoder().items()}
    if backend.padding is not None or backend.truncation is not None or _named_tokens(settings) - set(added):
        return None
    _complete(backend)
    eos, pad = (added.get(_content(settings.get(f"{role}_token")) or "") for role in ("eos", "pad"))
    return FileTokenizer(backend, eos, pad)


def _read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; empty where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_plain(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return (
        settings.get("tokenizer_class") in _PLAIN_CLASSES
        and config.get("model_type") in _PLAIN_MODELS
        and not any(settings.get(name) for name in _SETTINGS)
    )


def _content(token: Any) -> str | None:
    """The letters of a token that is written as a string or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _named_tokens(settings: Mapping[str, Any]) -> set[str]:
    """The tokens that a configuration names; transformers adds those that the vocabulary has not marked as such."""
    tokens = [value for name, value in settings.items() if name.endswith("_token") and not name.startswith("add_")]
    for name in ("extra_special_tokens", "additional_special_tokens"):
        more = settings.get(name) or ()
        tokens += more.values() if isinstance(more, dict) else more
    return {content for token in tokens if (content := _content(token)) is not None}


def _complete(backend: Any) -> None:
    """Put in what transformers puts in where the file has nothing: it adds no token, but belongs to the identity."""
    from tokenizers import processors

    if backend.post_processor is None:
        backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


# ---- What transformers made of a folder, kept ------------------------------------------------------------------------


def kept_tokenizer(folder: Path) -> FileTokenizer | None:
    """What `keep_tokenizer` kept of a folder with the same files and the same libraries."""
    kept = _read_json(_kept_file(folder))
    try:
        from tokenizers import Tokenizer

        return FileTokenizer(Tokenizer.from_str(kept["tokenizer"]), kept["eos"], kept["pad"])
    except Exception:  # noqa: BLE001 - nothing kept, or damaged: it is made anew
        return None


def keep_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Keep what transformers made of `folder`; a disk that is full or read-only costs time only."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    kept = {"tokenizer": backend.to_str(), "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    file = _kept_file(folder)
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(kept), encoding="utf-8")
        draft.replace(file)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _kept_file(folder: Path) -> Path:
    libraries = " ".join(metadata.version(name) for name in ("transformers", "tokenizers"))
    key = hashlib.sha256(f"{files_key(folder)} {libraries}".encode()).hexdigest()[:16]
    return cache_folder() / f"tokenizer-{key}.json"
