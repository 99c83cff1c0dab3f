"""What a dataset says of itself: its manifest, which is written last, and what the job's record takes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs import repository
from jobs.dataset.identity import versions
from jobs.dataset.origin import Origin
from jobs.dataset.portion import Tools
from jobs.dataset.samples import SampleKind
from jobs.dataset.stats import Findings
from jobs.shards import dtype_name


def manifest(origins: Sequence[Origin], tools: Tools, found: Findings, files: Mapping[str, Any]) -> dict[str, Any]:
    """What the dataset was made of, and of which files it is made."""
    vocabulary, section, main = tools.vocabulary, tools.section, origins[0]
    counts = {
        split.name: {"rows": len(split.rows), "tokens": split.tokens, "labels": split.labels} for split in found.splits
    }
    return {
        "source": _source(main),
        **({"sources": [_pinned(origin) for origin in origins]} if len(origins) > 1 else {}),
        "commit": main.pinned.commit,
        "trained_until": main.cut,
        "config": section.model_dump(mode="json", exclude={"also"}),
        "tokenizer": {
            "sha256": vocabulary.sha256,
            "vocabulary_size": vocabulary.size,
            "document_end": vocabulary.end,
            "padding": vocabulary.padding,
            "layout": tools.layout.name,
        },
        "dtype": dtype_name(vocabulary.size),
        "sequence_length": section.sequence_length,
        "versions": versions() | {"redaction": tools.redactor.version, "syntax": found.syntax},
        "files": files,
        "splits": counts,
    }


def _source(origin: Origin) -> dict[str, Any]:
    return {
        "repository": repository.shown(origin.pinned.repository),
        "shallow": repository.is_shallow(origin.git_dir),
        "since": origin.pinned.since,
    }


def _pinned(origin: Origin) -> dict[str, Any]:
    """One of several repositories."""
    return {
        **_source(origin),
        "name": origin.label.rstrip("/"),
        "commit": origin.pinned.commit,
        "trained_until": origin.cut,
        "weight": origin.weight,
    }


def result(origins: Sequence[Origin], tools: Tools, found: Findings, stats: Mapping[str, Any]) -> dict[str, Any]:
    """What the job's record says of the dataset."""
    train, held_out, future = found.splits
    main = origins[0]
    return {
        "commit": main.pinned.commit,
        "trained_until": main.cut,
        "files": len(found.used),
        "dropped_files": len(found.drops),
        "commits": found.commits_used,
        "samples": sum(len(split.items) for split in found.splits),
        "train_tokens": train.tokens,
        "held_out_tokens": held_out.tokens,
        "future_tokens": future.tokens,
        "train_rows": len(train.rows),
        "held_out_rows": len(held_out.rows),
        "future_rows": len(future.rows),
        "redactions": stats["redactions"]["total"],
        "sequence_length": tools.section.sequence_length,
        "fim": any(item.sample.kind is SampleKind.FILL for item in train.items),
        "shallow": any(repository.is_shallow(origin.git_dir) for origin in origins),
    }
