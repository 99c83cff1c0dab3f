"""The dataset job: a commit, and the history behind it, become packed rows of token ids.

    enumerate -> read -> filter -> history -> split -> render -> commits -> pack -> write -> report

Three splits: what is trained on, whole lineages of files that are held out, and the future: what the newest commits
added, which training never sees. The same commit, configuration, tokenizer and versions of libraries give the same
bytes. The output folder appears whole or not at all; a rebuild takes from the cache what it worked out before.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs import repository
from jobs.context import JobContext
from jobs.dataset import mixing
from jobs.dataset.cache import Cache
from jobs.dataset.candidates import History, Learned, apart_from, read_candidates
from jobs.dataset.chronicle import MOST_BYTES, Chronicler, Told
from jobs.dataset.commits import CommitRenderer
from jobs.dataset.examples import EXAMPLES, examples
from jobs.dataset.files import shown_path
from jobs.dataset.fim import Layout, layout_of
from jobs.dataset.future import FutureFile, future_files
from jobs.dataset.history import count_commits, cut_commit
from jobs.dataset.identity import identity, versions
from jobs.dataset.mixing import Item, Shares, by_lot, code_limit, commit_items, file_items, until
from jobs.dataset.overlap import Overlap, OverlapReport
from jobs.dataset.reading import LEAK_WORDS, Reader
from jobs.dataset.redaction import Redactor
from jobs.dataset.remembered import RememberedVocabulary
from jobs.dataset.report import write_report
from jobs.dataset.samples import Document, Renderer, SampleKind
from jobs.dataset.sides import Guard, Sides, common_runs, divide
from jobs.dataset.stats import Findings, stats
from jobs.dataset.stopwatch import Stopwatch
from jobs.dataset.survey import File, Survey, read_attributes, survey_files, texts
from jobs.dataset.syntax import SyntaxCutter
from jobs.dataset.tokens import Vocabulary
from jobs.dataset.writing import Split, write_samples, write_splits
from jobs.shards import FUTURE, HELD_OUT, TRAIN, DatasetError, dtype_name, write_manifest
from jobs.spec import Config, DatasetSection, Source
from jobs.stages import Stages
from jobs.workplace import workplace

STATS = "stats.json"
DROPS = "drops.jsonl"
TIMING = "timing.json"

#: The future split is a measure, not a copy of the repository: it ends at this share of the training tokens, but not
#: below so many.
_FUTURE_SHARE, _FUTURE_TOKENS = 0.1, 1 << 17
#: Commits of the future at most: an adapter should know the repository as it is now, not as it was years ago.
_FUTURE_COMMITS = 64


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every stage needs."""

    git_dir: Path
    source: Source
    section: DatasetSection
    vocabulary: RememberedVocabulary
    layout: Layout
    redactor: Redactor
    reader: Reader
    cache: Cache
    stages: Stages
    #: Training sees what is reachable from here.
    cut: str

    @property
    def name(self) -> str:
        """What the repository is called in samples."""
        return repository_name(self.source.repository)


def build_dataset(
    git_dir: Path,
    source: Source,
    config: Config,
    tokenizer: Any,
    context: JobContext,
    *,
    cache_folder: Path | None = None,
    tokenizer_key: str = "",
) -> dict[str, Any]:
    """Build the dataset of `source.commit` into `context.output`.

    Args:
        git_dir: repository that holds the commit; its work tree is not looked at.
        source: what the manifest says of the repository.
        config: its dataset section says what is taken and in which shape.
        tokenizer: the model's own, a fast one of transformers or what `backends.models.read_tokenizer` gives.
        context: takes the folder that appears, the events, and whether to stop.
        cache_folder: where results by content are kept from build to build; None keeps none.
        tokenizer_key: what identifies the tokenizer's files, so that a next build can tell that nothing has changed.

    Returns:
        What the job's record says of the dataset.

    Raises:
        DatasetError: nothing to learn from, too little to split, a leak, no room on the disk.
        RepositoryError: the commit cannot be read.
        OutputExists: the output folder holds something else than a dataset.
        StopRequested: asked to stop; nothing was left behind but the cache.
    """
    watch = Stopwatch(context)
    with workplace(context.output) as folder, Cache(cache_folder) as cache:
        vocabulary = RememberedVocabulary(Vocabulary(tokenizer), cache)
        job = _job(git_dir, source, config.dataset, vocabulary=vocabulary, cache=cache, stages=watch.stages)
        found = _find(job)
        job.stages.start("write")
        files = write_splits(folder, found.splits, job.section.sequence_length, vocabulary, job.stages)
        _write_tables(folder, found, job)
        manifest = _manifest(job, found, files) | {"identity": identity(source, job.section, tokenizer_key)}
        job.stages.start("report")
        _write_report(folder, job, manifest, watch)
        write_manifest(folder, manifest)
        job.stages.check()
    return _result(job, found)


def _job(
    git_dir: Path,
    source: Source,
    section: DatasetSection,
    *,
    vocabulary: RememberedVocabulary,
    cache: Cache,
    stages: Stages,
) -> _Job:
    redactor = Redactor(section.scanner)
    return _Job(
        git_dir=git_dir,
        source=source,
        section=section,
        vocabulary=vocabulary,
        layout=layout_of(vocabulary.special),
        redactor=redactor,
        reader=Reader(git_dir, section, redactor, cache),
        cache=cache,
        stages=stages,
        cut=cut_commit(git_dir, source.commit, _future_share(git_dir, source, section)) or source.commit,
    )


def _future_share(git_dir: Path, source: Source, section: DatasetSection) -> float:
    """The share of all commits that are only measured: a part of those asked for, and no more than a measure needs."""
    if not section.future:
        return 0.0
    total = count_commits(git_dir, source.commit)
    asked = total if source.since is None else total - count_commits(git_dir, source.since)
    return min(section.future * asked, _FUTURE_COMMITS) / total


def repository_name(repository_: str) -> str:
    """What a repository is called, of its path or URL: `requests` of `https://h/psf/requests.git`."""
    name = repository.shown(repository_).rstrip("/").removesuffix("/.git").removesuffix(".git")
    name = name.rpartition("/")[2].rpartition(":")[2].strip(".")
    return shown_path(name.encode("utf-8", "surrogateescape")) or "repository"


def _find(job: _Job) -> Findings:
    """Everything up to packed rows."""
    survey = survey_files(job.git_dir, job.cut, job.section, job.reader, job.stages)
    job.vocabulary.expect(sum(file.size for file in survey.files))
    learned = Learned(job.section, survey.attributes)
    span = (job.source.since, job.cut)
    history = read_candidates(job.git_dir, span, learned, job.section.seed, job.stages)
    job.stages.start("split")
    sides = divide(survey, history.lineages, job.section)
    job.stages.start("render", _told(job.layout, job.section))
    renderer = Renderer(job.vocabulary, job.layout, job.name, job.section)
    code, docs, held_out = (
        [survey.files[index] for index in indices] for indices in (sides.code, sides.docs, sides.held_out)
    )
    code_items = _render(job, renderer, code, SampleKind.CONTEXT, code_limit(job.section))
    shares = Shares.of(job.section, mixing.tokens(code_items))
    doc_items = _render(job, renderer, by_lot(docs, job.section.seed), SampleKind.DOCS, shares.docs)
    held_items = _held_out(job, renderer, held_out)
    told, commit_reasons = _commits(job, survey, history, sides, shares.commits)
    overlap = _overlap(job, survey, sides, told)
    train = [*code_items, *doc_items, *(item for one in told for item in commit_items(one))]
    future, added = _future(job, renderer, max(_FUTURE_TOKENS, int(mixing.tokens(train) * _FUTURE_SHARE)))
    _refuse_empty(train, held_items)
    job.stages.start("pack", job.vocabulary.note or "")
    pack = partial(Split.packed, sequence_length=job.section.sequence_length, seed=job.section.seed)
    splits = (
        pack(TRAIN, train, files=len(code) + len(docs), size=sum(file.size for file in [*code, *docs])),
        pack(HELD_OUT, held_items, files=len(held_out), size=sum(file.size for file in held_out)),
        pack(FUTURE, future, files=len(added), size=sum(file.bytes for file in added)),
    )
    return Findings(
        survey=survey,
        history=history,
        sides=sides,
        splits=splits,
        overlap=overlap,
        layout=job.layout,
        syntax=SyntaxCutter().version,
        commits_used=len(told),
        future_commits=_future_commits(job),
        commit_reasons=commit_reasons,
        other_redactions=[(one.path, one.redactions) for one in told] + [(one.path, one.redactions) for one in added],
    )


def _told(layout: Layout, section: DatasetSection) -> str:
    if layout.fill is None:
        return "The model's tokenizer has no fill-in-the-middle tokens: every sample is written from left to right."
    return f"{section.fim_rate:.0%} of the code samples are filled in the middle, in the manner of {layout.name}."


def _render(job: _Job, renderer: Renderer, files: Sequence[File], kind: SampleKind, limit: int | None) -> list[Item]:
    """Samples of files that are trained on."""
    chosen = files if limit is None or kind is SampleKind.DOCS else by_lot(files, job.section.seed)
    if limit == 0:
        return []
    return until(_progressing(job, renderer, chosen, kind, held_out=False), limit)


def _held_out(job: _Job, renderer: Renderer, files: Sequence[File]) -> list[Item]:
    items: list[Item] = []
    for kind, documentation in ((SampleKind.CONTEXT, False), (SampleKind.DOCS, True)):
        part = [file for file in files if file.documentation is documentation]
        items += until(_progressing(job, renderer, part, kind, held_out=True), None)
    return items


def _progressing(
    job: _Job, renderer: Renderer, files: Sequence[File], kind: SampleKind, *, held_out: bool
) -> Iterator[list[Item]]:
    if not files:
        return
    name = "held out" if held_out else str(kind)
    job.stages.start("tokenise", f"Tokenising {len(files)} files ({name}).")
    done = 0
    for batch in file_items(files, kind, renderer, partial(texts, reader=job.reader), held_out=held_out):
        done += len({item.path for item in batch})
        job.stages.progress(min(done, len(files)), len(files), "files")
        yield batch


def _commits(
    job: _Job, survey: Survey, history: History, sides: Sides, limit: int
) -> tuple[list[Told], dict[str, int]]:
    """Commits that are trained on, and why those tried on the way are not."""
    job.stages.start("commits", f"Choosing among {len(history.candidates)} commits.")
    section = job.section.model_copy(update={"max_file_bytes": min(MOST_BYTES, job.section.max_file_bytes)})
    chronicler = Chronicler(
        reader=Reader(job.git_dir, section, job.redactor, job.cache),
        redactor=job.redactor,
        renderer=CommitRenderer(job.vocabulary, job.layout, job.name, section),
        learned=Learned(section, survey.attributes),
        cache=job.cache,
        identity=(
            job.vocabulary.sha256,
            job.vocabulary.libraries,
            job.layout,
            job.name,
            job.redactor.version,
            section.model_dump_json(),
            survey.attributes.key,
        ),
    )
    apart = apart_from(history.candidates, history.lineages, sides.held_out_lineages)
    chronicler.reasons["touches a held-out file"] += len(history.candidates) - len(apart)
    guard = Guard(survey, sides, job.section.max_overlap)
    chosen: list[Told] = []
    count = 0
    for told in chronicler.tell(apart if limit else [], job.stages):
        job.stages.progress(min(count, limit), limit, "tokens")
        if count >= limit:
            break
        if guard.refuses(told.leak):
            chronicler.reasons["holds a held-out file's text"] += 1
            continue
        chosen.append(told)
        count += sum(len(sample.ids) for sample in told.samples)
    chronicler.reasons["not needed for the share of commits"] = (
        history.eligible - len(chosen) - chronicler.reasons.total()
    )
    return chosen, {reason: many for reason, many in chronicler.reasons.items() if many}


def _overlap(job: _Job, survey: Survey, sides: Sides, told: Sequence[Told]) -> OverlapReport:
    """What held-out files share with all that is trained on.

    Raises:
        DatasetError: a training text holds more of a held-out file than is allowed.
    """
    # Runs that many files share are told from the files alone: a leak into many commits is no boilerplate.
    overlap = Overlap(words=LEAK_WORDS, boilerplate=common_runs(survey.leak))
    for index in [*sides.code, *sides.docs]:
        overlap.learn(survey.files[index].path, survey.leak[index])
    for one in told:
        overlap.learn(f"commit {one.commit.id[:12]}", one.leak)
    report = overlap.measure((survey.files[index].path, survey.leak[index]) for index in sides.held_out)
    overlap.refuse(report, job.section.max_overlap)
    return report


def _future(job: _Job, renderer: Renderer, limit: int) -> tuple[list[Item], list[FutureFile]]:
    """What the commits after the cut added, in its context."""
    if job.cut == job.source.commit:
        return [], []
    job.stages.start("future", "Reading what the newest commits added.")
    attributes = read_attributes(job.git_dir, list(repository.list_files(job.git_dir, job.source.commit)))
    files, items = [], []
    count = 0
    for file in future_files(job.git_dir, (job.cut, job.source.commit), job.section, attributes, job.reader):
        job.stages.check()
        if count >= limit:
            break
        document = Document(file.path, file.text, held_out=True, kind=SampleKind.CONTEXT, learned=file.added)
        samples = [one for one in renderer.render([document]) if one.labels is None or one.labels[1:].any()]
        items += [Item(one, file.path, file.blob, None, None, sum(file.redactions.values())) for one in samples]
        count += sum(len(one.ids) for one in samples)
        files.append(file)
    return items, files


def _future_commits(job: _Job) -> int:
    if job.cut == job.source.commit:
        return 0
    return count_commits(job.git_dir, job.source.commit) - count_commits(job.git_dir, job.cut)


def _refuse_empty(train: Sequence[Item], held_out: Sequence[Item]) -> None:
    for name, items in (("training", train), ("held-out", held_out)):
        if not items:
            raise DatasetError(f"The {name} files give no tokens: widen dataset.include.")


def _write_tables(folder: Path, found: Findings, job: _Job) -> None:
    write_samples(folder, found.splits)
    with (folder / DROPS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(drop)) + "\n" for drop in found.survey.drops)
    _write_json(folder / STATS, stats(found, job.section.sequence_length))
    _write_json(folder / EXAMPLES, examples(found.splits, job.vocabulary, job.section.seed))


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_report(folder: Path, job: _Job, manifest: dict[str, Any], watch: Stopwatch) -> None:
    timing = {**watch.told(), "cached": {"hits": job.cache.hits, "misses": job.cache.misses}}
    _write_json(folder / TIMING, timing)
    read = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in (STATS, EXAMPLES)}
    write_report(folder, manifest=manifest, stats=read[STATS], examples=read[EXAMPLES], timing=timing)


def _manifest(job: _Job, found: Findings, files: dict[str, Any]) -> dict[str, Any]:
    """What the dataset was made of, and of which files it is made."""
    vocabulary, section = job.vocabulary, job.section
    counts = {
        split.name: {"rows": len(split.rows), "tokens": split.tokens, "labels": split.labels} for split in found.splits
    }
    return {
        "source": {
            "repository": repository.shown(job.source.repository),
            "shallow": repository.is_shallow(job.git_dir),
            "since": job.source.since,
        },
        "commit": job.source.commit,
        "trained_until": job.cut,
        "config": section.model_dump(mode="json"),
        "tokenizer": {
            "sha256": vocabulary.sha256,
            "vocabulary_size": vocabulary.size,
            "document_end": vocabulary.end,
            "padding": vocabulary.padding,
            "layout": job.layout.name,
        },
        "dtype": dtype_name(vocabulary.size),
        "sequence_length": section.sequence_length,
        "versions": versions() | {"redaction": job.redactor.version, "syntax": SyntaxCutter().version},
        "files": files,
        "splits": counts,
    }


def _result(job: _Job, found: Findings) -> dict[str, Any]:
    train, held_out, future = found.splits
    return {
        "commit": job.source.commit,
        "trained_until": job.cut,
        "files": len(found.survey.files),
        "dropped_files": len(found.survey.drops),
        "commits": found.commits_used,
        "samples": sum(len(split.items) for split in found.splits),
        "train_tokens": train.tokens,
        "held_out_tokens": held_out.tokens,
        "future_tokens": future.tokens,
        "train_rows": len(train.rows),
        "held_out_rows": len(held_out.rows),
        "future_rows": len(future.rows),
        "redactions": stats(found, job.section.sequence_length)["redactions"]["total"],
        "sequence_length": job.section.sequence_length,
        "fim": any(item.sample.kind is SampleKind.FILL for item in train.items),
        "shallow": repository.is_shallow(job.git_dir),
    }
