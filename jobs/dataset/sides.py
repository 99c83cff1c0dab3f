"""Divides what a commit holds into what is trained on and what is held out, so that neither knows the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.nearness import clusters, contained
from jobs.dataset.split import Unit, held_out_names
from jobs.dataset.survey import Survey, why_left_out
from jobs.shards import DatasetError
from jobs.spec import DatasetSection
from jobs.stages import Stages

#: Runs of words that more files than this, and more than this share of them, have in common say nothing of a copy.
COMMON_FILES, COMMON_SHARE = 10, 0.01


@dataclass(frozen=True)
class Sides:
    """Indices into a survey's files."""

    code: list[int]
    docs: list[int]
    held_out: list[int]
    #: Lineages that no training sample may touch.
    held_out_lineages: frozenset[bytes]
    #: Groups of near copies, and the files in them.
    groups: int
    near_copies: int


def divide(survey: Survey, lineages: Sequence[bytes], section: DatasetSection, stages: Stages) -> Sides:
    """Hold out whole groups: files of one lineage, near copies of each other, or largely one within the other.

    Args:
        survey: of every repository.
        lineages: of every file, the name of its lineage, the same for files of different repositories if they are one.
        section: how much is held out, and by which seed.
        stages: of the build.

    Raises:
        DatasetError: there is nothing to learn from, or too little to divide.
    """
    if not survey.files:
        raise DatasetError(f"The commit has no file to learn from{why_left_out(survey)}: widen dataset.include.")
    stages.start("deduplicate", f"Looking for near copies among {len(survey.files)} files.")
    groups = clusters(survey.near)
    stages.start("split", f"{len(groups)} groups of near copies stay together, {sum(map(len, groups))} files.")
    origins = [lineage.decode("latin-1") for lineage in lineages]
    keys = [[f"text {file.digest}", f"lineage {name}"] for file, name in zip(survey.files, origins, strict=True)]
    for number, group in enumerate(groups):
        for index in group:
            keys[index].append(f"near {number}")
    for one, other, _ in contained(survey.leak, section.max_overlap):
        keys[one].append(f"within {one} {other}")
        keys[other].append(f"within {one} {other}")
    units = [
        Unit(file.name, file.size, tuple(own), name)
        for file, own, name in zip(survey.files, keys, origins, strict=True)
    ]
    names = held_out_names(units, section.held_out, section.seed)
    code: list[int] = []
    docs: list[int] = []
    held_out: list[int] = []
    for index, file in enumerate(survey.files):
        (held_out if file.name in names else docs if file.documentation else code).append(index)
    lineages_out = frozenset(lineages[index] for index in held_out)
    return Sides(code, docs, held_out, lineages_out, len(groups), sum(map(len, groups)))


class Guard:
    """Keeps held-out files out of training: of each, all texts together may give away no more than a share."""

    def __init__(self, survey: Survey, sides: Sides, limit: float) -> None:
        common = common_runs(survey.leak)
        telling = [one[~np.isin(one, common)] for one in (survey.leak[index] for index in sides.held_out)]
        runs = np.concatenate([_NO_RUNS, *telling])
        order = np.argsort(runs, kind="stable")
        self._limit = limit
        self._sizes = np.array([max(1, len(one)) for one in telling])
        #: The runs of all held-out files, sorted, the file that each is of, and whether training has it.
        self._runs = runs[order]
        self._files = np.repeat(np.arange(len(telling)), [len(one) for one in telling])[order]
        self._known = np.zeros(len(runs), np.bool_)
        for index in [*sides.code, *sides.docs]:
            self._known[self._places(survey.leak[index])] = True
        self._counts = self._per_file(np.flatnonzero(self._known))

    def admits(self, leak: NDArray[np.uint64]) -> bool:
        """Whether a text may be learned, which then counts as learned.

        Args:
            leak: hashes of the runs of the text, sorted, each once.
        """
        places = self._places(leak)
        fresh = places[~self._known[places]]
        if not len(fresh):
            return True
        added = self._per_file(fresh)
        if ((added > 0) & (self._counts + added > self._limit * self._sizes)).any():
            return False
        self._known[fresh] = True
        self._counts += added
        return True

    def _places(self, leak: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where among the held-out runs those of a text are."""
        first = np.searchsorted(self._runs, leak)
        inside = first < len(self._runs)
        # Hardly any is found: only for those is it worth asking where they end.
        inside[inside] = self._runs[first[inside]] == leak[inside]
        last = np.searchsorted(self._runs, leak[inside], side="right")
        return np.concatenate([_NO_PLACES, *map(np.arange, first[inside], last)])

    def _per_file(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(self._files[places], minlength=len(self._sizes))


_NO_PLACES = np.zeros(0, np.int64)
_NO_RUNS = np.zeros(0, np.uint64)


def common_runs(sets: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Runs of words that many files have in common: licences and other boilerplate."""
    runs = np.sort(np.concatenate([_NO_RUNS, *sets]))
    starts = np.flatnonzero(np.concatenate([[True], runs[1:] != runs[:-1]])[: len(runs)])
    counts = np.diff(starts, append=len(runs))
    return runs[starts[counts > max(COMMON_FILES, COMMON_SHARE * len(sets))]]
