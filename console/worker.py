"""`ecluse worker`."""

from typing import Annotated, Literal

import typer

from console.output import ConfigOption, ServersOption, settings_of


def worker_command(
    config: ConfigOption = None,
    servers: ServersOption = None,
    start: Annotated[
        Literal["earliest", "latest"] | None,
        typer.Option("--from", help="Where a group that has no offsets yet begins. One that has some goes on there."),
    ] = None,
) -> None:
    """Score events until stopped (SIGTERM or Ctrl-C), which commits what is done and leaves the group.

    Start one for each core, up to one for each partition; a new one takes its share. /metrics and /health listen where
    worker.metrics_host and worker.metrics_port say.
    """
    from scoring.worker import run_worker

    run_worker(settings_of(config, servers), start)
