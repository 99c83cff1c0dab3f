"""GGUF files converted once into folders that load fast.

Reading a GGUF through transformers takes about forty seconds for a model of 135 M parameters, every time; the folder it
is converted into loads in a second. One folder per file (its path, size and time of change), made under a lock and
renamed into place: what carries the final name is whole.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from backends.errors import ModelNotLoadable
from backends.locks import locked

MAGIC = b"GGUF"


def cache_folder() -> Path:
    """Where converted models are kept: $REPOTUNE_CACHE/models, or the same below the user's cache folder."""
    import platformdirs

    root = os.environ.get("REPOTUNE_CACHE") or platformdirs.user_cache_dir("repotune")
    return Path(root).expanduser() / "models"


def converted(file: Path, cache: Path | None = None) -> Path:
    """The folder that `file` was converted into, converting it now if that has not been done.

    Raises:
        ModelNotLoadable: the file is not a GGUF, or holds a model that transformers does not know.
    """
    file = file.resolve()
    _check_magic(file)
    cache = cache or cache_folder()
    folder = cache / f"gguf-{_identity(file)}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _convert_into_place(file, folder)
    return folder


def _identity(file: Path) -> str:
    status = file.stat()
    return hashlib.sha256(f"{file}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]


def _check_magic(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ModelNotLoadable(f"{file} is not a GGUF file: it does not begin with the letters GGUF.")


def _convert_into_place(file: Path, folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that died: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(file, draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _convert(file: Path, draft: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = _dequantised(file)
    except Exception as error:
        raise ModelNotLoadable(f"{file} could not be read as a GGUF model: {first_line(error)}") from error
    _forget_quantization(model)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    source = {"file": str(file), "bytes": file.stat().st_size}
    (draft / "converted_from.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _dequantised(file: Path) -> Any:
    """The model in fp16, the type of GGUF's own scales; in bf16 if a weight is beyond its range.

    Never in fp32: twice the memory, and the disk, for nothing that the file holds.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = None
    for dtype in (torch.float16, torch.bfloat16):
        del model  # before the next comes: together they may not fit
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
        if all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
            break
    return model


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _forget_quantization(model: Any) -> None:
    """Make the dequantised model an ordinary one: else it refuses to be saved, and to be quantised on reload."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
