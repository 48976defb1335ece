"""`ecluse demo`: transactions through real Kafka, scored by two workers, watched, learnt from and counted."""

import os
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from console.output import JsonOption, err, fail

if TYPE_CHECKING:
    from console.demo_data import Scene
    from console.demo_end import Outcome
    from console.demo_view import Steps
    from console.demo_watch import Watch
    from console.stage import Child, Stage
    from ecluse.settings import Settings

_PARTITIONS = 4
_WORKERS = ("worker 1", "worker 2")
_LOOK_SECONDS = 0.5
#: How long workers and sink may take to be ready.
_READY_SECONDS = 60.0


def demo(
    *,
    events: Annotated[int, typer.Option(min=100, max=1_000_000, help="How many events to stream.")] = 30_000,
    data: Annotated[
        Path | None,
        typer.Option(help="A labelled file to play, instead of generated transactions.", show_default=False),
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="Plain lines; so it is anyway where there is no terminal.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """See it work on this machine: a broker, two workers, a stream of which a share goes past the model, a drift that the
    monitor notices, the new model that the trainer then makes, in mid-stream, the training store, the audit, a training set.

    Everything is its own and temporary: nothing is left running or lying about. Exit code 1: an event is missing or doubled, on
    the topics, in the store or in the workers' profiles, no alert with reasons was seen, nobody asked for a new model, its
    training failed, a worker did not take it up, or there is no training set. With KAFKA_BOOTSTRAP_SERVERS set, that cluster is
    used, with topics of the demo's own.
    """
    from console.demo_view import Steps
    from console.stage import Stage

    live = not headless and sys.stdout.isatty() and sys.stderr.isatty()
    began = time.monotonic()
    steps = Steps(err, live)
    with Stage(steps.note) as stage:
        scene, settings = _set_up(stage, steps, data.resolve() if data else None, events)
        _make_topics(stage, steps, settings)
        _train(stage, steps, scene)
        *workers, sink = _start_processes(stage, steps, settings)
        watch, labels = _stream(stage, steps, scene, settings, workers, sink)
        _store(stage, steps, watch, sink, labels)
        outcome = _count(stage, steps, scene, settings, watch)
    seconds = time.monotonic() - began
    if as_json:
        outcome.print_figures(seconds)
    else:
        outcome.print(seconds, live=live)
    if not outcome.holds:
        raise typer.Exit(1)
    if not watch.explained:
        fail("No alert with reasons came, so this shows only half of it: stream more (--events).")


def _set_up(stage: "Stage", steps: "Steps", file: Path | None, events: int) -> tuple["Scene", "Settings"]:
    """Data, a broker, and the stream's configuration."""
    from console.demo_data import SEED, generated, prepare, write_config
    from ecluse.settings import load

    steps.title("events in, predictions and alerts out, on a real broker (Ctrl-C ends it)")
    with steps.step("data", "reading" if file else "generating card transactions") as say:
        path, first_live_day = (file, None) if file else generated(stage.folder, events)
        scene = prepare(path, stage.folder, events, first_live_day)
        what = f"rows of {path.name}" if file else f"generated card transactions, seed {SEED}"
        numbered = "; it has no ids, so its rows are numbered" if scene.numbered else ""
        say(f"{scene.rows:,} {what}; {scene.events:,} later ones to stream{numbered}")
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    with steps.step("broker", "starting Apache Kafka") as say:
        servers = given or stage.start_broker()
        say(f"{'the cluster' if given else 'Apache Kafka'} at {servers}")
    prefix = f"ecluse.demo-{uuid.uuid4().hex[:8]}." if given else ""
    return scene, load(write_config(scene, stage.folder, servers, prefix, _PARTITIONS))


def _make_topics(stage: "Stage", steps: "Steps", settings: "Settings") -> None:
    """The stream's topics; deleted at the end, for the cluster may not be ours."""
    from ecluse import cluster, kafka

    with steps.step("topics", "making them") as say:
        names = cluster.create_topics(settings)
        say(f"{len(names)}, with {settings.topics.partitions} partitions: {settings.names.prefix}…")

    def delete() -> None:
        client = kafka.admin(settings)
        for future in client.delete_topics(names, operation_timeout=kafka.PATIENCE).values():
            future.exception(kafka.PATIENCE)

    stage.at_end(delete)


def _train(stage: "Stage", steps: "Steps", scene: "Scene") -> None:
    """`ecluse model train`, as a user would."""
    from console.demo_feed import TRAIN_SECONDS

    with steps.step("model", "training: `ecluse model train`") as say:
        result = stage.run(TRAIN_SECONDS, "train", "model", "train", *scene.first_rows, "--json")
        manifest = msgspec.json.decode(result)["manifest"]
        metrics, training = manifest["metrics"], manifest["training"]
        say(
            f"{training['script'].replace('default', 'boosted trees')} on {training['rows']:,} rows of "
            f"{len(manifest['features'])} features; average precision {metrics['average_precision']:.2f} "
            f"on {metrics['rows']:,.0f} later rows"
        )
        if scene.left_out:
            say(f"(left out: {', '.join(scene.left_out)})")


def _start_processes(stage: "Stage", steps: "Steps", settings: "Settings") -> list["Child"]:
    """The workers and, last, the sink; with the monitor and the trainer. The bypass is turned on while they start."""
    from console.demo_store import turn_on

    loop = [stage.start(name, name) for name in ("monitor", "trainer")]
    children = [stage.start(name, "worker") for name in _WORKERS] + [stage.start("store", "store")]
    with steps.step("bypass", "turning it on: `ecluse bypass set`") as say:
        say(turn_on(stage, settings))
    with steps.step("workers", "starting two, a sink, a monitor, a trainer") as say:

        def ready() -> bool:
            stage.require_running(*children, *loop)
            return all(child.get("/health/ready")[0] == 200 for child in (*children, *loop))

        stage.wait(ready, _READY_SECONDS, "Not all processes are ready")
        say(
            f"{len(_WORKERS)} ready, in the group {settings.group}; `ecluse store`, `ecluse monitor` and `ecluse trainer`, too"
        )
    return children


def _stream(
    stage: "Stage", steps: "Steps", scene: "Scene", settings: "Settings", workers: list["Child"], sink: "Child"
) -> tuple["Watch", int]:
    """Feed the stream, and watch until all of it is scored; what was seen, and how many labels were told.

    Raises:
        ProcessFailed: a process ended, or something took longer than its deadline.
    """
    from console.demo_feed import Feed
    from console.demo_labels import BackOffice
    from console.demo_view import View
    from console.demo_watch import Watch

    office = BackOffice(scene, settings)
    feed = Feed(stage, scene, settings, office)
    steps.note(f"{feed.plain} of the events come from a plain Kafka producer; {feed.broken} are broken on purpose.")
    steps.note(scene.story)
    with Watch(settings, workers, sink, office.hear) as watch:
        view = View(err, watch, feed.events, steps.live)
        with view.shown():
            while watch.look().done < feed.events:
                view.update()
                stage.require_running(*workers, sink)
                feed.go_on(watch)
                time.sleep(_LOOK_SECONDS)
            watch.finish(feed.events)
            office.send()
            view.update(last=True)
    return watch, office.told


def _store(stage: "Stage", steps: "Steps", watch: "Watch", sink: "Child", labels: int) -> None:
    """Wait until the store has all."""
    from console.demo_store import wait_stored

    with steps.step("store", "waiting for the last commits") as say:
        rows = wait_stored(stage, sink, watch.records + labels)
        say(f"{rows:,} rows in the training store, {watch.bypassed:,} of them events that went past the model")
        say(f"and {labels:,} labels of what was let through; of the {watch.blocked:,} blocked nobody can tell")


def _count(stage: "Stage", steps: "Steps", scene: "Scene", settings: "Settings", watch: "Watch") -> "Outcome":
    """Count all, while a training set is built of it."""
    from console.audit import audit
    from console.audit_store import audit_store
    from console.demo_end import Outcome
    from console.demo_store import built, start_build

    builder = start_build(stage, watch, scene.maturity)
    with steps.step("audit", "counting: `ecluse audit --store`") as say:
        report, tables = audit(settings, everything=True), audit_store(settings, everything=True)
        say(
            f"read {report.events:,} events, {report.predictions:,} predictions, {report.dead_letters:,} dead letters, "
            f"and {tables.total('rows'):,} rows of the store"
        )
    with steps.step("set", "building a training set: `ecluse dataset build`") as say:
        made = built(stage, builder)
        say(f"{made.counts.rows:,} rows in {len(made.columns)} columns, with outcome and weight of each")
    return Outcome(report, tables, made, watch)
