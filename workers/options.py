"""Options that the commands of this package share, and the configuration that they give together."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backends.devices import Device

if TYPE_CHECKING:
    from jobs.published import Published
    from jobs.spec import Config

device_flag = click.option(
    "--device",
    type=click.Choice([device.value for device in Device]),
    help="Device to use. Default: the best that answers (cuda, else mps, else cpu).",
)
model_flag = click.option("--model", help="Hub id, folder, or .gguf file. Default: model.name of the configuration.")
adapter_flag = click.option(
    "--adapter",
    "adapter_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of an adapter, or the folder that `train` or `pull` put it into.",
)
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


def read_config_of(adapter: "Published", file: Path | None, settings: tuple[str, ...], model: str | None) -> "Config":
    """The configuration whose base is `model`, else what `--set` names, else the one that the adapter was trained on.

    The base that a file names is not asked: files are shared by many trainings, and an adapter is of use on one base.

    Raises:
        NoAdapter: nobody names a base, or the adapter names one that is not here.
        InvalidSpec: the configuration is wrong.
    """
    import json

    from jobs.config import load_config

    if model is None and any(setting.partition("=")[0].strip() == "model.name" for setting in settings):
        return load_config(file, settings)
    base, revision = base_of(adapter, model)
    return load_config(file, [f"model.revision={json.dumps(revision)}", *settings, f"model.name={json.dumps(base)}"])


def base_of(adapter: "Published", model: str | None) -> tuple[str, str | None]:
    """Name and revision of the base: as it is given now, else as the adapter names it.

    Raises:
        NoAdapter: it names none, or one that is not here.
    """
    from jobs.base import is_local
    from jobs.published import NoAdapter

    if model is not None:
        return model, adapter.revision if model == adapter.base else None
    if not adapter.base:
        raise NoAdapter(f"The adapter in {adapter.folder} does not name its base: name it by --model.")
    if is_local(adapter.base) and not Path(adapter.base).expanduser().exists():
        raise NoAdapter(f"The adapter's base {adapter.base} is not here: name it by --model.")
    return adapter.base, adapter.revision
