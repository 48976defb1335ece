"""The `ecluse` command: nouns and verbs, each in a file of its own."""

import logging
import sys

import typer
from confluent_kafka import KafkaException

from console import broker_command, bypass, config, dataset, dlq, drift, labels, model, monitor, retrain, store, topics
from console.alerts import alerts_command
from console.audit import audit_command
from console.autoscale import autoscale_command
from console.demo import demo
from console.doctor import doctor_command
from console.init import init
from console.label import label_command
from console.output import fail
from console.publish import publish
from console.replay import replay_command
from console.score import score
from console.serve import serve_command
from console.trainer import trainer_command
from console.worker import worker_command
from ecluse import __version__
from ecluse.errors import EcluseError

app = typer.Typer(
    name="ecluse",
    help="Score event streams on Kafka with machine-learning models, losing nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),  # noqa: ARG001
) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("faust", "mode"):  # what they say at INFO is about themselves
        logging.getLogger(chatty).setLevel(logging.WARNING)


# In the order in which a newcomer needs them.
app.command()(demo)
app.command()(init)
app.add_typer(broker_command.app, name="broker")
app.add_typer(topics.app, name="topics")
app.add_typer(config.app, name="config")
app.add_typer(model.app, name="model")
app.add_typer(bypass.app, name="bypass")
app.command("worker")(worker_command)
app.add_typer(store.app, name="store")
app.add_typer(monitor.app, name="monitor")
app.command("autoscale")(autoscale_command)
app.command("serve")(serve_command)
app.command()(publish)
app.command()(score)
app.command("alerts")(alerts_command)
app.command("label")(label_command)
app.add_typer(labels.app, name="labels")
app.add_typer(dataset.app, name="dataset")
app.add_typer(drift.app, name="drift")
app.add_typer(retrain.app, name="retrain")
app.command("trainer")(trainer_command)
app.add_typer(dlq.app, name="dlq")
app.command("audit")(audit_command)
app.command("replay")(replay_command)
app.command("doctor")(doctor_command)


def run() -> None:
    """Run a command. Exit code 0: done, 1: failed (a sentence on stderr), 2: wrong use."""
    try:
        app()
    except EcluseError as error:
        fail(str(error))
    except KafkaException as error:
        fail(f"Kafka refused: {error.args[0].str()}")
    except KeyboardInterrupt:
        sys.exit(130)
