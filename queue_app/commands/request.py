"""The flags that say what to train on which repository, shared by `submit` and `validate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from queue_app.commands.options import also_flag

if TYPE_CHECKING:
    from queue_app.plan import Request

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS = (
    click.option(
        "--repo", default=".", metavar="PATH_OR_URL", show_default=True, help="Git repository: a folder or a URL."
    ),
    click.option("--ref", help="Branch, tag or commit to learn, or a range A..B of commits. Default: HEAD."),
    also_flag,
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        envvar="REPOTUNE_CONFIG",
        show_envvar=True,
        help="Configuration file (YAML) laid over the default; `repotune schema --yaml` prints that.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set any key of the configuration, e.g. optimization.learning_rate=1e-4. May be given more than once.",
    ),
    click.option("--model", help="Hub id, folder, or .gguf file. Default: model.name of the configuration."),
    click.option(
        "--device",
        type=click.Choice(["cuda", "mps", "cpu", "any"]),
        default="any",
        show_default=True,
        help="The device that must run the training; any: whichever worker comes first.",
    ),
    click.option("--epochs", type=int, help="Passes over the data. Default: training.epochs of the configuration."),
    click.option("--max-steps", type=int, help="Stop after so many optimizer steps. Default: the epochs decide."),
)


def request_flags(command: F) -> F:
    """Add the flags to a command, in this order."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def read_request(
    *,
    repo: str,
    ref: str | None,
    also: list[dict[str, Any]],
    config: Path | None,
    settings: tuple[str, ...],
    model: str | None,
    device: str,
    epochs: int | None,
    max_steps: int | None,
    **rest: Any,
) -> "Request":
    """The request that the flags make; flags win over `--set`, that over the file.

    Raises:
        InvalidSpec: the configuration is wrong.
    """
    from jobs.config import load_config
    from queue_app.plan import Request

    flags = {
        "dataset.also": also or None,
        "model.name": model,
        "training.epochs": epochs,
        "training.max_steps": max_steps,
    }
    over = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    loaded = load_config(config, (*settings, *over))
    return Request(repository=repo, ref=ref, config=_with_full_path(loaded), device=device, **rest)


def _with_full_path(config: Any) -> Any:
    """Name a model in a folder of this machine by its full path: the worker runs in another folder."""
    path = Path(config.model.name).expanduser()
    if not path.exists():
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(path.resolve())})})
