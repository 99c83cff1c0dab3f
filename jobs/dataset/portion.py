"""What one repository gives to training: samples of its code, its documentation and its commits.

Where repositories have weights, each gives as many tokens as its weight says, by leaving out: of code whole documents
by lot, of the other kinds those that were drawn last.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from jobs.dataset import mixing
from jobs.dataset.cache import Cache
from jobs.dataset.candidates import Learned, apart_from
from jobs.dataset.chronicle import MOST_BYTES, Chronicler, Told
from jobs.dataset.commits import CommitRenderer
from jobs.dataset.fim import Layout
from jobs.dataset.lots import lot
from jobs.dataset.mixing import Item, Shares, by_lot, code_limit, commit_items, file_items, until
from jobs.dataset.reading import Reader
from jobs.dataset.redaction import Redactor
from jobs.dataset.remembered import RememberedVocabulary
from jobs.dataset.samples import Renderer, SampleKind
from jobs.dataset.sides import Guard
from jobs.dataset.survey import File, texts
from jobs.dataset.union import Member
from jobs.shards import DatasetError
from jobs.spec import DatasetSection
from jobs.stages import Stages


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the samples of every repository are made with."""

    section: DatasetSection
    vocabulary: RememberedVocabulary
    layout: Layout
    redactor: Redactor
    cache: Cache
    stages: Stages


@dataclass(frozen=True)
class Portion:
    """What one repository gives to training."""

    code: list[Item]
    docs: list[Item]
    told: list[Told]
    #: Why commits that could have been learned are not.
    commit_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def items(self) -> list[Item]:
        """All samples."""
        return [*self.code, *self.docs, *(item for one in self.told for item in commit_items(one))]

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return mixing.tokens(self.items)

    def cut_to(self, share: float, seed: int) -> "Portion":
        """The given share of every kind, by leaving out."""
        drawn = sorted(range(len(self.code)), key=lambda place: (lot(seed, self.code[place].path), place))
        sizes = [len(self.code[place].sample.ids) for place in drawn]
        code, missed = _nearest(sizes, sum(sizes) * share)
        sizes = [len(item.sample.ids) for item in self.docs]
        docs, missed = _nearest(sizes, sum(sizes) * share + missed)
        sizes = [_told_tokens(one) for one in self.told]
        told, _ = _nearest(sizes, sum(sizes) * share + missed)
        left = Counter({"not needed for the share of commits": len(self.told) - len(told)})
        return Portion(
            [self.code[place] for place in sorted(drawn[number] for number in code)],
            [self.docs[place] for place in docs],
            [self.told[place] for place in told],
            self.commit_reasons + left,
        )


def _told_tokens(told: Told) -> int:
    return sum(len(sample.ids) for sample in told.samples)


def _nearest(sizes: Sequence[int], wanted: float) -> tuple[list[int], float]:
    """Places of sizes, the first ones first, whose sum is about what is wanted, and what is missed then."""
    chosen: list[int] = []
    for place, size in enumerate(sizes):
        # Taken where that leaves less to miss than leaving it would.
        if size < 2 * wanted:
            chosen.append(place)
            wanted -= size
    return chosen, wanted


def weighed(portions: Sequence[Portion], weights: Sequence[float | None], section: DatasetSection) -> list[Portion]:
    """The portions cut so that their tokens stand in the ratio of their weights.

    The one that is smallest for its weight is used whole; one without a weight always is. All are cut alike where
    together they would exceed `dataset.tokens`.
    """
    tokens = [portion.tokens for portion in portions]
    scale = min(count / weight for count, weight in zip(tokens, weights, strict=True) if weight is not None)
    wanted = [
        float(count) if weight is None else min(count, weight * scale)
        for count, weight in zip(tokens, weights, strict=True)
    ]
    most = min(1.0, (section.tokens or sum(wanted)) / max(1.0, sum(wanted)))
    cut = [
        portion if most * want >= count else portion.cut_to(most * want / count, section.seed)
        for portion, want, count in zip(portions, wanted, tokens, strict=True)
    ]
    if not all(portion.tokens for portion in cut):
        raise DatasetError(
            "The weights leave nothing of one of the repositories: bring them nearer to each other, or leave it out."
        )
    return cut


class Teller:
    """Makes samples of one repository."""

    def __init__(self, tools: Tools, member: Member, learned: Learned) -> None:
        self.member = member
        self.renderer = Renderer(tools.vocabulary, tools.layout, member.origin.name, tools.section)
        self._tools = tools
        self._learned = learned

    def portion(self, held_out: frozenset[bytes], guard: Guard) -> Portion:
        """What is trained on.

        Args:
            held_out: lineages that no sample may touch.
            guard: tells what would give away a held-out file.
        """
        section, member = self._tools.section, self.member
        code = self._items(member.code, SampleKind.CONTEXT, code_limit(section))
        shares = Shares.of(section, mixing.tokens(code))
        docs = self._items(member.docs, SampleKind.DOCS, shares.docs)
        told, reasons = self._commits(held_out, guard, shares.commits)
        return Portion(code, docs, told, reasons)

    def held_out(self) -> list[Item]:
        """What files are measured by."""
        items: list[Item] = []
        for kind, documentation in ((SampleKind.CONTEXT, False), (SampleKind.DOCS, True)):
            part = [file for file in self.member.held_out if file.documentation is documentation]
            items += until(self._progressing(part, kind, held_out=True), None)
        return items

    def _items(self, files: Sequence[File], kind: SampleKind, limit: int | None) -> list[Item]:
        """Samples of files that are trained on: of all, in their order, or of those drawn by lot up to a limit."""
        if limit == 0:
            return []
        chosen = files if limit is None else by_lot(files, self._tools.section.seed)
        return until(self._progressing(chosen, kind, held_out=False), limit)

    def _progressing(self, files: Sequence[File], kind: SampleKind, *, held_out: bool) -> Iterator[list[Item]]:
        if not files:
            return
        stages = self._tools.stages
        name = "held out" if held_out else str(kind)
        stages.start("tokenise", f"Tokenising {len(files)} files ({name}).")
        read = partial(texts, reader=self.member.origin.reader)
        done = 0
        for batch in file_items(files, kind, self.renderer, read, held_out=held_out):
            done += len({item.path for item in batch})
            stages.progress(min(done, len(files)), len(files), "files")
            yield [self.member.labelled_item(item) for item in batch]

    def _commits(self, held_out: frozenset[bytes], guard: Guard, limit: int) -> tuple[list[Told], Counter[str]]:
        """Commits that are trained on, and why those tried on the way are not."""
        stages, history = self._tools.stages, self.member.history
        stages.start("commits", f"Choosing among {len(history.candidates)} commits.")
        chronicler = self._chronicler()
        apart = apart_from(history.candidates, self.member.lineage, held_out)
        chronicler.reasons["touches a held-out file"] += len(history.candidates) - len(apart)
        chosen: list[Told] = []
        count = 0

        def came() -> float:
            return min(1.0, count / max(1, limit))

        for told in chronicler.tell(apart if limit else [], stages, came):
            stages.progress(min(count, limit), limit, "tokens")
            if count >= limit:
                break
            if not guard.admits(told.leak):
                chronicler.reasons["holds a held-out file's text"] += 1
                continue
            chosen.append(self.member.labelled(told))
            count += _told_tokens(told)
        left = history.eligible - len(chosen) - chronicler.reasons.total()
        chronicler.reasons["not needed for the share of commits"] = left
        return chosen, +chronicler.reasons

    def _chronicler(self) -> Chronicler:
        tools, origin = self._tools, self.member.origin
        section = tools.section.model_copy(
            update={"max_file_bytes": min(MOST_BYTES, tools.section.max_file_bytes), "also": ()}
        )
        return Chronicler(
            reader=Reader(origin.git_dir, section, tools.redactor, tools.cache),
            redactor=tools.redactor,
            renderer=CommitRenderer(tools.vocabulary, tools.layout, origin.name, section),
            learned=self._learned,
            cache=tools.cache,
            identity=(
                tools.vocabulary.sha256,
                tools.vocabulary.libraries,
                tools.layout,
                origin.name,
                tools.redactor.version,
                section.model_dump_json(),
                self.member.attributes_key,
            ),
        )
