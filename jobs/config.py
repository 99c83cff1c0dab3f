"""Reads the configuration: the shipped default, a file over it, `--set` over that. Errors name key, file and line."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.spec import Config, InvalidSpec, reason

DEFAULT_FILE = "default.yaml"


def default_text() -> str:
    """The YAML that ships as the default, comments included."""
    return resources.files("jobs").joinpath(DEFAULT_FILE).read_text(encoding="utf-8")


def load_config(path: Path | None = None, settings: Sequence[str] = ()) -> Config:
    """The configuration: defaults, then `path`, then `settings` ("section.key=value", the last one wins).

    Raises:
        InvalidSpec: the file cannot be read, or a key or value is wrong.
    """
    lines: dict[tuple[str, ...], str] = {}
    data = _parse(default_text(), f"the default {DEFAULT_FILE}", lines)
    if path is not None:
        data = _merge(data, _parse(_read(path), str(path), lines))
    for setting in settings:
        data = _merge(data, _parse_setting(setting, lines))
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec(_sentence(error, lines)) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidSpec(f"Config file {path} does not exist: check the path given to --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"Config file {path} cannot be read ({error}).") from error


def _parse(text: str, name: str, lines: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Parse YAML and note, for every key, in which file and line it stands."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise InvalidSpec(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error}).") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidSpec(f"{name}: expected sections such as `model:` and `lora:`, found {_kind_of(data)}.")
    _note_lines(node, name, (), lines)
    return data


def _note_lines(node: yaml.Node | None, name: str, path: tuple[str, ...], lines: dict[tuple[str, ...], str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        here = (*path, str(key.value))
        if key.value in seen:
            raise InvalidSpec(f"{name}, line {key.start_mark.line + 1}: {'.'.join(here)} is given twice: keep one.")
        seen.add(key.value)
        lines[here] = f"{name}, line {key.start_mark.line + 1}"
        _note_lines(value, name, here, lines)


def _parse_setting(setting: str, lines: dict[tuple[str, ...], str]) -> dict[str, Any]:
    key, separator, text = setting.partition("=")
    path = tuple(key.strip().split("."))
    if not separator or not all(path):
        raise InvalidSpec(f"--set {setting}: expected section.key=value, e.g. --set optimization.learning_rate=1e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec(f"--set {setting}: the value is not valid YAML.") from error
    for depth in range(1, len(path) + 1):
        lines[path[:depth]] = f"--set {setting}"
    for part in reversed(path):
        value = {part: value}
    return dict(value)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section. A section left empty (`lora:`) changes nothing."""
    merged = dict(base)
    for key, value in over.items():
        if value is None and isinstance(merged.get(key), Mapping):
            continue
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _sentence(error: ValidationError, lines: Mapping[tuple[str, ...], str]) -> str:
    """The first problem as one sentence: where, which key, what is allowed; then how many more there are."""
    first = error.errors()[0]
    path = _real_path(tuple(str(part) for part in first["loc"]), lines)
    where = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), "")
    key = ".".join(path) or "configuration"
    others = len(error.errors()) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} after this one.)" if others else ""
    return f"{where + ': ' if where else ''}{key}: {_problem(first, path)}.{more}"


def _real_path(path: tuple[str, ...], lines: Mapping[tuple[str, ...], str]) -> tuple[str, ...]:
    """Cut what pydantic adds for the branches of a union, e.g. ('lora', 'target_modules', 'str')."""
    longest = max((n for n in range(1, len(path) + 1) if path[:n] in lines), default=len(path))
    return path[:longest]


def _problem(first: Any, path: tuple[str, ...]) -> str:
    if first["type"] == "extra_forbidden":
        return f"unknown key; {_allowed_keys(path)}"
    return reason(first)


def _allowed_keys(path: tuple[str, ...]) -> str:
    """The keys that may stand where an unknown one was found."""
    schema = Config.model_json_schema()
    node: Any = schema
    for part in path[:-1]:
        node = _resolve(schema, node["properties"].get(part, {}))
    return "allowed here: " + ", ".join(sorted(node.get("properties", {})))


def _resolve(schema: Any, node: Any) -> Any:
    """Follow $ref and `X | null` to the object they mean."""
    for option in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
        if "$ref" in option:
            return schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return node


def _kind_of(data: Any) -> str:
    return "a list" if isinstance(data, list) else f"the value {data!r}"
