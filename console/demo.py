"""`ecluse demo`: transactions through real Kafka, scored by two workers, and the count that proves that none is missing."""

import os
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from console.output import JsonOption, err, fail, out, print_json, print_table

if TYPE_CHECKING:
    from console.audit import AuditReport
    from console.demo_data import Scene
    from console.demo_view import Steps
    from console.demo_watch import Watch
    from console.stage import Child, Stage
    from ecluse.settings import Settings

_COLUMNS = ("events", "predictions", "dead_letters", "missing", "doubled")
_PARTITIONS = 4
_WORKERS = ("worker 1", "worker 2")
#: However many events there are, they come in about this time.
_STREAM_SECONDS = 18.0
_LEAST_RATE = 200.0
_SHOWN_ALERTS, _LINE_WIDTH = 5, 120
_LOOK_SECONDS = 0.5
#: Deadlines: of training, of a worker's start, and of the stream without any progress.
_TRAIN_SECONDS, _READY_SECONDS, _STILL_SECONDS = 300.0, 60.0, 30.0


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
    """See it work on this machine: broker, topics, training, two workers, a stream, alerts with reasons, and the audit.

    Everything is its own and temporary: nothing is left running or lying about. Exit code 1: an event is missing, or no
    alert with reasons was seen. With KAFKA_BOOTSTRAP_SERVERS set, that cluster is used, with topics of the demo's own.
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
        workers = _start_workers(stage, steps, settings)
        watch = _stream(stage, steps, scene, settings, workers, live)
        report = _audit(steps, settings)
    _conclude(report, watch, time.monotonic() - began, live=live, as_json=as_json)
    if report.missing or report.waiting:
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
        say(f"{scene.rows:,} {what}; {scene.events:,} later ones to stream")
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
    since = ("--holdout-since", f"{scene.held_out_since:%Y-%m-%dT%H:%M:%S}") if scene.held_out_since else ()
    with steps.step("model", "training: `ecluse model train`") as say:
        result = stage.run(_TRAIN_SECONDS, "train", "model", "train", str(scene.history), *since, "--json")
        manifest = msgspec.json.decode(result)["manifest"]
        metrics, training = manifest["metrics"], manifest["training"]
        say(
            f"{training['script'].replace('default', 'boosted trees')} on {training['rows']:,} rows of "
            f"{len(manifest['features'])} features; average precision {metrics['average_precision']:.2f} "
            f"on {metrics['rows']:,.0f} later rows"
        )
        if scene.left_out:
            say(f"(left out: {', '.join(scene.left_out)})")


def _start_workers(stage: "Stage", steps: "Steps", settings: "Settings") -> list["Child"]:
    with steps.step("workers", "starting two: `ecluse worker`") as say:
        workers = [stage.start(name, "worker") for name in _WORKERS]

        def ready() -> bool:
            stage.require_running(*workers)
            return all(worker.get("/health/ready")[0] == 200 for worker in workers)

        stage.wait(ready, _READY_SECONDS, "The workers are not ready")
        say(f"{len(workers)} ready, in the group {settings.group}")
    return workers


def _stream(
    stage: "Stage", steps: "Steps", scene: "Scene", settings: "Settings", workers: list["Child"], live: bool
) -> "Watch":
    """Publish the file's rows, and between them what plain producers send; watch until all of it is scored.

    Raises:
        ProcessFailed: a process ended, or nothing moved for `_STILL_SECONDS`.
    """
    from console.demo_data import guests
    from console.demo_view import View
    from console.demo_watch import Watch
    from ecluse import kafka

    visitors = list(guests(settings, scene.samples))
    expected = scene.events + len(visitors)
    rate = max(_LEAST_RATE, scene.events / _STREAM_SECONDS)
    broken = sum(guest.broken for guest in visitors)
    steps.note(f"{len(visitors)} of the events come from a plain Kafka producer; {broken} are broken on purpose.")
    producer, sent, moved = kafka.producer(settings), 0, time.monotonic()
    with Watch(settings, workers) as watch:
        view = View(err, watch, expected, live)
        publisher = stage.start("publish", "publish", str(scene.live), "--rate", str(rate))
        with view.shown():
            while (now := watch.look()).done < expected:
                view.update()
                stage.require_running(*workers)
                stage.require_done(publisher)
                if watch.moved():
                    moved = time.monotonic()
                elif time.monotonic() > moved + _STILL_SECONDS:
                    stage.fail(
                        f"Nothing has moved for {_STILL_SECONDS:.0f} s, with {expected - now.done:,} events to go."
                    )
                # Evenly among the others, and the rest when those have all come.
                due = len(visitors) if publisher.ended else now.published * len(visitors) // expected
                for guest in visitors[sent:due]:
                    producer.produce(settings.names.events, guest.value, headers=list(guest.headers))
                producer.flush(kafka.PATIENCE)
                sent = max(sent, due)
                time.sleep(_LOOK_SECONDS)
            view.update(last=True)
    return watch


def _audit(steps: "Steps", settings: "Settings") -> "AuditReport":
    from console.audit import audit

    with steps.step("audit", "counting: `ecluse audit`") as say:
        report = audit(settings, everything=True)
        say(f"read {report.events:,} events, {report.predictions:,} predictions, {report.dead_letters:,} dead letters")
    return report


def _conclude(report: "AuditReport", watch: "Watch", seconds: float, *, live: bool, as_json: bool) -> None:
    """The verdict, with the figures that it rests on."""
    from console.demo_view import alert_line

    if as_json:
        figures = {name: getattr(report, name) for name in _COLUMNS}
        alerts = {"alerts": watch.alerts, "alerts_with_reasons": watch.explained}
        print_json(figures | alerts | {"verdict": report.verdict, "seconds": round(seconds, 1)})
        return
    rows: list[list[object]] = [
        [row.partition, *(getattr(row, name) for name in _COLUMNS)] for row in report.partitions
    ]
    rows.append(["all", *(getattr(report, name) for name in _COLUMNS)])
    print_table(["partition", *(name.replace("_", " ") for name in _COLUMNS)], rows)
    out.print(report.verdict, style="bold red" if report.missing else "bold green", soft_wrap=not out.is_terminal)
    out.print(f"{watch.alerts:,} alerts, {watch.explained:,} of them with reasons. All of it took {seconds:.0f} s.")
    if not live:
        for alert in list(watch.newest)[-_SHOWN_ALERTS:]:
            out.print(alert_line(alert, _LINE_WIDTH), soft_wrap=True)
        out.print(f"last dead letter: {watch.last_dead_letter}", markup=False, soft_wrap=True)
    out.print("\nNothing is left running. A stream of your own begins with:")
    out.print("  ecluse broker start\n  ecluse init FILE", markup=False)
