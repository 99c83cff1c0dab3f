"""Several repositories as one: what is held out of any of them is held out of all.

Their files are divided at once, under names that no two share. Of a family of repositories (`jobs.dataset.origin`) the
same path is the same file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from jobs.dataset.candidates import Candidates, History
from jobs.dataset.chronicle import Told
from jobs.dataset.files import Drop, Reason
from jobs.dataset.future import FutureFile
from jobs.dataset.history import Lineages
from jobs.dataset.mixing import FilePart, Item
from jobs.dataset.origin import Origin
from jobs.dataset.sides import Sides
from jobs.dataset.survey import LEAST_GUARDED, File, Survey, thinned

_Placed = TypeVar("_Placed", File, Drop, FilePart, Told, FutureFile)


@dataclass(frozen=True)
class Member:
    """A repository with what was found in it, and on which side each of its files lies."""

    origin: Origin
    survey: Survey
    history: History
    #: Of the whole family.
    lineages: Lineages
    code: list[File] = field(default_factory=list)
    docs: list[File] = field(default_factory=list)
    held_out: list[File] = field(default_factory=list)

    @property
    def attributes_key(self) -> str:
        """Of what its `.gitattributes` say."""
        return self.survey.attributes.key

    def lineage(self, path: bytes) -> bytes:
        """The name of a path's lineage, which no file of another family has."""
        return self.origin.family.encode("latin-1") + self.lineages.of(path)

    def labelled(self, one: _Placed) -> _Placed:
        """Under a path that tells people of which repository it is."""
        return replace(one, path=self.origin.label + one.path) if self.origin.label else one

    def labelled_item(self, item: Item) -> Item:
        """A sample whose files are labelled."""
        return replace(item, parts=tuple(map(self.labelled, item.parts)))


def members(origins: Sequence[Origin], surveys: Sequence[Survey], histories: Sequence[History]) -> list[Member]:
    """The repositories of a dataset, the renames of each family known to all of it."""
    families: dict[str, Lineages] = {}
    for origin, history in zip(origins, histories, strict=True):
        if origin.family in families:
            families[origin.family].learn(history.lineages)
        else:
            families[origin.family] = history.lineages
    return [
        Member(origin, survey, history, families[origin.family])
        for origin, survey, history in zip(origins, surveys, histories, strict=True)
    ]


def united_survey(all_: Sequence[Member]) -> Survey:
    """The files of all repositories, one repository after the other."""
    if len(all_) == 1:
        return all_[0].survey
    thin = max(member.survey.thin for member in all_)
    drops = [member.labelled(drop) for member in all_ for drop in member.survey.drops]
    drops.sort(key=lambda drop: (drop.path, drop.blob))
    united = Survey([], drops, all_[0].survey.attributes, [], [], [], thin)
    for member in all_:
        survey, origin = member.survey, member.origin
        sparse = thin > survey.thin
        united.files.extend(replace(member.labelled(file), name=origin.key + file.name) for file in survey.files)
        united.near.extend(thinned(one, thin) if sparse else one for one in survey.near)
        united.leak.extend(thinned(one, thin, LEAST_GUARDED) if sparse else one for one in survey.leak)
        united.licences.extend((origin.label + path, spdx) for path, spdx in survey.licences)
    return united


def united_history(all_: Sequence[Member]) -> History:
    """The counts of all histories; the commits themselves stay with their repositories."""
    if len(all_) == 1:
        return all_[0].history
    histories = [member.history for member in all_]
    return History(
        total=sum(one.total for one in histories),
        merges=sum(one.merges for one in histories),
        eligible=sum(one.eligible for one in histories),
        lineages=Lineages(),
        candidates=Candidates([]),
        reasons=sum((one.reasons for one in histories), Counter[str]()),
    )


def lineages(all_: Sequence[Member]) -> list[bytes]:
    """Of every file of the united survey, the name of its lineage."""
    return [member.lineage(file.raw) for member in all_ for file in member.survey.files]


def held_out_lineages(all_: Sequence[Member], sides: Sides) -> frozenset[bytes]:
    """Lineages that no sample may touch: also those of exact copies of held-out files, which were left out."""
    blobs = {file.blob for member in all_ for file in member.held_out}
    copies = {
        # A path whose bytes are shown otherwise is missed here; what holds much of its text is refused all the same.
        member.lineage(drop.path.encode())
        for member in all_
        for drop in member.survey.drops
        if drop.reason is Reason.DUPLICATE and drop.blob in blobs
    }
    return sides.held_out_lineages | copies


def with_sides(all_: Sequence[Member], sides: Sides) -> list[Member]:
    """The repositories, each with its own part of the division."""
    told = []
    start = 0
    for member in all_:
        files = member.survey.files
        mine = range(start, start + len(files))
        code, docs, held_out = (
            [files[index - start] for index in indices if index in mine]
            for indices in (sides.code, sides.docs, sides.held_out)
        )
        if not code:
            code, docs = docs, []  # a repository of prose: its prose is what is learned
        told.append(replace(member, code=code, docs=docs, held_out=held_out))
        start = mine.stop
    return told
