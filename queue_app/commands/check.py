"""`repotune validate` and `schema`: is it right, before anything starts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from queue_app.commands.options import finish, json_flag, print_json, say
from queue_app.commands.request import read_request, request_flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from queue_app.plan import Plan
    from queue_app.preflight.line import CheckLine


@click.command()
@request_flags
@click.option(
    "--dataset",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Check this dataset, which `repotune dataset` wrote, byte by byte.",
)
@click.option("--local", is_flag=True, help="This machine must run it: what it lacks is a fail, not a warning.")
@json_flag
def validate(*, dataset: Path | None, local: bool, as_json: bool, **flags: Any) -> None:
    """Check all that a training needs, a line each: pass, warn or fail, and what to do. Starts nothing.

    Configuration, repository, access to the model, memory, dataset, disk, mains power, temperature, hardware. No
    broker is needed. `submit` checks the same and starts nothing where a check fails. The exit code is 0 if none
    fails, else that of the first one that does.
    """
    from backends.errors import RepotuneError
    from queue_app.preflight.checks import Preflight
    from queue_app.preflight.line import Place, failed
    from queue_app.settings import load_settings

    try:
        request = read_request(**flags)
    except RepotuneError as error:
        _verdict([_said(failed("configuration", error), as_json=as_json)], None, as_json=as_json)
        return
    checks = Preflight(request, load_settings(), Place.HERE if local else Place.EITHER, dataset)
    lines = [_said(line, as_json=as_json) for line in checks.lines()]
    _verdict(lines, checks.plan, as_json=as_json)


def _said(line: "CheckLine", *, as_json: bool) -> "CheckLine":
    say(line.for_people(), as_json=as_json)
    return line


def _verdict(lines: "Sequence[CheckLine]", plan: "Plan | None", *, as_json: bool) -> None:
    """Tell scripts what was found, and leave with the exit code of the first fail."""
    from queue_app.plan_text import plan_as_json
    from queue_app.preflight.line import Grade

    fail = next((line for line in lines if line.grade is Grade.FAIL), None)
    if fail:
        click.echo(f"repotune: {fail.sentence}", err=True)
    if as_json:
        checks = {"valid": fail is None, "checks": [line.to_json() for line in lines]}
        error = {"error": fail.sentence, "exit_code": int(fail.exit_code)} if fail else {}
        print_json(checks | error | (plan_as_json(plan, None) if plan else {}))
    if fail:
        finish(fail.exit_code)


@click.command()
@click.option(
    "--yaml", "as_yaml", is_flag=True, help="Print the default configuration file instead, with its comments."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this new file instead of standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="With --output: say as JSON what was written.")
def schema(as_yaml: bool, output: Path | None, as_json: bool) -> None:
    """Print the JSON schema of the configuration, for editors that complete and check YAML."""
    from jobs.config import default_text
    from jobs.spec import Config

    text = default_text() if as_yaml else json.dumps(Config.model_json_schema(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.UsageError(f"{output} exists already: remove it or name another file.") from None
    except OSError as error:
        raise click.UsageError(f"{output} cannot be written ({error.strerror or error}).") from None
    say(f"Wrote {output}.", as_json=as_json)
    if as_json:
        print_json({"output": str(output)})
