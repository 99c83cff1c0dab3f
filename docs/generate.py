"""Writes the pages of docs/ that repeat what the program knows: commands.md and configuration.md.

Run as: make docs. `tests/test_docs.py` fails when a page is stale.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def pages() -> dict[str, str]:
    """The text of every generated page by its file name."""
    return {"commands.md": _commands(), "configuration.md": _configuration()}


def help_of(*words: str) -> str:
    """What `repotune WORDS --help` prints on a terminal 100 columns wide."""
    import click

    from queue_app.cli import program

    command: click.Command = program
    context = click.Context(command, info_name="repotune", terminal_width=100, max_content_width=100)
    for word in words:
        assert isinstance(command, click.Group)  # noqa: S101
        found = command.get_command(context, word)
        assert found is not None  # noqa: S101
        command = found
        context = click.Context(command, info_name=word, parent=context, terminal_width=100, max_content_width=100)
    return command.get_help(context)


def command_names() -> list[str]:
    """Every command of the program, in the order its help lists them."""
    import click

    from queue_app.cli import program

    return program.list_commands(click.Context(program))


def _commands() -> str:
    parts = [
        "# Commands\n",
        "`submit-job` is `repotune submit`, `device-worker` is `repotune worker`. Generated: `make docs`.\n",
        f"```text\n{help_of()}\n```\n",
    ]
    parts += [f"## repotune {name}\n\n```text\n{help_of(name)}\n```\n" for name in command_names()]
    return "\n".join(parts)


def _configuration() -> str:
    from jobs.config import default_text
    from jobs.spec import Config

    schema = Config.model_json_schema()
    parts = [
        "# Configuration\n",
        "Every key of the YAML file, generated from the schema that `repotune schema` prints: `make docs`.\n",
        "Flags override the file; `--set section.key=value` reaches any key, also `--set cuda.lora.rank=64`.",
        "The sections `mps`, `cuda` and `cpu` may hold any of the other sections and override them on that device.\n",
    ]
    for name in ("model", "quantization", "lora", "dataset", "optimization", "training", "output"):
        parts += [f"## {name}\n", "| key | default | what it does |", "|---|---|---|", *_rows(schema, name), ""]
    parts += ["## The default file\n", f"```yaml\n{default_text()}```\n"]
    return "\n".join(parts)


def _rows(schema: dict[str, Any], section: str) -> Iterator[str]:
    reference = schema["properties"][section]["$ref"].rsplit("/", 1)[-1]
    for key, node in schema["$defs"][reference]["properties"].items():
        yield f"| `{key}` | `{_yaml(node.get('default'))}` | {node['description'].replace('|', chr(92) + '|')} |"


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
