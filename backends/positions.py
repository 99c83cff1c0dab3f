"""How long the rows of a model may be: the positions that it was trained on. Loads no machine-learning library."""

from collections.abc import Iterator, Mapping
from typing import Any

from backends.errors import ModelNotLoadable

#: Families without a limit of their own: their distances are biases, not positions.
_UNBOUNDED = frozenset({"bloom", "mpt"})


def refuse_long_rows(model_config: Any, sequence_length: int, name: str) -> str | None:
    """Compare the rows of a dataset with the positions that the model was trained on.

    Args:
        model_config: Of transformers, or the content of a config.json; None where it is not known.
        sequence_length: Tokens of a row.
        name: Of the model.

    Returns:
        A warning where the model stretches its positions by itself; None where the rows fit, or no limit is known.

    Raises:
        ModelNotLoadable: with the longest rows that are possible.
    """
    text_config = _of_text(model_config)
    known = _value(text_config, "max_position_embeddings")
    unbounded = not isinstance(known, int) or known < 1 or _value(text_config, "model_type") in _UNBOUNDED
    if unbounded or sequence_length <= known:
        return None
    rows = f"Rows of {sequence_length} tokens are longer than the {known} positions that {name} knows"
    if _stretches(text_config):
        return f"{rows}: it stretches them, and may be worse beyond"
    raise ModelNotLoadable(f"{rows}: set dataset.sequence_length to {known} or less and build the dataset with that.")


def _of_text(config: Any) -> Any:
    """Of a model that sees pictures, too, the part that reads text."""
    get_text_config = getattr(config, "get_text_config", None)
    if get_text_config:
        return get_text_config()
    part = _value(config, "text_config")
    return part if isinstance(part, Mapping) else config


def _value(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _stretches(config: Any) -> bool:
    """Whether rotary positions are scaled; transformers 5 calls these settings rope_parameters."""
    settings = _value(config, "rope_parameters") or _value(config, "rope_scaling") or {}
    return isinstance(settings, Mapping) and any(kind != "default" for kind in _rope_types(settings))


def _rope_types(settings: Mapping[str, Any]) -> Iterator[str]:
    """The kinds in the settings, which some families have for each kind of layer."""
    kind = settings.get("rope_type", settings.get("type"))
    if isinstance(kind, str):
        yield kind
    for part in settings.values():
        if isinstance(part, Mapping):
            yield from _rope_types(part)
