"""`ecluse trainer`."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, progress_bar, say, settings_of
from ecluse.errors import cause

if TYPE_CHECKING:
    from ecluse.contract.loop import Run


def trainer_command(
    once: Annotated[
        bool, typer.Option("--once", help="Train what is open, then exit: with 1 where a run failed.")
    ] = False,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a new version for each request, until stopped (SIGTERM, Ctrl-C). What comes out is released, never champion.

    Prints a line for each run that ends. A second trainer stands by. What is being trained when a trainer stops is trained
    again by the next. /metrics and /health listen where trainer.metrics_host and trainer.metrics_port say.
    """
    settings = settings_of(config, servers)

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number if once else 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    from retrain.trainer.loop import run_trainer

    def tell(run: "Run") -> None:
        (print_json if as_json else _print)(run)
        _draw_study(run)

    sound = run_trainer(settings, tell, lambda: progress_bar("training set"), once=once)
    sys.exit(0 if sound else 1)


def _draw_study(run: "Run") -> None:
    """Put a picture of the run's study beside it; without one the run is no worse."""
    from console.model_study_plot import draw
    from retrain.study.report import STUDY, Study

    file = Path(run.log).parent / STUDY
    if not run.log or not file.is_file():
        return
    try:
        study = Study.read(file)
        if any(each.average_precision for each in study.candidates):
            draw(study, file.with_suffix(".png"))
    except Exception as error:  # whatever a drawing stumbles over, the trainer goes on
        say(f"The study's picture could not be drawn: {cause(error)}.")


def _print(run: "Run") -> None:
    """What became of a request, in a line."""
    told = {
        "published": f"version {run.version} is released; `ecluse model promote {run.version}` makes it the champion",
        "merged": f"answered with {run.into}",
    }.get(run.state.value, f"failed: {run.reason}")
    out.print(f"{run.request}: {told}", markup=False, soft_wrap=True)
