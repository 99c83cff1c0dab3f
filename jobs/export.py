"""Hands an adapter over: PEFT's files with their card, merged weights, GGUF, a Modelfile, and how to use each.

The folder appears whole or not at all. Merged weights are read back and compared with base and adapter before that.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from backends.errors import DISK_FULL, ExitCode, RepotuneError
from jobs import converter, modelfile
from jobs.base import is_local, licence_of_base, public_name
from jobs.card import FILE as CARD
from jobs.checkpoint import disk_full_as_sentence, sha256_of, write_json
from jobs.context import JobContext, OutputExists, StopRequested
from jobs.events import Note, StageStarted
from jobs.gguf_adapter import architecture_of, refuse_unwritable, write_gguf_adapter
from jobs.published import CONFIG, WEIGHTS, NoAdapter, Published, other_name, refuse_other_base

ADAPTER, MERGED, USE, SUMMARY = "adapter", "merged", "USE.md", "export.json"
#: Where an export grows in a folder that is there already.
_INSIDE = ".unfinished"
#: Ranks that vLLM can be told to make room for.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: Beside the model itself, while it is merged: the process, a layer in fp32, logits.
_MERGE_EXTRA = 1.5e9
#: Compared on this text, which no training has changed since: a few kinds of lines of code.
_PROBE = 'import os\n\n\ndef area(width: int, height: int) -> int:\n    """The area."""\n    return width * height\n'


class OutputRefused(RepotuneError):
    """The folder to write to cannot be made."""

    exit_code = ExitCode.USAGE


class MergeDiffers(RepotuneError):
    """Merged weights do not say what base and adapter say."""


class NotEnoughMemory(RepotuneError):
    """Merging would not fit into the memory of this machine."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to make of which adapter."""

    adapter: Published
    #: The base: hub id, folder, or .gguf file.
    base: str
    revision: str | None = None
    merged: bool = False
    gguf_adapter: bool = False
    gguf_merged: bool = False
    modelfile: bool = False
    #: Of the GGUF: f16, bf16, f32 or q8_0 of merged weights; an adapter is f32 if asked for, else f16.
    outtype: str = "f16"

    @property
    def adapter_type(self) -> str:
        """The type of an adapter's GGUF: its rows are too short for blocks of eight bits."""
        return "f32" if self.outtype == "f32" else "f16"


def export(request: ExportRequest, context: JobContext) -> dict[str, Any]:
    """Write what is asked for to `context.output`; returns what lies there.

    Raises:
        OutputExists: something lies there already.
        RepotuneError: adapter, base, memory or converter do not allow it; nothing was written.
    """
    from backends import models

    _refuse_filled(context.output)
    model_config = models.load_config(request.base, request.revision)
    _refuse_impossible(request, model_config)
    with disk_full_as_sentence(context.output), _draft(context.output) as draft:
        made = _Export(request, model_config, context, draft)
        made.adapter()
        if request.gguf_adapter:
            made.gguf_adapter()
        if request.merged or request.gguf_merged:
            made.merged()
        if request.modelfile:
            made.modelfile()
        return made.summary()


def _refuse_filled(output: Path) -> None:
    if output.exists() and not (output.is_dir() and all(path.name == _INSIDE for path in output.iterdir())):
        raise OutputExists(f"{output} exists already and is not empty: choose another --output, or remove it.")


def _refuse_impossible(request: ExportRequest, model_config: Any) -> None:
    """Everything that can be known before a weight is read."""
    if request.gguf_adapter:
        refuse_unwritable(request.adapter, model_config)
    if request.gguf_merged:
        converter.find_converter()
    if request.modelfile and not request.gguf_merged:
        architecture = architecture_of(model_config)
        if not request.gguf_adapter:
            raise NoAdapter("A Modelfile needs a GGUF: add --gguf merged or --gguf adapter.")
        if not modelfile.takes_adapters(architecture):
            raise NoAdapter(f"Ollama takes no adapter beside a {model_config.model_type} base: add --gguf merged.")


@contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when the block ends well, and goes away when it does not.

    One that is there already is filled, not replaced: somebody may stand in it, or a disk be mounted on it.
    """
    output = output.absolute()  # "." has no name
    exists = output.exists()
    folder = output / _INSIDE if exists else output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise OutputRefused(f"{output} cannot be made ({error.strerror}): choose another --output.") from error
    try:
        yield folder
        if exists:
            for path in sorted(folder.iterdir(), key=lambda path: path.name == SUMMARY):
                path.rename(output / path.name)
        else:
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Export:
    """One export under way: each method makes one part in the draft."""

    def __init__(self, request: ExportRequest, model_config: Any, context: JobContext, draft: Path) -> None:
        self._request = request
        self._config = model_config
        self._context = context
        self._draft = draft
        self._name = _short(public_name(request.base))
        self._made: dict[str, str] = {}
        self._figures: dict[str, float] = {}
        self._licence = licence_of_base(request.base, request.revision)

    def adapter(self) -> None:
        """PEFT's files and the card, the base named without the folders of this machine."""
        published, folder = self._request.adapter, self._draft / ADAPTER
        if told := other_name(published, self._request.base):
            self._note(told, level="warning")
        folder.mkdir()
        config = published.config | {"base_model_name_or_path": public_name(self._request.base)}
        if isinstance(config.get("target_modules"), list):
            config["target_modules"] = sorted(config["target_modules"])
        write_json(folder / CONFIG, config)
        shutil.copyfile(published.weights, folder / WEIGHTS)
        card = published.folder / CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else self._small_card()
        (folder / CARD).write_text(text, encoding="utf-8")
        self._made["adapter"] = ADAPTER

    def gguf_adapter(self) -> None:
        """The adapter for llama.cpp."""
        request = self._request
        self._stage("adapter as GGUF")
        file = f"adapter-{request.adapter_type}.gguf"
        write_gguf_adapter(
            request.adapter, self._config, self._draft / file, name=self._name, outtype=request.adapter_type
        )
        self._made["gguf_adapter"] = file

    def merged(self) -> None:
        """Merged weights, compared before they count; also where only their GGUF is asked for."""
        request, folder = self._request, self._draft / MERGED
        self._say_memory()
        self._merge(folder)
        if request.gguf_merged:
            self._stage("merged weights as GGUF")
            file = f"model-{request.outtype}.gguf"
            tool = converter.find_converter()
            converter.convert(tool, folder, self._draft / file, request.outtype, self._context)
            self._made["gguf_merged"] = file
        if request.merged:
            self._made["merged"] = MERGED
        else:
            shutil.rmtree(folder)

    def modelfile(self) -> None:
        """What `ollama create` reads."""
        from backends import models

        merged = self._made.get("gguf_merged")
        tokenizer = models.load_tokenizer(self._request.base, self._request.revision)
        adapter = None if merged else self._made["gguf_adapter"]
        text = modelfile.modelfile(merged or self._base_gguf(), adapter, tokenizer)
        (self._draft / modelfile.FILE).write_text(text, encoding="utf-8")
        self._made["modelfile"] = modelfile.FILE

    def summary(self) -> dict[str, Any]:
        """Write USE.md and, last, export.json; returns what that says."""
        (self._draft / USE).write_text(self._use(), encoding="utf-8")
        self._made["use"] = USE
        files = sorted(path for path in self._draft.rglob("*") if path.is_file())
        told = {
            "base": public_name(self._request.base),
            "revision": self._request.revision,
            "licence": self._licence,
            "made": self._made,
            **self._figures,
            "files": {
                str(path.relative_to(self._draft)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for path in files
            },
        }
        write_json(self._draft / SUMMARY, told)
        return told

    def _merge(self, folder: Path) -> None:
        from backends import merged, models

        request = self._request
        self._stage("merge", f"{public_name(request.base)} in full precision")
        dtype = merged.stored_type(self._config)
        model = merged.load_adapted(request.base, request.revision, request.adapter.folder, dtype)
        refuse_other_base(model, request.adapter, request.base)
        ids = models.load_tokenizer(request.base, request.revision)(_PROBE)["input_ids"]
        wanted = merged.logits(model, ids)
        self._leave_if_asked()
        merged.save(merged.merge(model), request.base, request.revision, folder)
        del model
        self._stage("compare")
        given = merged.logits(models.load_base(str(folder), dtype=dtype, device="cpu").eval(), ids)
        off = merged.difference(wanted, given)
        if not off <= merged.TOLERANCE[dtype]:
            raise MergeDiffers(
                f"The merged weights are off by {off:.2g} of the logits of base and adapter, more than rounding "
                f"({merged.TOLERANCE[dtype]:g}): nothing was exported; use the adapter beside its base."
            )
        self._figures["logits_difference"] = off
        self._note(f"Merged weights, read back, are within {off:.1e} of the logits of base and adapter.")
        self._leave_if_asked()

    def _say_memory(self) -> None:
        from backends import merged
        from backends.free_memory import free_ram
        from backends.memory import Recipe, estimate

        width = merged.stored_type(self._config).itemsize
        try:
            weights = estimate(self._config, Recipe(quantization="none", compute_bytes=width)).weights
        except ValueError:
            self._note("How much memory merging takes is not known for this architecture.", level="warning")
            return
        needed, free = weights + _MERGE_EXTRA, free_ram()
        self._note(f"Merging takes about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free.")
        if needed > free:
            raise NotEnoughMemory(
                f"Merging takes about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: close other "
                "programs, use a machine with more memory, or export the adapter alone."
            )

    def _use(self) -> str:
        request = self._request
        base = public_name(request.base)
        is_gguf = base.endswith(".gguf")
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("jobs"),
            autoescape=False,  # noqa: S701 - Markdown
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        rank = request.adapter.rank
        return environment.get_template("use.md").render(
            title=f"{self._name} with its adapter",
            base=base,
            revision=request.revision,
            licence=self._licence,
            base_python=f"'.', gguf_file='{base}'" if is_gguf else f"'{base}'",
            base_shell=shlex.quote(base),
            base_gguf=base if is_gguf else "BASE.gguf",
            base_is_gguf=is_gguf,
            base_is_local=is_local(request.base),
            dora=request.adapter.is_dora,
            vllm_rank=next((room for room in _VLLM_RANKS if room >= rank), rank),
            model_name=self._name.lower(),
            modelfile_needs="" if "gguf_merged" in self._made else self._base_gguf(),
            **{part: self._made.get(part) for part in ("merged", "gguf_adapter", "gguf_merged", "modelfile")},
        )

    def _base_gguf(self) -> str:
        base = public_name(self._request.base)
        return base if base.endswith(".gguf") else f"{self._name}.gguf"

    def _small_card(self) -> str:
        """For an adapter that was published before there were cards."""
        base = public_name(self._request.base)
        front = "" if is_local(self._request.base) else f"base_model: {json.dumps(base)}\n"
        licence = f"license: {json.dumps(self._licence.lower())}\n" if self._licence else ""
        rank = self._request.adapter.rank
        return (
            f"---\n{front}library_name: peft\n{licence}pipeline_tag: text-generation\n---\n\n"
            f"# {self._name} with a LoRA adapter of rank {rank}\n\nWhat it was trained on is not told beside it.\n"
        )

    def _stage(self, stage: str, message: str = "") -> None:
        self._leave_if_asked()
        self._context.emit(StageStarted(stage=stage, message=message))

    def _note(self, message: str, level: str = "info") -> None:
        self._context.emit(Note(message=message, level=level))

    def _leave_if_asked(self) -> None:
        if self._context.should_stop():
            raise StopRequested


def _short(name: str) -> str:
    """The last part of an id, without its ending."""
    return name.rsplit("/", 1)[-1].removesuffix(".gguf")
