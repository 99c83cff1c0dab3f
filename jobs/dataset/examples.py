"""A few samples of a dataset as people can read them, special tokens and what carries no label told apart."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jobs.dataset.lots import lot
from jobs.dataset.mixing import Item
from jobs.dataset.remembered import RememberedVocabulary
from jobs.dataset.writing import Split

EXAMPLES = "examples.json"
#: Of each split, kind and mode.
_EACH = 3
_MOST = 24


def examples(splits: Sequence[Split], vocabulary: RememberedVocabulary, seed: int) -> list[dict[str, Any]]:
    """Some of every split, kind and mode, drawn by lot; one of each first."""
    groups: dict[tuple[str, str, str], list[tuple[int, str, Item]]] = {}
    for split in splits:
        for item in split.items:
            sample = item.sample
            name = f"{item.path}\0{item.commit}\0{sample.start}"
            place = groups.setdefault((split.name, str(sample.kind), str(sample.mode)), [])
            place.append((lot(seed, name), split.name, item))
    drawn = [sorted(group, key=lambda one: one[0])[:_EACH] for _, group in sorted(groups.items())]
    ordered = [group[turn] for turn in range(_EACH) for group in drawn if turn < len(group)]
    return [_example(split, item, vocabulary) for _, split, item in ordered[:_MOST]]


def _example(split: str, item: Item, vocabulary: RememberedVocabulary) -> dict[str, Any]:
    # The page and the terminal show one path.
    about = {name: value for name, value in item.about.items() if name != "paths"}
    return {"split": split, "path": item.path, **about, "pieces": _pieces(item, vocabulary)}


def _pieces(item: Item, vocabulary: RememberedVocabulary) -> list[dict[str, Any]]:
    sample = item.sample
    labels = sample.learned
    special = vocabulary.is_special(sample.ids)
    pieces = []
    for (is_special, label), run in groupby(range(len(sample.ids)), lambda at: (bool(special[at]), bool(labels[at]))):
        ids = sample.ids[list(run)]
        texts = (
            [vocabulary.decode(ids[at : at + 1]) for at in range(len(ids))] if is_special else [vocabulary.decode(ids)]
        )
        pieces += [{"text": text, "special": is_special, "label": label} for text in texts]
    return pieces
