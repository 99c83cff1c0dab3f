"""From the name of a model to its files, tokenizer, configuration and weights.

A name is a hub id, a folder saved by transformers, or the path of a .gguf file (`backends.gguf_cache`). Only
safetensors are read and no code that came with a model ever runs. Whatever is wrong is told in one sentence.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends import gguf_cache, tokenizer_files
from backends.errors import ModelNotLoadable
from backends.gguf_cache import first_line
from backends.hardware import is_out_of_memory

#: What a hub id looks like; any other name is a path.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
#: Seconds to wait for the hub before saying that it does not answer.
HUB_TIMEOUT = 5.0

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_CAUSAL_ARCHITECTURES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def model_folder(name: str, revision: str | None = None, cache: Path | None = None) -> str:
    """What to hand to transformers for `name`: a folder, or the hub id as it is.

    Args:
        name: Hub id, folder, or path of a .gguf file.
        revision: Of a hub model; a file or folder has none.
        cache: Where converted GGUF files are kept; None means the user's cache folder.

    Raises:
        ModelNotLoadable: there is no such file or folder, or it holds no model.
    """
    path = Path(name).expanduser()
    if revision and name and path.exists():
        raise ModelNotLoadable(f"{path} lies on this machine and has no revisions: leave model.revision empty.")
    if path.is_file() and path.suffix == ".gguf":
        return str(gguf_cache.converted(path, cache))
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotLoadable(f"The folder {path} holds no model: there is no config.json in it.")
        return str(path.resolve())
    if path.is_file():
        raise ModelNotLoadable(f"{path} is a file but no .gguf: name a folder with a saved model, or a .gguf file.")
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return name
    raise ModelNotLoadable(f"There is no model at {name or repr(name)}: no such file or folder.")


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """The folder on this machine with the files of the model's tokenizer, without importing transformers.

    A .gguf file that was never converted is converted now, which does import it. A folder needs no weights and no
    configuration for this: a tokenizer is enough to make a dataset with.

    Raises:
        ModelNotLoadable: no such model, no tokenizer with it, or the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if name and not revision and _has_tokenizer(path):
        return path.resolve()
    folder = _local_folder(name, revision, _SMALL_FILES)
    if not _has_tokenizer(folder):
        raise ModelNotLoadable(f"The model {name} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there.")
    return folder


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in `folder`: its vocabulary, its ends, its `backend_tokenizer`, as transformers has them.

    Transformers is imported only for what the files alone do not tell, and then once for a folder.

    Raises:
        ModelNotLoadable: there is none, or it cannot be read.
    """
    light = tokenizer_files.light_tokenizer(folder)
    if light is not None:
        return light
    tokenizer = load_tokenizer(str(folder))
    tokenizer_files.keep_tokenizer(folder, tokenizer)
    return tokenizer


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The model's tokenizer, as transformers has it.

    Raises:
        ModelNotLoadable: no such model, no tokenizer with it, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    folder = tokenizer_folder(name, revision)
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            raise ModelNotLoadable(f"The tokenizer of {name} cannot be read: {first_line(error)}") from error


def tokenizer_file_sha256(tokenizer: Any) -> str:
    """Identity of a tokenizer: the same for the same vocabulary, merges and rules, wherever its files lie."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if backend.padding is not None or backend.truncation is not None:
        # Settings of the last call, not of the tokenizer.
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def document_end_id(tokenizer: Any) -> int:
    """The token that ends a document in training text.

    Chat models name their turn's end as eos; where the vocabulary has `<|endoftext|>`, that is what text ended with.

    Raises:
        ModelNotLoadable: the tokenizer has neither.
    """
    identifier = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if identifier is None:
        raise ModelNotLoadable("The tokenizer has no token that ends a document: neither <|endoftext|> nor an eos.")
    return int(identifier)


def load_config(name: str, revision: str | None = None) -> Any:
    """The model's configuration, checked to be of a causal language model.

    Raises:
        ModelNotLoadable: no such model, an architecture that transformers does not know, or not a causal one.
    """
    return _read_config(name, _local_folder(name, revision, _SMALL_FILES))


def load_base(
    name: str,
    revision: str | None = None,
    *,
    dtype: Any,
    device: str,
    quantization_config: Any = None,
    attention: Callable[[Any], str | None] = lambda _config: None,
) -> Any:
    """The pretrained model with its weights on `device`, tensor by tensor.

    Every dropout of its own is 0: it served the pretraining, and an adapter, which has one, gains nothing by it.

    Args:
        name: Hub id, folder, or path of a .gguf file.
        revision: Of a hub model.
        dtype: `torch.dtype` of the weights that are not quantised.
        device: Where the weights go, as torch names it.
        quantization_config: As `from_pretrained` takes it.
        attention: Gives the attention for the model's configuration, as `from_pretrained` takes it.

    Raises:
        ModelNotLoadable: whatever keeps the model from loading whole.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = _local_folder(name, revision, [*_SMALL_FILES, "*.safetensors"])
    config = _read_config(name, folder)
    quantization_config = _agreed_quantization(name, config, quantization_config)
    _switch_dropout_off(config)
    with quiet():
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map={"": device},
                quantization_config=quantization_config,
                attn_implementation=attention(config),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            _raise_if_out_of_memory(error)
            raise ModelNotLoadable(
                f"The weights of {name} cannot be loaded ({first_line(error).rstrip('.')}): fetch the model anew."
            ) from error
    _check_complete(name, loading)
    # PEFT writes this name into adapters: the one people know, not a folder of this machine's cache.
    model.name_or_path = name
    return model


def _local_folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of a model on this machine, fetched from the hub if need be."""
    source = model_folder(name, revision)
    if Path(source).is_dir():
        return Path(source)
    return _fetched(source, revision, patterns)


def _fetched(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns="*/*", etag_timeout=HUB_TIMEOUT
            )
        )
    except errors.GatedRepoError as error:
        raise ModelNotLoadable(
            f"The hub gives {name} only to those who accepted its terms: accept them there, then run `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelNotLoadable(f"The hub has no model {name}{at}, and there is no folder of that name.") from error
    except Exception as error:
        raise ModelNotLoadable(
            f"The model {name}{at} is no folder here, is not in the hub's cache, and the hub did not give it "
            f"({first_line(error)}): check the network, or name a folder or a .gguf file."
        ) from error


def _read_config(name: str, folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelNotLoadable(f"The model {name} has no config.json.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        _refuse_own_code(name, folder, error)
        raise ModelNotLoadable(f"The configuration of {name} cannot be read: {first_line(error)}") from error
    _check_causal(name, config)
    return config


def _refuse_own_code(name: str, folder: Path, error: Exception) -> None:
    """Say so where a configuration cannot be read because it names code of its own."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map")
    except (AttributeError, OSError, ValueError):
        return
    if named:
        raise ModelNotLoadable(
            f"The model {name} needs program code that comes with it (trust_remote_code; auto_map in its config.json), "
            "and repotune never runs such code: choose a model of an architecture that transformers knows."
        ) from error


def _check_causal(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    architectures = config.architectures or []
    trained_as_causal = not architectures or any(one.endswith(_CAUSAL_ARCHITECTURES) for one in architectures)
    decodes_only = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if not (decodes_only and trained_as_causal):
        kind = ", ".join(architectures) or config.model_type
        raise ModelNotLoadable(f"The model {name} is not a causal language model ({kind}): choose one that is.")


def _agreed_quantization(name: str, config: Any, wanted: Any) -> Any:
    """What is left to ask for: nothing where the files are quantised in the wanted way already."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return wanted
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    method = stored.get("quant_method") or "in an unnamed way"
    asked = {} if wanted is None else wanted.to_dict()
    if method != asked.get("quant_method"):
        raise ModelNotLoadable(
            f"The weights of {name} are already quantised ({method}): name the unquantised model, "
            "repotune quantises while it loads."
        )
    if _bits(stored) != _bits(asked):
        raise ModelNotLoadable(
            f"The weights of {name} are already quantised to {_bits(stored)} bits, and {_bits(asked)} are asked for: "
            "change quantization.kind, or name the unquantised model."
        )
    if "compute" in asked:
        _set_compute(name, stored, asked["compute"])
        config.quantization_config = stored
    return None


def _bits(quantization: dict[str, Any]) -> int:
    """Of a weight: as our own configuration says it, or bitsandbytes'."""
    own = quantization.get("bits")
    if own is not None:
        return int(own)
    return 4 if quantization.get("load_in_4bit") else 8


def _set_compute(name: str, stored: dict[str, Any], compute: str) -> None:
    """How to multiply is chosen anew each time a folder is loaded; what the weights allow is not."""
    if compute == "int8" and stored.get("group_size") is not None:
        raise ModelNotLoadable(
            f"The weights of {name} were quantised in groups of {stored['group_size']}, and products in int8 need one "
            "scale per row: set quantization.compute to exact, or name the unquantised model."
        )
    stored["compute"] = compute


def _check_complete(name: str, loading: dict[str, Any]) -> None:
    """Weights that are not in the file would be random, and training on them a waste that nothing reports."""
    absent = sorted(loading.get("missing_keys") or ()) + sorted(
        str(entry[0]) for entry in loading.get("mismatched_keys") or ()
    )
    if absent:
        raise ModelNotLoadable(
            f"The model {name} is incomplete: {len(absent)} weights are absent or of another shape, first {absent[0]}."
        )


def _raise_if_out_of_memory(error: Exception) -> None:
    """Let a lack of device memory through: it says nothing about the model, and the caller knows what to do."""
    if is_out_of_memory(error):
        raise error


def _switch_dropout_off(config: Any) -> None:
    for name, value in copy.copy(vars(config)).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars out of logs that people read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
