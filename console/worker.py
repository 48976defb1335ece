"""`ecluse worker`."""

import os
import signal
import sys
import threading
from typing import Annotated, Literal

import typer

from console.output import ConfigOption, ServersOption, say, settings_of


def worker_command(
    config: ConfigOption = None,
    servers: ServersOption = None,
    start: Annotated[
        Literal["earliest", "latest"] | None,
        typer.Option("--from", help="Where a group that has no offsets yet begins. One that has some goes on there."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Run so many workers, a process each, and restart one that crashes.", show_default=False
        ),
    ] = None,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby", help="Load the model and wait outside the group; join while too much work waits, then leave."
        ),
    ] = False,
    stop_at_eof: Annotated[bool, typer.Option("--stop-at-eof", hidden=True)] = False,
) -> None:
    """Score events until stopped (SIGTERM or Ctrl-C), which commits what is done and leaves the group.

    Start one for each core, up to one for each partition; a new one takes its share. /metrics and /health listen where
    worker.metrics_host and worker.metrics_port say.
    """
    settings = settings_of(config, servers)
    if standby and settings.worker.static_member:
        raise typer.BadParameter(
            "--standby and worker.static_member: each time that it leaves, its partitions would wait for the session."
        )
    if processes is not None:
        from console.supervisor import supervisor_of

        supervisor = supervisor_of(settings, config, servers, start, standby=standby)
        if processes > settings.topics.partitions:
            say(f"Of {processes} workers {settings.topics.partitions} can have a partition: so many are started.")
        supervisor.scale(min(processes, settings.topics.partitions))
        raise typer.Exit(supervisor.run())
    if stop_at_eof:
        threading.Thread(target=_stop_at_eof, name="supervisor's pipe", daemon=True).start()
    # Before all that takes long, until Faust takes it over: the first process of a container has no handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from scoring.worker import run_worker

    run_worker(settings, start, standby=standby)


def _stop_at_eof() -> None:
    """A supervisor's pipe ends when it does, however it ended: then the worker stops in order."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
