"""Tries an adapter at one cursor: what the base writes there, and what it writes with the adapter."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.contract import AdapterRequest, Backend, ModelRequest
from backends.devices import Device
from backends.errors import ExitCode, RepotuneError
from backends.generation import complete
from backends.models import load_tokenizer, tokenizer_folder
from jobs.context import JobContext, StopRequested
from jobs.dataset.fim import Layout, layout_of
from jobs.dataset.tokens import Vocabulary
from jobs.events import Note, StageStarted
from jobs.prompts import cursor_prompt
from jobs.published import Published, other_name, refuse_other_base
from jobs.spec import Config

#: A line as editors count them: form feeds and such do not end one.
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
#: Tokens of prompt and completion together at most: what models of this size were trained to heed.
_CONTEXT = 2048


class NoCursor(RepotuneError):
    """There is no such place in the file, or the file is not text."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Cursor:
    """A place in a file."""

    #: As the repository names the file.
    path: str
    #: The line at whose end the cursor stands, from 1.
    line: int
    #: Text before and behind it.
    prefix: str
    suffix: str


def read_cursor(file: Path, line: int | None) -> Cursor:
    """The cursor at the end of a line of `file`; without a line at the end of the file.

    The file is named as its repository names it where it lies in one: that is how the model was told of it.

    Raises:
        NoCursor: the file cannot be read as text, or has fewer lines.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")  # with its line ends and without a mark, as in the dataset
    except (OSError, UnicodeDecodeError) as error:
        raise NoCursor(f"{file} cannot be read as text ({error}).") from error
    lines = _LINE.findall(text)
    path = _path_in_repository(file.resolve())
    if line is None:
        return Cursor(path, len(lines), text, "")
    if not 1 <= line <= len(lines):
        raise NoCursor(f"{file} has {len(lines)} lines: there is no line {line}.")
    end = sum(map(len, lines[: line - 1])) + len(lines[line - 1].rstrip("\r\n"))
    return Cursor(path, line, text[:end], text[end:])


def _path_in_repository(file: Path) -> str:
    root = next((folder for folder in file.parents if (folder / ".git").exists()), file.parent)
    return file.relative_to(root).as_posix()


def try_adapter(  # noqa: PLR0917 - callers name them
    config: Config,
    adapter: Published,
    cursor: Cursor,
    backend: Backend,
    device: Device,
    context: JobContext,
    *,
    new_tokens: int,
) -> dict[str, Any]:
    """Complete at the cursor, greedily, without and with the adapter: the likeliest token again and again.

    Args:
        config: As it holds on `device`; names the base.
        adapter: To try.
        cursor: Where to complete.
        backend: Holds the base.
        device: Where to compute.
        context: Whom to tell, when to stop.
        new_tokens: Of each completion at most, and no more than half of the positions that the model knows.

    Returns:
        path, line, prompt_tokens, fills_in, base and adapter (text), base_tokens and adapter_tokens (ids).
    """
    model = config.model
    vocabulary = Vocabulary.of_folder(tokenizer_folder(model.name, model.revision))
    layout = layout_of(vocabulary.special)
    context.emit(StageStarted(stage="load model", message=f"{model.name} ({backend.name})"))
    loaded = backend.load(_request(config, adapter, device))
    for note in loaded.notes:
        context.emit(Note(message=note))
    refuse_other_base(loaded.model, adapter, model.name)
    if told_of_base := other_name(adapter, model.name):
        context.emit(Note(level="warning", message=told_of_base))
    room = _room(loaded.model.config)
    # A model with few positions keeps half of them for the prompt, whatever is asked for.
    new_tokens = min(new_tokens, room // 2)
    prompt = cursor_prompt(layout, vocabulary, cursor.path, cursor.prefix, cursor.suffix, room - new_tokens)
    tokenizer = load_tokenizer(model.name, model.revision)
    told: dict[str, Any] = {
        "path": cursor.path,
        "line": cursor.line,
        "prompt_tokens": len(prompt),
        "fills_in": layout.fill is not None and bool(cursor.suffix.strip()),
    }
    for side in ("base", "adapter"):
        if context.should_stop():
            raise StopRequested
        context.emit(StageStarted(stage="complete", message=side))
        (ids,) = complete(
            loaded.model,
            tokenizer,
            [prompt],
            new_tokens=new_tokens,
            stop=_stops(layout),
            adapter=side == "adapter",
        )
        told[side] = tokenizer.decode(ids, skip_special_tokens=True)
        told[f"{side}_tokens"] = ids
    return told


def _request(config: Config, adapter: Published, device: Device) -> ModelRequest:
    return ModelRequest(
        name=config.model.name,
        revision=config.model.revision,
        adapter=AdapterRequest(rank=adapter.rank, alpha=adapter.alpha, resume_from=adapter.folder),
        device=device,
        group_size=config.quantization.scale_group,
        compute=config.quantization.compute,
        # Made for prompts and a cache; blocks are for the backward pass.
        attention="sdpa",
    )


def _room(model_config: Any) -> int:
    return min(_CONTEXT, int(getattr(model_config, "max_position_embeddings", None) or _CONTEXT))


def _stops(layout: Layout) -> frozenset[int]:
    """Tokens that begin something else."""
    ends = (layout.file, layout.repository, layout.fill_end, *(layout.fill or ()))
    return frozenset(identifier for identifier in ends if identifier is not None)
