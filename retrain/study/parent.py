"""The study of a file that publishes nothing: a child process makes it, this one reads what it found."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ecluse.errors import ModelRefused
from ecluse.settings import Settings
from retrain import process
from retrain.study.report import STUDY, Study
from retrain.training import Window


def study_file(settings: Settings, file: Path, window: Window, say: Callable[[str], None]) -> Study:
    """Study the candidates on labelled rows or a training set.

    Args:
        settings: the stream's.
        file: the rows (.csv, .jsonl, .parquet).
        window: which of them.
        say: gets a line before each long step.

    Returns:
        The study; where no candidate can be picked its `picked` is None, and `why` says it.

    Raises:
        DataError: the file cannot be read.
        ModelRefused: there is nothing to learn from, or the script cannot be loaded.
        ProcessFailed: the child ended before it was done.
    """
    with tempfile.TemporaryDirectory(prefix="ecluse-study-") as folder:
        job = process.Train(
            process.for_child(settings),
            folder,
            str(file),
            window.since,
            window.until,
            window.holdout_since,
            study=True,
        )
        found = Path(folder) / STUDY
        try:
            process.run(job, say)
        except ModelRefused:
            if not found.exists():
                raise
        return Study.read(found)
