"""`ecluse broker`: the development broker, started and stopped. Needs no configuration."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from console import broker
from console.output import JsonOption, out, print_json

app = typer.Typer(help="The development broker: real Apache Kafka, one KRaft node.", no_args_is_help=True)

DataOption = Annotated[Path, typer.Option("--data", help="The broker's data folder.")]
_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"


@app.command()
def start(
    port: int = typer.Option(
        broker.DEFAULT_PORT, "--port", min=0, max=65535, help="Where clients connect; 0: any free."
    ),
    data: DataOption = broker.DEFAULT_DATA,
    json: JsonOption = False,
) -> None:
    """Start the broker, unless KAFKA_BOOTSTRAP_SERVERS names a cluster: then that one is used."""
    if servers := os.environ.get(_VARIABLE):
        _tell(f"{_VARIABLE} is set: everything uses the cluster at {servers}. No broker was started.", servers, json)
        return
    running = broker.start(data, port)
    text = f"Kafka {broker.KAFKA_VERSION} answers at {running.servers} (process {running.pid}, data in {running.data})."
    if running.port != broker.DEFAULT_PORT:
        text += f"\nFor the other commands: export {_VARIABLE}={running.servers}"
    _tell(text, running.servers, json, running)


@app.command()
def stop(data: DataOption = broker.DEFAULT_DATA, json: JsonOption = False) -> None:
    """Stop the broker; its topics stay in the data folder."""
    stopped = broker.stop(data)
    if json:
        print_json({"stopped": stopped})
    else:
        out.print("The broker has stopped." if stopped else f"No broker ran on {data}.", soft_wrap=True, markup=False)


@app.command()
def status(data: DataOption = broker.DEFAULT_DATA, json: JsonOption = False) -> None:
    """Say whether a broker runs. Exit code 1: none does."""
    running = broker.find(data)
    servers = os.environ.get(_VARIABLE) or (running.servers if running else None)
    answers = servers is not None and broker.answers(servers)
    if servers is None:
        text = f"No broker runs on {data}: `ecluse broker start` starts one."
    elif running and servers == running.servers:
        verb = "answers" if answers else "does not answer"
        text = f"Kafka {verb} at {servers} (process {running.pid}, data in {running.data})."
    else:
        text = f"{_VARIABLE} is set: the cluster at {servers} {'answers' if answers else 'does not answer'}."
        text += f" A development broker runs at {running.servers} as well." if running else ""
    _tell(text, servers, json, running, answers=answers)
    if not answers:
        raise typer.Exit(1)


def _tell(
    text: str, servers: str | None, json: bool, running: broker.RunningBroker | None = None, *, answers: bool = True
) -> None:
    if json:
        print_json({"servers": servers, "answers": answers, "broker": asdict(running) if running else None})
    else:
        out.print(text, soft_wrap=True, markup=False)
