"""Evaluation: base and adapter on the same held-out rows and newer commits, and on the same completions.

What is measured is drawn by lot from the dataset alone, so the same model and dataset give the same numbers; a limit of
time can only end it sooner, and what was done is part of the result.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from backends.generation import complete, evaluating, side
from jobs import shards
from jobs.checkpoint import write_json
from jobs.completions import Completion, completed_line, ends_of_line, exact, similarity
from jobs.context import JobContext, StopRequested
from jobs.dataset.fim import Layout
from jobs.dataset.languages import language_of
from jobs.dataset.tokens import Vocabulary
from jobs.documents import Piece, by_row, read_pieces
from jobs.evaluation import NoHeldOutRows, evaluation_rows
from jobs.events import Evaluated, Note, Scores, StageStarted
from jobs.loss import NextTokenLoss, make_batch
from jobs.prompts import FILL, Prompt, Source, lot, prompts
from jobs.scores import ADAPTER, BASE, Tally, scores
from jobs.shards import PackedDataset
from jobs.snapshot import dataset_sha256
from jobs.spec import Config, EvaluationSection
from jobs.stages import throttled_progress
from jobs.time_limit import TimeLimit

FILE = "evaluation.json"
FORMAT = 1
#: Measured first, as it says most: code that nobody had written when training ended.
SPLITS = (shards.FUTURE, shards.HELD_OUT)
#: Share of the time in which losses are measured; completions take the rest.
_LOSS_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated."""

    #: Of a PEFT model on its device.
    loss: NextTokenLoss
    #: `torch.device`
    device: Any
    #: The model's own.
    tokenizer: Any
    vocabulary: Vocabulary
    layout: Layout
    #: What people are told of the base: model, revision, quantization…
    base: Mapping[str, Any]
    #: And of the adapter; None measures the base alone.
    adapter: Mapping[str, Any] | None
    #: Optimizer steps that the adapter was trained for; 0 where that is not known.
    step: int = 0

    @property
    def sides(self) -> tuple[str, ...]:
        """What is measured."""
        return (BASE,) if self.adapter is None else (BASE, ADAPTER)


def base_facts(config: Config, device: str) -> dict[str, Any]:
    """What people are told of the base that `config` names."""
    return {
        "model": config.model.name,
        "revision": config.model.revision,
        "quantization": config.quantization.kind,
        "group_size": config.quantization.scale_group,
        "compute": config.quantization.compute,
        "device": device,
    }


def evaluate_loaded(
    subject: Subject, data: PackedDataset, section: EvaluationSection, context: JobContext, limit: TimeLimit
) -> dict[str, Any]:
    """Measure, and tell of it.

    Args:
        subject: A loaded model.
        data: Whose held-out rows and newer commits are measured.
        section: How much of them.
        context: Whom to tell, when to stop.
        limit: Time after which nothing further is begun, but the first row of each split.

    Returns:
        What `evaluation.json` holds.

    Raises:
        NoHeldOutRows: there is nothing to measure on.
        DatasetError: the dataset's table of samples cannot be read.
        StopRequested: asked to leave.
    """
    known = read_pieces(data.folder)
    session = _Session(subject, data, known, context, limit)
    context.emit(StageStarted(stage="evaluate", message="base and adapter" if subject.adapter else "base"))
    with evaluating(subject.loss.model):
        session.measure_losses(_chosen_rows(data, section))
        session.complete(section)
    result = session.result(section)
    _tell(result, subject, context)
    return result


def write_evaluation(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write `evaluation.json`, in place of one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, result)
    return folder / FILE


def _chosen_rows(data: PackedDataset, section: EvaluationSection) -> dict[str, list[int]]:
    """Rows of each split that has some: evenly spaced, as files lie side by side, and in an order drawn by lot."""
    wanted = {shards.FUTURE: section.future_rows, shards.HELD_OUT: section.rows}
    chosen: dict[str, list[int]] = {}
    for split in SPLITS:
        if len(data.split(split)) and wanted[split]:
            rows = evaluation_rows(len(data.split(split)), wanted[split])
            lots = {row: lot(f"{split} {row}") for row in rows}
            chosen[split] = sorted(rows, key=lots.__getitem__)
    if not chosen:
        raise NoHeldOutRows(
            "The dataset has nothing to measure on, neither held-out rows nor newer commits: "
            "raise dataset.held_out and build it again."
        )
    return chosen


class _Session:
    """One evaluation: what was counted so far."""

    def __init__(
        self,
        subject: Subject,
        data: PackedDataset,
        pieces: Mapping[str, Sequence[Piece]],
        context: JobContext,
        limit: TimeLimit,
    ) -> None:
        self._subject, self._data, self._pieces = subject, data, pieces
        self._context, self._limit = context, limit
        self._tallies: dict[str, dict[str, Tally]] = {split: {} for split in SPLITS}
        self._rows: dict[str, dict[str, int]] = {}
        self._completions: list[tuple[str, Completion]] = []
        self._wanted_completions = 0

    def measure_losses(self, chosen: Mapping[str, Sequence[int]]) -> None:
        """The loss of each document, the splits in turn; the first row of each whatever the time."""
        self._rows = {
            split: {"done": 0, "wanted": len(rows), "available": len(self._data.split(split))}
            for split, rows in chosen.items()
        }
        total = sum(map(len, chosen.values()))
        tell = throttled_progress(self._context, "evaluate", "rows", total=total)
        of_rows = {split: by_row(self._pieces.get(split, ())) for split in chosen}
        for done, (split, row) in enumerate(_in_turn(chosen), 1):
            self._check()
            if self._rows[split]["done"] and self._limit.is_over(_LOSS_SHARE):
                continue
            self._measure(split, row, of_rows[split].get(row, ()))
            self._rows[split]["done"] += 1
            tell(done)

    def _measure(self, split: str, number: int, pieces: Sequence[Piece]) -> None:
        row, subject = self._data.split(split)[number], self._subject
        labelled = shards.labels(row.ids, row.flags) != shards.IGNORED
        labelled[0] = False  # nothing stands before it
        sizes = np.where(labelled, subject.vocabulary.bytes_of(row.ids), 0)
        for name in subject.sides:
            with side(subject.loss.model, adapter=name == ADAPTER):
                losses = subject.loss.by_token(make_batch([row], subject.device))[0].cpu().double().numpy()
            for piece in pieces:
                self._tally(split, piece.path).sums[name]["nats"] += float(losses[piece.span].sum())
        for piece in pieces:
            counts = self._tally(split, piece.path).counts
            counts["tokens"] += int(labelled[piece.span].sum())
            counts["bytes"] += int(sizes[piece.span].sum())

    def complete(self, section: EvaluationSection) -> None:
        """Complete as many prompts as are asked for and the time allows."""
        wanted = self._prompts(section)
        tell = throttled_progress(self._context, "evaluate", "completions", total=len(wanted))
        self._wanted_completions = len(wanted)
        subject = self._subject
        for done, (split, prompt) in enumerate(wanted, 1):
            self._check()
            if self._limit.is_over():
                return
            found = Completion(prompt, {name: self._said(prompt, name) for name in subject.sides})
            self._completions.append((split, found))
            self._count(self._tally(split, prompt.path), found)
            tell(done)

    def _said(self, prompt: Prompt, name: str) -> str:
        """The line that one side gives."""
        subject = self._subject
        new = complete(
            subject.loss.model,
            subject.tokenizer,
            [prompt.ids],
            new_tokens=prompt.room,
            stop=ends_of_line(subject.vocabulary, subject.layout),
            adapter=name == ADAPTER,
        )[0]
        return completed_line(subject.vocabulary, prompt.ids, new)

    def _prompts(self, section: EvaluationSection) -> list[tuple[str, Prompt]]:
        """Places of both splits in turn, so that a limit of time leaves some of each."""
        places: dict[str, list[list[Prompt]]] = {}
        share = math.ceil(section.prompts / max(1, len(self._rows)))
        for split in self._rows:
            source = Source(
                self._data.split(split),
                self._subject.vocabulary,
                self._subject.layout,
                self._data.sequence_length,
                section.new_tokens,
            )
            found = prompts(self._pieces.get(split, ()), source)
            places[split] = [place for _, place in zip(range(share), found, strict=False)]
        chosen = list(_in_turn(places))[: section.prompts]
        return [(split, prompt) for split, place in chosen for prompt in place]

    def _count(self, tally: Tally, found: Completion) -> None:
        fills = found.prompt.kind == FILL
        tally.counts["fills" if fills else "next_lines"] += 1
        for name, said in found.said.items():
            tally.sums[name]["fim_exact" if fills else "next_line_exact"] += exact(said, found.prompt.truth)
            if fills:
                tally.sums[name]["fim_similarity"] += similarity(said, found.prompt.truth)

    def _tally(self, split: str, path: str) -> Tally:
        return self._tallies[split].setdefault(path, Tally(language_of(path)))

    def _check(self) -> None:
        if self._context.should_stop():
            raise StopRequested

    def result(self, section: EvaluationSection) -> dict[str, Any]:
        """As `evaluation.json` holds it."""
        subject = self._subject
        return {
            "format": FORMAT,
            "dataset_sha256": dataset_sha256(self._data.manifest),
            "base": dict(subject.base),
            "adapter": None if subject.adapter is None else dict(subject.adapter),
            "splits": {
                split: scores(self._tallies[split].values(), subject.sides, section.resamples)
                for split in sorted(self._rows)
            },
            "samples": self._samples(section.samples),
            "bounds": self._bounds(section),
        }

    def _samples(self, most: int) -> list[dict[str, str]]:
        known = self._completions
        chosen = evaluation_rows(len(known), most) if known and most else []
        return [_sample(*known[number]) for number in chosen]

    def _bounds(self, section: EvaluationSection) -> dict[str, Any]:
        done = len(self._completions)
        whole = done == self._wanted_completions and all(rows["done"] == rows["wanted"] for rows in self._rows.values())
        return {
            "rows": self._rows,
            "completions": {"done": done, "wanted": self._wanted_completions},
            "new_tokens": section.new_tokens,
            "resamples": section.resamples,
            "seconds": round(self._limit.seconds, 1),
            "done": whole,
        }


def _in_turn(lists: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Any]]:
    """The first of each, the second of each…, with the name of its list."""
    for together in zip_longest(*lists.values()):
        yield from ((name, item) for name, item in zip(lists, together, strict=True) if item is not None)


def _sample(split: str, found: Completion) -> dict[str, str]:
    prompt = found.prompt
    return {
        "path": prompt.path,
        "split": split,
        "kind": prompt.kind,
        "prompt_tail": prompt.tail,
        "truth": prompt.truth,
        **found.said,
    }


def _tell(result: Mapping[str, Any], subject: Subject, context: JobContext) -> None:
    for split, found in result["splits"].items():
        numbers = {name: _measured(found[name]) for name in subject.sides}
        if ADAPTER in numbers:
            context.emit(Scores(split=split, base=numbers[BASE], adapter=numbers[ADAPTER]))
        last = numbers[subject.sides[-1]]
        # Of a step of a training: 0 would mean its base.
        if split == shards.FUTURE and subject.step and "loss" in last:
            context.emit(
                Evaluated(
                    step=subject.step,
                    loss=last["loss"],
                    perplexity=last.get("perplexity", math.inf),
                    tokens=found["tokens"],
                    split=split,
                )
            )
    context.emit(Note(message=done_sentence(result["bounds"])))


def _measured(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value is not None}


def done_sentence(bounds: Mapping[str, Any]) -> str:
    """What was measured, for people."""
    words = {shards.FUTURE: "rows of newer commits", shards.HELD_OUT: "held-out rows"}
    parts = [_of(rows, words[split]) for split, rows in bounds["rows"].items()]
    parts.append(_of(bounds["completions"], "completions"))
    cut = "" if bounds["done"] else f"; the {bounds['seconds']:.0f} s that evaluation may take were over"
    return f"Evaluated {', '.join(parts)}{cut}"


def _of(part: Mapping[str, int], what: str) -> str:
    count = str(part["done"]) if part["done"] == part["wanted"] else f"{part['done']} of {part['wanted']}"
    return f"{count} {what}"
