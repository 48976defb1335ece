"""`ecluse monitor`."""

import typer

from console.monitor_calibrate import calibrate
from console.output import ConfigOption, ServersOption, settings_of

app = typer.Typer(invoke_without_command=True)


@app.callback()
def monitor(
    context: typer.Context,
    config: ConfigOption = None,
    servers: ServersOption = None,
) -> None:
    """Watch what workers count, report on each window that closes, and ask for a new model where one is due, until stopped
    (SIGTERM, Ctrl-C).

    Start a second one to stand in: one of them watches. `ecluse drift status` shows what it says. /metrics and /health listen
    where monitor.metrics_host and monitor.metrics_port say.
    """
    if context.invoked_subcommand is not None:
        return
    settings = settings_of(config, servers)
    from retrain.drift.app import run_monitor

    run_monitor(settings)


app.command()(calibrate)
