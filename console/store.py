"""`ecluse store`, and what else is done to the training store."""

from typing import Annotated

import typer

from console.output import ConfigOption, ServersOption, settings_of
from console.store_forget import forget

app = typer.Typer(invoke_without_command=True)
app.command("forget")(forget)


@app.callback()
def store(
    context: typer.Context,
    skip_lost: Annotated[
        bool,
        typer.Option(
            "--skip-lost", help="Go on behind records that were deleted before they were stored, and say which."
        ),
    ] = False,
    config: ConfigOption = None,
    servers: ServersOption = None,
) -> None:
    """Write events, predictions, bypass samples and labels into the training store, each once, until stopped (SIGTERM, Ctrl-C).

    Start a second one to share the work and to stand in. What a sink has in hand when it stops is read again by the next.
    /metrics and /health listen where store.metrics_host and store.metrics_port say.
    """
    if context.invoked_subcommand is not None:
        return
    settings = settings_of(config, servers)
    from ingest.sink_app import run_store

    run_store(settings, past_lost=skip_lost)
