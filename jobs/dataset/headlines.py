"""The numbers of a dataset that are read first; those that are not known are left out."""

from dataclasses import dataclass

from jobs.chart import number
from jobs.dataset.amounts import duration, percent, several, size
from jobs.dataset.facts import Facts

#: The splits in their order, with the words for them.
SPLITS = {"train": "Training", "held_out": "Held out", "future": "Future"}


def split_place(split: str) -> int:
    """The place of a split among others, training first; unknown ones come last."""
    return [*SPLITS].index(split) if split in SPLITS else len(SPLITS)


@dataclass(frozen=True)
class Headline:
    """A number that is read first."""

    name: str
    value: str
    note: str


def headlines(manifest: Facts, stats: Facts, timing: Facts) -> list[Headline]:
    """The headlines of a dataset."""
    seconds = sum(stage.number("seconds") for stage in timing.rows("stages"))
    found = [
        *(_split_headline(stats, split) for split in SPLITS),
        _of(stats, "Files learned", ("kept", "files"), ("in", "files")),
        _of(stats, "Commits learned", ("commits", "used"), ("commits", "total")),
        _packing_headline(stats, manifest),
        _overlap_headline(stats),
        _redaction_headline(stats),
        Headline("Time", duration(seconds), _peak(timing)) if seconds else None,
    ]
    return [headline for headline in found if headline]


def _split_headline(stats: Facts, split: str) -> Headline | None:
    counts = stats.at("splits", split)
    if not counts:
        return None
    return Headline(f"{SPLITS[split]} tokens", number(counts.number("tokens")), several(counts.number("rows"), "row"))


def _of(stats: Facts, name: str, part: tuple[str, ...], whole: tuple[str, ...]) -> Headline | None:
    if not stats.at(*whole):
        return None
    return Headline(name, number(stats.number(*part)), f"of {number(stats.number(*whole))}")


def _packing_headline(stats: Facts, manifest: Facts) -> Headline | None:
    share = stats.number("splits", "train", "packing")
    length = manifest.number("sequence_length")
    note = f"rows of {number(length)} tokens" if length else "of every row"
    return Headline("Row use", percent(share), note) if share else None


def _overlap_headline(stats: Facts) -> Headline | None:
    if not stats.at("overlap", "held_out", "share"):
        return None
    return Headline("Overlap", percent(stats.number("overlap", "held_out", "share")), "of held-out text is in training")


def _redaction_headline(stats: Facts) -> Headline | None:
    if not stats.at("redactions"):
        return None
    return Headline("Redacted", number(_redacted(stats)), "values are kept nowhere")


def _redacted(stats: Facts) -> float:
    return stats.number("redactions", "total") or sum(stats.numbers("redactions", "rules").values())


def _peak(timing: Facts) -> str:
    peak = timing.number("peak_bytes")
    return f"peak memory {size(peak)}" if peak else ""
