"""The sections of the configuration that rule the loop: the monitor, the trainer, the size study."""

from pathlib import Path

from pydantic import Field as setting
from pydantic import field_validator, model_validator

from ecluse.sections import Section


class Limits(Section):
    """Two thresholds of one number. A warning is told; an alarm opens an episode, and an episode asks for a new model."""

    warn: float = setting(ge=0)
    """From here on the number is told as a warning; below it, it counts as calm."""
    alarm: float = setting(ge=0)
    """From here on it opens an episode."""


class Rising(Limits):
    """Thresholds of what is bad when it is large."""

    @model_validator(mode="after")
    def _ordered(self) -> "Rising":
        if self.warn > self.alarm:
            raise ValueError("warn cannot lie above alarm: this number is bad when it is large")
        return self


class Falling(Limits):
    """Thresholds of a share that is bad when it is small."""

    warn: float = setting(ge=0, le=1)
    """From here down the number is told as a warning; above it, it counts as calm."""
    alarm: float = setting(ge=0, le=1)
    """From here down it opens an episode."""

    @model_validator(mode="after")
    def _ordered(self) -> "Falling":
        if self.warn < self.alarm:
            raise ValueError("warn cannot lie below alarm: this number is bad when it is small")
        return self


class MonitorSettings(Section):
    """When a change of the data or of the outcomes is told, and when it asks for a new model."""

    window_hours: float = setting(24.0, gt=0, le=24 * 31)
    """How long a window is, on the stream's clock. With each that closes there is a report."""
    span_windows: int = setting(7, ge=1, le=366)
    """How many windows are judged together: a week of days, so that neither a day's nor a week's own pattern is drift."""
    late_hours: float = setting(1.0, ge=0)
    """How long a window waits, on the stream's clock, for events that come late."""
    max_ahead_hours: float = setting(24.0, gt=0)
    """An event with a time further beyond the moment at which it was scored is counted apart and closes no window."""
    psi: Rising = Rising(warn=0.1, alarm=0.25)
    """Population stability index of an input or of the scores, less what chance alone gives."""
    missing: Rising = Rising(warn=0.02, alarm=0.1)
    """How far the share of events that lack an input lies from that of the training rows; judged by the last window."""
    out_of_range: Rising = Rising(warn=0.02, alarm=0.1)
    """The share of events in which a number lies outside all that the training rows held; judged by the last window."""
    rejected: Rising = Rising(warn=0.01, alarm=0.05)
    """The share of events that become dead letters; judged by the last window."""
    alerts: Rising = Rising(warn=1.5, alarm=3.0)
    """How many times more, or fewer, events alert than on the held-out rows; as far as chance cannot explain it."""
    change_confidence: float = setting(0.002, gt=0, lt=1)
    """River's ADWIN tells a change of level in a series of windows at this confidence (its delta)."""
    precision: Falling | None = None
    """Of the events that alerted, the share that was positive. Not judged where not set."""
    recall: Falling | None = None
    """Of the positive events, the share that alerted. Not judged where not set."""
    average_precision: Falling | None = None
    """Of the ranking by score. Not judged where not set."""
    calibration: Rising | None = None
    """How many times more, or fewer, positives there are than the scores say. Not judged where not set."""
    calm_windows: int = setting(2, ge=1)
    """An episode ends when no number has reached its `warn` for so many windows."""
    cooldown_hours: float = setting(168.0, ge=0)
    """How long after a request, on the stream's clock, no drift asks again. What lasts longer then asks."""
    schedule: str = ""
    """``every 6h`` (m, h or d) asks for a new model without any drift, on the stream's clock."""
    metrics_host: str = "127.0.0.1"
    """Where /metrics, /health/live and /health/ready listen; 0.0.0.0 in a container."""
    metrics_port: int = setting(0, ge=0, le=65535)
    """0 takes a free port, which is printed."""

    @field_validator("alerts", "calibration")
    @classmethod
    def _above_one(cls, limits: Rising | None) -> Rising | None:
        if limits is not None and limits.warn <= 1:
            raise ValueError("warn must lie above 1, which stands for as many as expected")
        return limits

    @field_validator("schedule")
    @classmethod
    def _readable(cls, schedule: str) -> str:
        if schedule:
            seconds_of_schedule(schedule)
        return schedule


def seconds_of_schedule(schedule: str) -> float:
    """``every 6h`` in seconds.

    Raises:
        ValueError: it is not written so.
    """
    word, _, rest = schedule.partition(" ")
    unit = {"m": 60.0, "h": 3600.0, "d": 86_400.0}.get(rest[-1:])
    number = rest[:-1]
    if word != "every" or unit is None or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ValueError(f"the schedule '{schedule}' is not written like `every 30m`, `every 6h` or `every 1d`")
    return int(number) * unit


class TrainerSettings(Section):
    """How `ecluse trainer` has a new version made."""

    time_limit_minutes: float = setting(120.0, gt=0)
    """How long the training script may take, with all its candidates."""
    memory_limit_mb: int | None = setting(None, ge=256)
    """How much memory the training process may take; what the machine has free where not set."""
    history_days: float | None = setting(None, gt=0)
    """How far back from the request's cut-off the training set reaches; all that is stored where not set."""
    seed: int = setting(20180401, ge=0)
    """Of all that is random in a training: the same request, data, script, libraries and seed give the same model."""
    runs: Path = Path(".ecluse/runs")
    """Where each run's log, training set and size study are kept, a folder a request."""
    metrics_host: str = "127.0.0.1"
    """Where /metrics, /health/live and /health/ready listen; 0.0.0.0 in a container."""
    metrics_port: int = setting(0, ge=0, le=65535)
    """0 takes a free port, which is printed."""


class StudySettings(Section):
    """Which of several candidates is the smallest that is good enough."""

    tolerance: float = setting(0.01, ge=0, lt=1)
    """How much of the average precision of the best a smaller model may lose, in absolute terms, at 95% confidence."""
    max_size_bytes: int | None = setting(None, ge=1)
    """No larger model is picked, however good."""
    bootstrap: int = setting(1000, ge=100, le=100_000)
    """How many resamples the intervals come from."""
