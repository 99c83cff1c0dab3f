"""The dataset job: the files of one commit become packed rows of token ids, split into train and held out.

    enumerate -> read -> filter -> split -> render -> tokenise -> pack -> write

The same commit, configuration and tokenizer give the same bytes. The output folder appears whole or not at all.
Not here yet: commits as samples, redaction of secrets, near copies (`jobs.dataset.split.Unit.keys` is where they join).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jobs import repository
from jobs.context import JobContext
from jobs.dataset.files import Drop, Reason, decode, path_filter, shown_path, text_reason
from jobs.dataset.fim import Layout, Mode, layout_of
from jobs.dataset.languages import language_of
from jobs.dataset.packing import pack
from jobs.dataset.samples import Document, Renderer, Sample
from jobs.shards import (
    DOCUMENT_START,
    HELD_OUT,
    LABEL,
    SPLITS,
    TRAIN,
    DatasetError,
    ShardWriter,
    dtype_name,
    write_manifest,
)
from jobs.spec import Config, DatasetSection, Source
from jobs.dataset.split import Unit, held_out_names
from jobs.stages import Stages
from jobs.dataset.tokens import Vocabulary
from jobs.workplace import workplace

STATS = "stats.json"
DROPS = "drops.jsonl"

#: Bytes of text that are in memory at once, beside the token ids.
_BATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class _File:
    """A file that is learned or measured."""

    path: str
    #: The path's bytes as Latin-1: unlike what is shown, no two files share it.
    name: str
    blob: str
    bytes: int
    #: Of the text without line ends and trailing blanks: the same for the same text, however it is stored.
    digest: str


@dataclass(frozen=True)
class _Survey:
    """What a commit holds."""

    files: list[_File]
    drops: list[Drop]


@dataclass(frozen=True)
class _Split:
    """One side of the dataset, ready to be written."""

    name: str
    files: list[_File]
    samples: list[Sample]
    #: Indices into `samples`, a list for every row.
    rows: list[list[int]]

    @property
    def tokens(self) -> int:
        """Tokens of documents, padding not counted."""
        return sum(len(sample.ids) for sample in self.samples)


def build_dataset(git_dir: Path, source: Source, config: Config, tokenizer: Any, context: JobContext) -> dict[str, Any]:
    """Build the dataset of `source.commit` into `context.output`.

    Args:
        git_dir: repository that holds the commit; its work tree is not looked at.
        source: what the manifest says of the repository.
        config: its dataset section says what is taken and in which shape.
        tokenizer: a transformers fast tokenizer, the model's own.
        context: takes the folder that appears, the events, and whether to stop.

    Returns:
        What the job's record says of the dataset.

    Raises:
        DatasetError: nothing to learn from, too little to split, no room on the disk.
        RepositoryError: the commit cannot be read.
        OutputExists: the output folder is not empty.
        StopRequested: asked to stop; nothing was left behind.
    """
    stages = Stages(context)
    with workplace(context.output) as folder:
        vocabulary = Vocabulary(tokenizer)
        layout = layout_of(vocabulary.special)
        survey = _survey(git_dir, source.commit, config.dataset, stages)
        sides = _divide(survey, config.dataset, stages)
        stages.start("render", _told(layout, config.dataset))
        renderer = Renderer(vocabulary, layout, repository_name(source.repository), config.dataset)
        samples = {name: _samples(git_dir, name, files, renderer, stages) for name, files in sides.items()}
        splits = _packed(sides, samples, config.dataset, stages)
        stages.start("write")
        files = _write_splits(folder, splits, config.dataset, vocabulary, stages)
        _write_reports(folder, survey, splits, layout, config.dataset)
        about = _about(source, git_dir, config.dataset, vocabulary, layout)
        counts = {split.name: {"rows": len(split.rows), "tokens": split.tokens} for split in splits}
        write_manifest(folder, {**about, "files": files, "splits": counts})
        stages.check()
    return _result(source, git_dir, survey, splits, config.dataset)


def repository_name(repository_: str) -> str:
    """What a repository is called, of its path or URL: `requests` of `https://h/psf/requests.git`."""
    name = repository.shown(repository_).rstrip("/").removesuffix("/.git").removesuffix(".git")
    name = name.rpartition("/")[2].rpartition(":")[2].strip(".")
    return shown_path(name.encode("utf-8", "surrogateescape")) or "repository"


def _survey(git_dir: Path, commit: str, section: DatasetSection, stages: Stages) -> _Survey:
    """Look at every file of the commit, once by name and once by content."""
    stages.start("enumerate", f"Listing commit {commit[:12]}.")
    reason_of = path_filter(section)
    drops: list[Drop] = []
    candidates = []
    for entry in repository.list_files(git_dir, commit):
        stages.check()
        reason = reason_of(entry)
        if reason is None:
            candidates.append(entry)
        else:
            drops.append(Drop(path=shown_path(entry.path), blob=entry.blob, bytes=entry.size, reason=reason))
    stages.start("read", f"Reading {len(candidates)} files.")
    files: dict[str, _File] = {}
    contents = repository.read_blobs(git_dir, [entry.blob for entry in candidates])
    for done, (entry, (_, content)) in enumerate(zip(candidates, contents, strict=True), 1):
        stages.progress(done, len(candidates), "files")
        path = shown_path(entry.path)
        verdict = Reason.DUPLICATE if entry.blob in files else _judge(path, content)
        if isinstance(verdict, Reason):
            drops.append(Drop(path=path, blob=entry.blob, bytes=entry.size, reason=verdict))
        else:
            files[entry.blob] = _File(path, entry.path.decode("latin-1"), entry.blob, entry.size, verdict)
    stages.start("filter", f"{len(files)} files are kept, {len(drops)} left out.")
    return _Survey(list(files.values()), sorted(drops, key=lambda drop: (drop.path, drop.blob)))


def _judge(path: str, content: bytes) -> Reason | str:
    """Why a file is left out, or the digest of its text."""
    text = decode(content)
    if isinstance(text, Reason):
        return text
    bare = "\n".join(line.rstrip() for line in text.splitlines()).strip()
    return text_reason(path, text) or hashlib.blake2b(bare.encode(), digest_size=16).hexdigest()


def _divide(survey: _Survey, section: DatasetSection, stages: Stages) -> dict[str, list[_File]]:
    """The files of each split."""
    stages.start("split")
    if not survey.files:
        raise DatasetError(f"The commit has no file to learn from{_why(survey.drops)}: widen dataset.include.")
    units = [Unit(file.name, file.bytes, (file.digest,)) for file in survey.files]
    held_out = held_out_names(units, section.held_out, section.seed)
    sides: dict[str, list[_File]] = {TRAIN: [], HELD_OUT: []}
    for unit, file in zip(units, survey.files, strict=True):
        sides[HELD_OUT if unit.name in held_out else TRAIN].append(file)
    return sides


def _why(drops: Sequence[Drop]) -> str:
    counts = Counter(drop.reason for drop in drops).most_common(4)
    return f" (left out: {', '.join(f'{count} {reason}' for reason, count in counts)})" if counts else ""


def _told(layout: Layout, section: DatasetSection) -> str:
    if layout.fill is None:
        return "The model's tokenizer has no fill-in-the-middle tokens: every sample is written from left to right."
    return f"{section.fim_rate:.0%} of the training samples are filled in the middle, in the manner of {layout.name}."


def _samples(git_dir: Path, split: str, files: list[_File], renderer: Renderer, stages: Stages) -> list[Sample]:
    """The samples of a split; `Sample.document` is the index into `files`."""
    stages.start("tokenise", f"Tokenising {len(files)} files ({split.replace('_', ' ')}).")
    samples: list[Sample] = []
    done, total = 0, sum(file.bytes for file in files)
    for first, documents in _batches(git_dir, split, files):
        stages.check()
        samples += [Sample(sample.ids, sample.mode, first + sample.document) for sample in renderer.render(documents)]
        done += sum(file.bytes for file in files[first : first + len(documents)])
        stages.progress(done, total, "bytes")
    if not samples:
        raise DatasetError(f"The {split.replace('_', ' ')} files give no tokens: widen dataset.include.")
    return samples


def _batches(git_dir: Path, split: str, files: Sequence[_File]) -> Iterator[tuple[int, list[Document]]]:
    """The index of the first file and the texts of some files, read a second time: all texts may not fit in memory."""
    batch: list[Document] = []
    size = 0
    for index, (_, content) in enumerate(repository.read_blobs(git_dir, [file.blob for file in files])):
        batch.append(Document(files[index].path, str(decode(content)), held_out=split == HELD_OUT))
        size += len(content)
        if size >= _BATCH_BYTES or index == len(files) - 1:
            yield index - len(batch) + 1, batch
            batch, size = [], 0


def _packed(
    sides: dict[str, list[_File]], samples: dict[str, list[Sample]], section: DatasetSection, stages: Stages
) -> list[_Split]:
    stages.start("pack")
    splits = []
    for name in SPLITS:
        rows = pack([len(sample.ids) for sample in samples[name]], section.sequence_length)
        rows.sort(key=lambda row, name=name: _shuffled(section.seed, name, row))  # type: ignore[misc]
        splits.append(_Split(name, sides[name], samples[name], rows))
        stages.check()
    return splits


def _shuffled(seed: int, split: str, row: Sequence[int]) -> bytes:
    """A sort key that is as good as chance: packing leaves the longest documents first."""
    key = f"{split} {row[0]}".encode()
    return hashlib.blake2b(key, digest_size=16, key=seed.to_bytes(16, "little"), person=b"rows").digest()


def _write_splits(
    folder: Path, splits: Iterable[_Split], section: DatasetSection, vocabulary: Vocabulary, stages: Stages
) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for split in splits:
        with ShardWriter(folder, split.name, section.sequence_length, dtype_name(vocabulary.size)) as writer:
            for done, row in enumerate(split.rows, 1):
                stages.progress(done, len(split.rows), "rows")
                ids, flags = _row([split.samples[index].ids for index in row], section.sequence_length, vocabulary)
                writer.append(ids, flags)
        files |= writer.files
    return files


def _row(documents: Sequence[Any], length: int, vocabulary: Vocabulary) -> tuple[Any, Any]:
    """Ids and flags [length] of documents one after the other, then padding as a document that is not learned."""
    ids = np.full(length, vocabulary.padding, np.int64)
    flags = np.zeros(length, np.uint8)
    place = 0
    for document in documents:
        ids[place : place + len(document)] = document
        flags[place : place + len(document)] = LABEL
        flags[place] = DOCUMENT_START
        place += len(document)
    if place < length:
        flags[place] = DOCUMENT_START
    return ids, flags


def _about(
    source: Source, git_dir: Path, section: DatasetSection, vocabulary: Vocabulary, layout: Layout
) -> dict[str, Any]:
    """The part of the manifest that says what the dataset was made of."""
    return {
        "source": {"repository": repository.shown(source.repository), "shallow": repository.is_shallow(git_dir)},
        "commit": source.commit,
        "config": section.model_dump(mode="json"),
        "tokenizer": {
            "sha256": vocabulary.sha256,
            "vocabulary_size": vocabulary.size,
            "document_end": vocabulary.end,
            "padding": vocabulary.padding,
            "layout": layout.name,
        },
        "dtype": dtype_name(vocabulary.size),
        "sequence_length": section.sequence_length,
        "versions": {name: metadata.version(name) for name in ("repotune", "tokenizers", "numpy")},
    }


def _write_reports(
    folder: Path, survey: _Survey, splits: Sequence[_Split], layout: Layout, section: DatasetSection
) -> None:
    with (folder / DROPS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(drop)) + "\n" for drop in survey.drops)
    stats = {
        **_counts(survey),
        "languages": _languages(splits),
        "splits": {split.name: _split_stats(split, section.sequence_length) for split in splits},
        "fill_in_the_middle": {
            "layout": layout.name,
            "supported": layout.fill is not None,
            "held_out": "never: held-out files are written from left to right, so that losses can be compared",
        },
    }
    (folder / STATS).write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")


def _counts(survey: _Survey) -> dict[str, Any]:
    """Files and bytes in, kept, and left out by reason."""
    kept = {"files": len(survey.files), "bytes": sum(file.bytes for file in survey.files)}
    dropped = {"files": len(survey.drops), "bytes": sum(max(0, drop.bytes) for drop in survey.drops)}
    reasons = Counter(drop.reason for drop in survey.drops)
    return {
        "in": {name: kept[name] + dropped[name] for name in kept},
        "kept": kept,
        "dropped": {**dropped, "reasons": {str(reason): reasons[reason] for reason in sorted(reasons)}},
    }


def _languages(splits: Iterable[_Split]) -> dict[str, dict[str, int]]:
    """Files, bytes and tokens of every language, the most tokens first."""
    counts: dict[str, Counter[str]] = {}
    for split in splits:
        for file in split.files:
            counts.setdefault(language_of(file.path), Counter()).update(files=1, bytes=file.bytes)
        for sample in split.samples:
            counts[language_of(split.files[sample.document].path)]["tokens"] += len(sample.ids)
    order = sorted(counts, key=lambda language: (-counts[language]["tokens"], language))
    return {language: dict(counts[language]) for language in order}


def _split_stats(split: _Split, sequence_length: int) -> dict[str, Any]:
    modes = Counter(sample.mode for sample in split.samples)
    return {
        "files": len(split.files),
        "bytes": sum(file.bytes for file in split.files),
        "samples": len(split.samples),
        "tokens": split.tokens,
        "rows": len(split.rows),
        "packing": round(split.tokens / (len(split.rows) * sequence_length), 6),
        "modes": {str(mode): modes[mode] for mode in Mode},
        "lengths": _histogram(split.samples),
    }


def _histogram(samples: Iterable[Sample]) -> dict[str, int]:
    """Samples by length; a key is the largest length that it counts, a power of two."""
    counts = Counter(max(0, len(sample.ids) - 1).bit_length() for sample in samples)
    return {str(1 << power): counts[power] for power in sorted(counts)}


def _result(
    source: Source, git_dir: Path, survey: _Survey, splits: Sequence[_Split], section: DatasetSection
) -> dict[str, Any]:
    train, held_out = splits
    return {
        "commit": source.commit,
        "files": len(survey.files),
        "dropped_files": len(survey.drops),
        "samples": sum(len(split.samples) for split in splits),
        "train_tokens": train.tokens,
        "held_out_tokens": held_out.tokens,
        "train_rows": len(train.rows),
        "held_out_rows": len(held_out.rows),
        "sequence_length": section.sequence_length,
        "fim": any(sample.mode is not Mode.PLAIN for sample in train.samples),
        "shallow": repository.is_shallow(git_dir),
    }
