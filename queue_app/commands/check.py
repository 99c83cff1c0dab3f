"""`repotune validate` and `schema`: is it right, before anything starts."""

import json
from pathlib import Path

import click

from queue_app.commands.options import json_flag, print_json, say
from queue_app.commands.request import read_request, request_flags


@click.command()
@request_flags
@json_flag
def validate(as_json: bool, **flags: object) -> None:
    """Check configuration, repository, model and device, line by line. Starts nothing, needs no broker."""
    from backends.devices import ANY, Device
    from queue_app.plan import make_plan, refuse_unloadable
    from queue_app.plan_text import model_line, needs_lines, plan_as_json, source_line

    request = read_request(**flags)  # type: ignore[arg-type]
    for device in Device if request.device == ANY else (Device(request.device),):
        request.config.for_device(device)  # refuses keys that do not go together there
    say(f"configuration  ok: {flags['config'] or 'the default'}", as_json=as_json)
    plan = make_plan(request)
    say(f"repository     ok: {source_line(plan)}", as_json=as_json)
    refuse_unloadable(plan)
    known = plan.model.config is not None
    say(f"model          {'ok' if known else 'not known'}: {model_line(plan)}", as_json=as_json)
    for line in needs_lines(plan):
        say(f"memory         {line}", as_json=as_json)
    say(f"device         ok: {plan.device}, queue {plan.queue}", as_json=as_json)
    if as_json:
        print_json({"valid": True, **plan_as_json(plan, None)})


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
