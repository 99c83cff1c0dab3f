"""The dataset job: commits, and the histories behind them, become packed rows of token ids.

    resolve -> enumerate -> read -> redact -> filter -> history -> deduplicate -> split -> render -> tokenise -> commits
    -> future -> pack -> write -> report

Three splits: what is trained on, whole lineages of files that are held out, and the future: what the newest commits
added, which training never sees. The same commit, configuration, tokenizer and versions of libraries give the same
bytes. The output folder appears whole or not at all; a rebuild takes from the cache what it worked out before.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs import repository
from jobs.context import JobContext
from jobs.dataset import mixing
from jobs.dataset.cache import Cache
from jobs.dataset.candidates import History, Learned, read_candidates
from jobs.dataset.chronicle import Told
from jobs.dataset.examples import EXAMPLES, examples
from jobs.dataset.fim import Layout, layout_of
from jobs.dataset.future import Future, FutureFile, future_files, measured, united
from jobs.dataset.identity import identity
from jobs.dataset.manifest import manifest, result
from jobs.dataset.mixing import Item
from jobs.dataset.origin import Origin, open_origins
from jobs.dataset.overlap import Overlap, OverlapReport
from jobs.dataset.portion import Portion, Teller, Tools, weighed
from jobs.dataset.reading import LEAK_WORDS, Reader, summed
from jobs.dataset.redaction import Redactor
from jobs.dataset.remembered import RememberedVocabulary
from jobs.dataset.report import write_report
from jobs.dataset.sides import Guard, Sides, common_runs, divide
from jobs.dataset.stats import Findings, stats
from jobs.dataset.stopwatch import Stopwatch
from jobs.dataset.survey import Survey, read_attributes, survey_files, why_left_out
from jobs.dataset.tokens import Vocabulary
from jobs.dataset.union import Member, held_out_lineages, lineages, members, united_history, united_survey, with_sides
from jobs.dataset.writing import Split, write_drops, write_samples, write_splits
from jobs.shards import FUTURE, HELD_OUT, TRAIN, DatasetError, write_manifest
from jobs.spec import Config, DatasetSection, Source
from jobs.workplace import workplace

STATS = "stats.json"
TIMING = "timing.json"

#: The future split is a measure, not a copy of the repository: it ends at this share of the training tokens, but not
#: below so many.
_FUTURE_SHARE, _FUTURE_TOKENS = 0.1, 1 << 17


@dataclass(frozen=True)
class _Job:
    """What every stage needs."""

    origins: list[Origin]
    tools: Tools

    @property
    def section(self) -> DatasetSection:
        """What is taken, and in which shape."""
        return self.tools.section


def build_dataset(
    git_dir: Path,
    source: Source,
    config: Config,
    tokenizer: Any,
    context: JobContext,
    *,
    also: Sequence[Path] = (),
    cache_folder: Path | None = None,
    tokenizer_key: str = "",
) -> dict[str, Any]:
    """Build the dataset of `source.commit` into `context.output`.

    Args:
        git_dir: repository that holds the commit; its work tree is not looked at.
        source: what the manifest says of the repositories.
        config: its dataset section says what is taken and in which shape.
        tokenizer: the model's own, a fast one of transformers or what `backends.models.read_tokenizer` gives.
        context: takes the folder that appears, the events, and whether to stop.
        also: the repositories of `source.also`, in its order.
        cache_folder: where results by content are kept from build to build; None keeps none.
        tokenizer_key: what identifies the tokenizer's files, so that a next build can tell that nothing has changed.

    Returns:
        What the job's record says of the dataset.

    Raises:
        DatasetError: nothing to learn from, too little to split, a leak, no room on the disk.
        RepositoryError: a commit cannot be read.
        OutputExists: the output folder holds something else than a dataset.
        StopRequested: asked to stop; nothing was left behind but the cache.
    """
    watch = Stopwatch(context)
    places = (git_dir, *also)
    with workplace(context.output) as folder, Cache(cache_folder) as cache:
        vocabulary = RememberedVocabulary(Vocabulary(tokenizer), cache)
        job = _job(places, source, config.dataset, vocabulary=vocabulary, cache=cache, watch=watch)
        found = _find(job)
        watch.stages.start("write")
        files = write_splits(folder, found.splits, job.section.sequence_length, vocabulary, watch.stages)
        told = _write_tables(folder, found, job)
        about = manifest(job.origins, job.tools, found, files)
        about["identity"] = identity(source, job.section, tokenizer_key, places)
        watch.stages.start("report")
        _write_report(folder, about, told, watch, cache)
        write_manifest(folder, about)
        watch.stages.check()
    return result(job.origins, job.tools, found, told[STATS])


def _job(
    places: Sequence[Path],
    source: Source,
    section: DatasetSection,
    *,
    vocabulary: RememberedVocabulary,
    cache: Cache,
    watch: Stopwatch,
) -> _Job:
    redactor = Redactor(section.scanner)
    tools = Tools(
        section=section,
        vocabulary=vocabulary,
        layout=layout_of(vocabulary.special),
        redactor=redactor,
        cache=cache,
        stages=watch.stages,
    )
    read = partial(Reader, section=section, redactor=redactor, cache=cache)
    return _Job(open_origins(source, places, section, read, watch.stages), tools)


def _find(job: _Job) -> Findings:
    """Everything up to packed rows."""
    stages, section = job.tools.stages, job.section
    surveys = _surveys(job)
    job.tools.vocabulary.expect(sum(file.size for survey in surveys for file in survey.files))
    learned = [Learned(section, survey.attributes) for survey in surveys]
    histories = [_history(job, origin, one) for origin, one in zip(job.origins, learned, strict=True)]
    all_ = members(job.origins, surveys, histories)
    survey = united_survey(all_)
    sides = divide(survey, lineages(all_), section, stages)
    all_ = with_sides(all_, sides)
    stages.start("render", _told(job.tools.layout, section))
    tellers = [Teller(job.tools, member, one) for member, one in zip(all_, learned, strict=True)]
    guard = Guard(survey, sides, section.max_overlap)
    untouched = held_out_lineages(all_, sides)
    portions = _weighed(job, [teller.portion(untouched, guard) for teller in tellers])
    held_items = [item for teller in tellers for item in teller.held_out()]
    told = [one for portion in portions for one in portion.told]
    overlap, report = _overlap(job, survey, sides, told)
    train = [item for portion in portions for item in portion.items]
    future = _futures(job, tellers, overlap, max(_FUTURE_TOKENS, int(mixing.tokens(train) * _FUTURE_SHARE)))
    future_report = overlap.measure(future.runs)
    overlap.refuse(future_report, section.max_overlap)
    _refuse_empty(train, held_items)
    stages.start("pack", job.tools.vocabulary.note or "")
    return Findings(
        survey=survey,
        history=united_history(all_),
        sides=sides,
        splits=_splits(job, survey, sides, (train, held_items), future),
        overlap=report,
        layout=job.tools.layout,
        syntax=tellers[0].renderer.syntax,
        commits_used=len(told),
        future_commits=sum(origin.future_commits for origin in job.origins),
        commit_reasons=summed([portion.commit_reasons for portion in portions]),
        other_redactions=_redactions(told) + _redactions(future.files),
        future=future,
        future_overlap=future_report,
        repositories=_told_repositories(all_, portions),
    )


def _splits(
    job: _Job, survey: Survey, sides: Sides, items: tuple[list[Item], list[Item]], future: Future
) -> tuple[Split, ...]:
    """Training, held out and future, packed."""
    pack = partial(Split.packed, sequence_length=job.section.sequence_length, seed=job.section.seed)
    train_items, held_items = items
    return (
        pack(TRAIN, train_items, sizes=_sizes(survey, [*sides.code, *sides.docs])),
        pack(HELD_OUT, held_items, sizes=_sizes(survey, sides.held_out)),
        pack(FUTURE, future.items, sizes=future.sizes),
    )


def _sizes(survey: Survey, indices: Sequence[int]) -> dict[tuple[str, str | None], int]:
    """Bytes of files, by path and blob."""
    return {(file.path, file.blob): file.size for file in map(survey.files.__getitem__, indices)}


def _redactions(sources: Iterable[Told | FutureFile]) -> list[tuple[str, dict[str, int]]]:
    return [(one.path, one.redactions) for one in sources]


def _told_repositories(all_: Sequence[Member], portions: Sequence[Portion]) -> list[dict[str, Any]]:
    """What each of several repositories gave; of one nothing is told apart."""
    if len(all_) == 1:
        return []
    return [
        {
            "name": member.origin.label.rstrip("/"),
            "weight": member.origin.weight,
            "files": len(member.survey.files),
            "held_out_files": len(member.held_out),
            "commits": len(portion.told),
            "train_tokens": portion.tokens,
        }
        for member, portion in zip(all_, portions, strict=True)
    ]


def _surveys(job: _Job) -> list[Survey]:
    """The files of every repository; of copies among them the first is kept."""
    surveys: list[Survey] = []
    known: set[str] = set()
    for origin in job.origins:
        survey = survey_files(origin.git_dir, origin.cut, job.section, origin.reader, job.tools.stages, known=known)
        if not survey.files and len(job.origins) > 1:
            raise DatasetError(f"{_named(origin)} has no file to learn from{why_left_out(survey)}: {_remedy(origin)}.")
        known.update(file.blob for file in survey.files)
        surveys.append(survey)
    return surveys


def _named(origin: Origin) -> str:
    return f"Repository {repository.shown(origin.pinned.repository)}"


def _remedy(origin: Origin) -> str:
    if origin.holds_back:
        return "its newest commits build on those that another is measured by, set dataset.future to 0 to learn them"
    return "leave it out"


def _history(job: _Job, origin: Origin, learned: Learned) -> History:
    span = (origin.pinned.since, origin.cut)
    return read_candidates(origin.git_dir, span, learned, job.section.seed, job.tools.stages, known=origin.known)


def _told(layout: Layout, section: DatasetSection) -> str:
    if layout.fill is None:
        return "The model's tokenizer has no fill-in-the-middle tokens: every sample is written from left to right."
    return f"{section.fim_rate:.0%} of the code samples are filled in the middle, in the manner of {layout.name}."


def _weighed(job: _Job, portions: list[Portion]) -> list[Portion]:
    """What each of several repositories gives by its weight; of one, all."""
    if len(portions) == 1:
        return portions
    for origin, portion in zip(job.origins, portions, strict=True):
        if not portion.tokens:
            raise DatasetError(f"{_named(origin)} gives no tokens to train on: leave it out, or widen dataset.include.")
    return weighed(portions, [origin.weight for origin in job.origins], job.section)


def _overlap(job: _Job, survey: Survey, sides: Sides, told: Sequence[Told]) -> tuple[Overlap, OverlapReport]:
    """All that is trained on, and what held-out files share with it.

    Raises:
        DatasetError: a training text holds more of a held-out file than is allowed.
    """
    # Runs that many files share are told from the files alone: a leak into many commits is no boilerplate.
    overlap = Overlap(words=LEAK_WORDS, thin=survey.thin, boilerplate=common_runs(survey.leak))
    for index in [*sides.code, *sides.docs]:
        overlap.learn(survey.files[index].path, survey.leak[index])
    for one in told:
        overlap.learn(f"commit {one.commit.id[:12]}", one.leak)
    report = overlap.measure((survey.files[index].path, survey.leak[index]) for index in sides.held_out)
    overlap.refuse(report, job.section.max_overlap)
    return overlap, report


def _futures(job: _Job, tellers: Sequence[Teller], overlap: Overlap, limit: int) -> Future:
    """What the newest commits of the repositories added; each may take the same part of the limit."""
    with_future = [teller for teller in tellers if teller.member.origin.has_future]
    return united([_future(job, teller, overlap, limit // len(with_future)) for teller in with_future])


def _future(job: _Job, teller: Teller, overlap: Overlap, limit: int) -> Future:
    """What the commits after the cut added, in its context."""
    origin, stages = teller.member.origin, job.tools.stages
    stages.start("future", "Reading what the newest commits added.")
    commit = origin.pinned.commit
    attributes = read_attributes(origin.git_dir, list(repository.list_files(origin.git_dir, commit)))
    files = stages.checked(future_files(origin.git_dir, (origin.cut, commit), job.section, attributes, origin.reader))
    found = measured(files, overlap, teller.renderer, tokens=limit, most_overlap=job.section.max_overlap)
    return found.labelled(origin.label) if origin.label else found


def _refuse_empty(train: Sequence[Item], held_out: Sequence[Item]) -> None:
    for name, items in (("training", train), ("held-out", held_out)):
        if not items:
            raise DatasetError(f"The {name} files give no tokens: widen dataset.include.")


def _write_tables(folder: Path, found: Findings, job: _Job) -> dict[str, Any]:
    """Write what people and the report read of a dataset; the contents of the JSON files by their names."""
    write_samples(folder, found.splits, job.tools.vocabulary)
    write_drops(folder, found.drops)
    told = {
        STATS: stats(found, job.section.sequence_length),
        EXAMPLES: examples(found.splits, job.tools.vocabulary, job.section.seed),
    }
    for name, content in told.items():
        _write_json(folder / name, content)
    return told


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_report(
    folder: Path, about: Mapping[str, Any], told: Mapping[str, Any], watch: Stopwatch, cache: Cache
) -> None:
    timing = {**watch.told(), "cached": {"hits": cache.hits, "misses": cache.misses}}
    _write_json(folder / TIMING, timing)
    write_report(folder, manifest=about, stats=told[STATS], examples=told[EXAMPLES], timing=timing, cache=cache)
