"""Training runs in a process of its own, that has no secret, speaks only to us, and never outlives us."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl
import psutil
import pytest

from ecluse.errors import DataError, ModelRefused, ProcessFailed
from ecluse.model.manifest import Manifest
from ecluse.settings import Settings
from retrain.process import Train, for_child, run
from tests.conftest import MakeSettings

LINES = """
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression().fit(frame.select(features).to_numpy(), frame['label'].to_numpy())
"""
SECONDS = 60.0


def labelled(folder: Path) -> Path:
    """Rows that any estimator can learn from."""
    path = folder / "labelled.csv"
    rows = {
        "amount": [float(i % 97) for i in range(400)],
        "terminal_risk_30d": [i % 10 / 10 for i in range(400)],
        "night": [i % 2 for i in range(400)],
        "fraud": [int(i % 97 > 60) for i in range(400)],
    }
    pl.DataFrame(rows).write_csv(path)
    return path


def job(settings: Settings, folder: Path, body: str) -> Train:
    script = folder / "own.py"
    script.write_text(f"def train(frame, features):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{LINES}")
    own = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"script": f"{script}:train"}),
            "stream": settings.stream.model_copy(update={"time_field": None}),
        }
    )
    draft = folder / "draft"
    draft.mkdir()
    return Train(for_child(own), str(draft), str(labelled(folder)))


def silent(_: str) -> None:
    """Say nothing."""


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_draft_comes_from_a_child_that_tells_how_it_goes(
    make_settings: MakeSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    run(job(make_settings(), tmp_path, "print('from the script')"), said.append)
    manifest = Manifest.decode((tmp_path / "draft" / "manifest.json").read_bytes())
    assert sorted(manifest.files) == ["model.joblib", "model.onnx", "samples.json"]
    assert manifest.version == 0 and manifest.memory_bytes > 0
    assert [line.split()[0] for line in said] == ["Reading", "Training", "Converting", "Measuring"]
    printed = capfd.readouterr()
    assert "from the script" in printed.err and printed.out == ""


def test_a_training_script_finds_neither_the_key_nor_kafkas_secrets(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    monkeypatch.setenv("ECLUSE_MODEL__SIGNING_KEY", str(settings.model.signing_key))
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hush-password")
    monkeypatch.setenv("KAFKA_SSL_KEYFILE", "/hush-file")
    monkeypatch.setenv("OTHER_TOKEN_FILE", "/hush-token")
    found = tmp_path / "found.json"
    body = f"""
    import gc, json, os, sys
    settings = [repr(thing) for thing in gc.get_objects() if type(thing).__name__ in ("Settings", "ModelSettings", "Train")]
    texts = [*settings, json.dumps(dict(os.environ)), repr(sys.argv)]
    texts += [repr(frame.f_locals) for frame in sys._current_frames().values()]
    open({str(found)!r}, "w").write(json.dumps(texts))
    """
    run(job(settings, tmp_path, body), silent)
    texts = json.loads(found.read_text())
    assert any("signing_key=None" in text for text in texts), "the script saw no settings, so this shows nothing"
    assert any('"OMP_WAIT_POLICY": "passive"' in text for text in texts), "nor its environment"
    for text in texts:
        assert str(settings.model.signing_key) not in text
        assert "hush" not in text


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("raise ValueError('too few frauds')", ModelRefused, "too few frauds"),
        ("import os; os._exit(7)", ProcessFailed, "ended with exit code 7 before it was done. Nothing was published"),
        ("import os; os.kill(os.getpid(), 9)", ProcessFailed, r"was killed \(SIGKILL\), .* where memory runs out"),
    ],
)
def test_how_a_script_failed_is_told_in_a_sentence(
    make_settings: MakeSettings, tmp_path: Path, body: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(job(make_settings(), tmp_path, body), silent)


OWN = """
from sklearn.base import BaseEstimator, ClassifierMixin
class Own(ClassifierMixin, BaseEstimator):
    def fit(self, rows, labels):
        self.classes_ = [0, 1]
        return self
    def predict_proba(self, rows):
        import numpy
        return numpy.column_stack([1 - rows[:, 0] / 100, rows[:, 0] / 100])
globals()["Own"] = Own
Own.__qualname__ = "Own"
return Own().fit(None, None)
"""
NO_ONNX = """
import numpy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
return make_pipeline(FunctionTransformer(numpy.tanh), LogisticRegression()).fit(
    frame.select(features).to_numpy(), frame["label"].to_numpy()
)
"""


def test_what_has_no_onnx_form_is_drafted_as_joblib_where_the_settings_have_it_unpickled(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    run(job(make_settings(model={"name": "cards", "unpickle": ("cards",)}), tmp_path, NO_ONNX), silent)
    manifest = Manifest.decode((tmp_path / "draft" / "manifest.json").read_bytes())
    assert sorted(manifest.files) == ["model.joblib", "samples.json"]
    assert any("no ONNX form" in note for note in manifest.training["notes"])
    assert manifest.memory_bytes > 0


@pytest.mark.parametrize(
    ("unpickle", "body", "words"),
    [
        ((), NO_ONNX, r"cannot be converted to ONNX: .* only where the setting model\.unpickle names the model"),
        # Its class is the script's: no worker has it.
        (("cards",), OWN, r"A fresh process, as a worker is, cannot serve this model\. .*own"),
    ],
)
def test_what_no_worker_could_load_is_refused(
    make_settings: MakeSettings, tmp_path: Path, unpickle: tuple[str, ...], body: str, words: str
) -> None:
    with pytest.raises(ModelRefused, match=words):
        run(job(make_settings(model={"name": "cards", "unpickle": unpickle}), tmp_path, body), silent)


def test_a_file_that_cannot_be_read_keeps_its_error(make_settings: MakeSettings, tmp_path: Path) -> None:
    wrong = job(make_settings(), tmp_path, "pass")
    labelled(tmp_path).write_text("amount\n1\n")
    with pytest.raises(DataError, match="has no column 'fraud'"):
        run(wrong, silent)


def test_a_link_in_the_draft_is_not_followed(make_settings: MakeSettings, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    with pytest.raises(ModelRefused, match="holds extra, which is no plain file"):
        run(
            job(
                make_settings(), tmp_path, f"import os; os.symlink({str(secret)!r}, {str(tmp_path / 'draft/extra')!r})"
            ),
            silent,
        )


def test_what_a_script_leaves_running_ends_with_it(make_settings: MakeSettings, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"""
    import subprocess, sys
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(pid)!r}, "w").write(str(left.pid))
    """
    run(job(make_settings(), tmp_path, body), silent)
    until(lambda: not alive(int(pid.read_text())), "what the script started still runs")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


DRIVER = """
import sys, tempfile
import msgspec
from console.model_train import ended_in_order
from retrain.process import Train, run
with ended_in_order(), tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    run(msgspec.json.decode(open(sys.argv[1]).read(), type=Train), print)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_end_of_the_parent_is_the_end_of_the_child_and_of_what_it_started(
    make_settings: MakeSettings, tmp_path: Path, number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    body = f"""
    import os, subprocess, sys, time
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    other, apart = subprocess.Popen(asleep), subprocess.Popen(asleep, start_new_session=True)
    open({str(tmp_path / "part")!r}, "w").write(f"{{os.getpid()}} {{other.pid}} {{apart.pid}}")
    os.rename({str(tmp_path / "part")!r}, {str(pids)!r})
    time.sleep(600)
    """
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job(make_settings(), tmp_path, body)))
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "job.json"), str(drafts)], cwd=Path.cwd())
    try:
        until(pids.exists, "the script did not start")
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(alive(pid) for pid in started)
        os.kill(parent.pid, number)
        parent.wait(SECONDS)
        until(lambda: not any(alive(pid) for pid in started), "an orphan is left")
        if number != signal.SIGKILL:
            assert list(drafts.iterdir()) == []
    finally:
        parent.kill()
        parent.wait()


def test_strings_hash_alike_in_each_training_so_that_a_set_gives_its_columns_in_one_order(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    hashes = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        body = f"open({str(folder / 'hash')!r}, 'w').write(str(hash('amount')))"
        run(job(make_settings(), folder, body), silent)
        hashes.append((folder / "hash").read_text())
    assert hashes[0] == hashes[1]


def test_what_a_child_that_is_killed_leaves_in_its_temporary_folder_goes_with_it(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    body = f"""
    import os, signal, tempfile
    open({str(tmp_path / "left")!r}, "w").write(tempfile.mkdtemp())
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(ProcessFailed, match="SIGKILL"):
        run(job(make_settings(), tmp_path, body), silent)
    assert not Path((tmp_path / "left").read_text()).exists()
