"""`repotune monitor`: the dashboard."""

import click


@click.command()
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    envvar="REPOTUNE_MONITOR_ADDRESS",
    show_envvar=True,
    help="Address to listen on. One that others can reach needs REPOTUNE_MONITOR_AUTH.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5555,
    show_default=True,
    envvar="REPOTUNE_MONITOR_PORT",
    show_envvar=True,
    help="Port to listen on.",
)
@click.option("--local", is_flag=True, help="Watch the embedded broker of `submit --local`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (url, user, password) before serving.")
def monitor(address: str, port: int, local: bool, as_json: bool) -> None:
    """Open the dashboard (Flower) on this machine; Ctrl-C ends it.

    A user and a password are always asked for: those of REPOTUNE_MONITOR_AUTH (user:password), else a password made up
    and printed once.
    """
    from queue_app.monitor import serve

    serve(address, port, local=local, as_json=as_json)
