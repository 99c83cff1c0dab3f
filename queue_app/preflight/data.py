"""Is there enough to learn from: a dataset that is built already, or the repository that one will be built of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.errors import RepotuneError
from backends.positions import refuse_long_rows
from jobs.spec import Config, InvalidSpec
from queue_app.plan import Plan
from queue_app.preflight.line import CheckLine, failed, passed, warned
from queue_app.tables import size_text

#: Bytes of code in a token, about: StarCoder2's tokenizer on Python has 3.2.
BYTES_PER_TOKEN = 3


def built_line(folder: Path, config: Config, model: Mapping[str, Any] | None) -> CheckLine:
    """Whether a dataset on disk is whole and goes with the model. Reads every byte of it."""
    from jobs.shards import FUTURE, open_dataset, verify

    try:
        verify(folder)
        dataset = open_dataset(folder)
        _refuse_mismatch(dataset.manifest, len(dataset.train), model)
        stretched = refuse_long_rows(model, dataset.sequence_length, config.model.name)
    except RepotuneError as error:
        return failed("dataset", error)
    future = dataset.manifest["splits"].get(FUTURE, {}).get("rows", 0)
    text = (
        f"{folder}, whole: {len(dataset.train)} rows of {dataset.sequence_length} tokens to train on, "
        f"{len(dataset.held_out)} held out, {future} of newer commits"
    )
    if not len(dataset.held_out):
        return warned("dataset", text, "nothing tells whether the adapter helps: learn a larger repository")
    if stretched:
        return warned("dataset", f"{text}; {stretched}")
    return _judged(text, len(dataset.train), config)


def _refuse_mismatch(manifest: Mapping[str, Any], rows: int, model: Mapping[str, Any] | None) -> None:
    if not rows:
        raise InvalidSpec("The dataset has no rows to train on: build it of a larger repository.")
    vocabulary = manifest.get("tokenizer", {}).get("vocabulary_size", 0)
    known = (model or {}).get("vocab_size")
    if isinstance(known, int) and vocabulary > known:
        raise InvalidSpec(
            f"The dataset was built with another tokenizer: it has {vocabulary} tokens and the model {known}; "
            "build the dataset with this model."
        )


def planned_line(plan: Plan, config: Config) -> CheckLine:
    """Whether the repository holds enough for a dataset."""
    if plan.files == 0:
        return failed("dataset", InvalidSpec("The commit holds no files: name another commit with --ref."))
    try:
        stretched = refuse_long_rows(plan.model.config, config.dataset.sequence_length, config.model.name)
    except RepotuneError as error:
        return failed("dataset", error)
    if stretched:
        return warned("dataset", stretched, "set dataset.sequence_length lower where that is not meant")
    if plan.size_bytes is None:
        return passed("dataset", "will be built by the worker, which alone sees the repository")
    rows = plan.size_bytes // BYTES_PER_TOKEN // config.dataset.sequence_length
    text = f"will be built, of about {rows} rows and what commits add ({size_text(plan.size_bytes)} of files)"
    return _judged(text, rows, config)


def _judged(text: str, rows: int, config: Config) -> CheckLine:
    batch = config.optimization.micro_batch * config.optimization.accumulation
    if rows < batch:
        return warned(
            "dataset",
            f"{text}; one optimizer step takes {batch} rows",
            "lower dataset.sequence_length or optimization.accumulation, or learn more with --also",
        )
    return passed("dataset", text)
