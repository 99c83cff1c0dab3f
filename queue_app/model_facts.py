"""What is known of a base model before a byte of its weights is read: the shape that the memory model needs.

A folder is asked for its config.json, a .gguf file for its header, a hub id for its config.json on the hub. The default
model is known by heart, so that a plan for it needs no network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queue_app.gguf_header import NotGguf, read_gguf_header

#: A plan should not wait for a hub that does not answer.
HUB_TIMEOUT_SECONDS = 5.0

KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "bigcode/starcoder2-3b": {
        "model_type": "starcoder2",
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
}

# transformers' name of a field -> the field of a .gguf header, after "<architecture>."
_GGUF_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The shape of a model, or why it is not known."""

    name: str
    #: The model's configuration with the field names of transformers; None where it is not known.
    config: Mapping[str, Any] | None = None
    #: Where the configuration was found, for people.
    origin: str = ""
    #: One clause: why the configuration is not known.
    problem: str = ""
    #: Whether `name` is meant as a file or folder, not as a hub id.
    is_path: bool = False


def find_model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Look for the configuration of the model `name`; never raises for a model that cannot be found."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(name, path)
    if path.is_file():
        return _from_file(name, path)
    if name in KNOWN_MODELS and revision is None:
        return ModelFacts(name=name, config=KNOWN_MODELS[name], origin="known model")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        return ModelFacts(name=name, is_path=True, problem=f"there is no file or folder {name} on this machine")
    return _from_hub(name, revision)


def _from_folder(name: str, folder: Path) -> ModelFacts:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ModelFacts(name=name, is_path=True, problem=f"the folder {name} has no config.json")
    except (OSError, ValueError) as error:
        return ModelFacts(name=name, is_path=True, problem=f"{file} cannot be read ({error})")
    if not isinstance(config, dict):
        return ModelFacts(name=name, is_path=True, problem=f"{file} holds no model configuration")
    return ModelFacts(name=name, is_path=True, config=config, origin="config.json of the folder")


def _from_file(name: str, file: Path) -> ModelFacts:
    try:
        header = read_gguf_header(file)
        architecture = header.metadata["general.architecture"]
        config = {ours: header.metadata.get(f"{architecture}.{theirs}") for ours, theirs in _GGUF_FIELDS.items()}
    except (OSError, NotGguf, KeyError) as error:
        return ModelFacts(name=name, is_path=True, problem=f"{name} is not a readable .gguf file ({error})")
    config["vocab_size"] = header.metadata.get(
        f"{architecture}.vocab_size", header.metadata.get("tokenizer.ggml.tokens")
    )
    config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    missing = [field for field, value in config.items() if value is None]
    if missing:
        return ModelFacts(name=name, is_path=True, problem=f"the header of {name} lacks {', '.join(missing)}")
    config |= {"model_type": architecture, "tie_word_embeddings": "output.weight" not in header.tensors}
    return ModelFacts(name=name, is_path=True, config=config, origin="header of the .gguf file")


def _from_hub(name: str, revision: str | None) -> ModelFacts:
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        text = Path(cached).read_text(encoding="utf-8") if isinstance(cached, str) else _ask_hub(name, revision)
        config = json.loads(text)
    except Exception as error:  # noqa: BLE001 - the hub's many errors all mean the same here: not known
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ModelFacts(name=name, problem=f"the hub gave no config.json for {name} ({first_line.rstrip('.')})")
    return ModelFacts(name=name, config=config, origin="config.json on the hub")


def _ask_hub(name: str, revision: str | None) -> str:
    """The text of config.json. A plain request: `hf_hub_download` tries again for half a minute when offline."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    if constants.is_offline_mode():
        raise OSError("HF_HUB_OFFLINE is set")
    response = get_session().get(
        hf_hub_url(name, "config.json", revision=revision),
        headers=build_hf_headers(),
        timeout=HUB_TIMEOUT_SECONDS,
        follow_redirects=True,
    )
    if not response.is_success:
        raise OSError(f"HTTP status {response.status_code}")
    return response.text
