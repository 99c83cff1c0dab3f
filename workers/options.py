"""Options that the commands of this package share, and the configuration that they give together."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backends.devices import Device

if TYPE_CHECKING:
    from jobs.spec import Config

device_flag = click.option(
    "--device",
    type=click.Choice([device.value for device in Device]),
    help="Device to use. Default: the best that answers (cuda, else mps, else cpu).",
)
model_flag = click.option("--model", help="Hub id, folder, or .gguf file. Default: model.name of the configuration.")
config_flag = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="REPOTUNE_CONFIG",
    show_envvar=True,
    help="Configuration file (YAML) laid over the default; `repotune schema --yaml` prints that.",
)
set_flag = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any key of the configuration, e.g. dataset.sequence_length=512. May be given more than once.",
)


def read_config(file: Path | None, settings: tuple[str, ...], flags: dict[str, Any]) -> "Config":
    """The configuration, flags laid over it; a flag that is None was not given."""
    import json

    from jobs.config import load_config

    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    return load_config(file, [*settings, *given])
