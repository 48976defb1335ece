"""From a release to a model that may serve: what is whole loads; each bad artefact is refused in one sentence, at its step."""

import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from sklearn.linear_model import LogisticRegression

from ecluse.contract.records import Release
from ecluse.errors import ModelError, ModelNotFound
from ecluse.model.artefact import load_model, verified
from ecluse.model.features import Feature
from ecluse.model.manifest import JOBLIB, MANIFEST, ONNX, SAMPLES, SIGNATURE, sha256
from ecluse.model.samples import Samples
from ecluse.model.signing import make_development_keys
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.convert import to_onnx_bytes
from tests.conftest import MakeSettings
from tests.unit.artefacts import (
    ESTIMATOR,
    FILES,
    MODEL,
    ROWS,
    SAMPLE_ROWS,
    cached,
    flip,
    home,
    refused,
    release_of,
    store,
    with_model,
)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
def release(settings: Settings) -> Release:
    """Of a sound artefact, version 1."""
    return store(settings)


def test_a_sound_artefact_loads_and_scores_as_its_estimator(settings: Settings, release: Release) -> None:
    told: list[tuple[int, int]] = []
    model = load_model(settings, 1, release, progress=lambda *of: told.append(of))
    scores = model.score(ROWS)
    np.testing.assert_allclose(scores, ESTIMATOR.predict_proba(ROWS)[:, 1], atol=1e-6)
    assert scores.dtype == np.float64 and model.score(ROWS[:0]).shape == (0,)
    assert (model.name, model.version, model.usual.tolist()) == (settings.model_name, 1, [20.0])
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total)


# What a stranger may do to an artefact in the store.


@pytest.mark.parametrize("file", [MANIFEST, ONNX, SAMPLES, SIGNATURE])
def test_one_flipped_byte_is_refused(settings: Settings, release: Release, file: str) -> None:
    flip(home(settings) / file, 40)
    refused(settings, release, "verify", "changed|signature")
    refused(settings, None, "verify", "changed|signature|manifest cannot be read")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    file=st.sampled_from([MANIFEST, ONNX, SAMPLES, SIGNATURE]),
    at=st.integers(0, 100_000),
    mask=st.integers(1, 255),
    known=st.booleans(),
)
def test_any_byte_that_is_flipped_anywhere_is_refused(
    settings: Settings, file: str, at: int, mask: int, known: bool
) -> None:
    """With the release's digest, and by the signature alone too; in the store, and in the cache."""
    release = store(settings)
    path = home(settings) / file
    flip(path, at % path.stat().st_size, mask)
    with pytest.raises(ModelError) as failed:
        verified(settings, 1, release if known else None)
    assert failed.value.step == "verify"


@pytest.mark.parametrize("name", ["notes.txt", ".gitattributes", ".hidden", "sub/notes.txt"])
def test_a_file_that_the_manifest_does_not_name_is_refused(settings: Settings, release: Release, name: str) -> None:
    (home(settings) / name).parent.mkdir(exist_ok=True)
    (home(settings) / name).write_bytes(b"")
    refused(settings, release, "verify", f"holds '{name}', which its manifest does not name")


def test_a_link_to_a_file_of_the_machine_is_refused(settings: Settings, release: Release, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"of the machine")
    (home(settings) / ONNX).unlink()
    (home(settings) / ONNX).symlink_to(tmp_path / "secret")
    refused(settings, release, ["verify", "fetch"][0], r"model\.onnx .* was changed")


def test_an_artefact_that_is_not_signed_is_refused(settings: Settings) -> None:
    release = store(settings, signed=False)
    refused(settings, release, "verify", r"^The artefact is not signed: it has no model\.sig\.$")


def test_an_artefact_that_another_key_signed_is_refused(settings: Settings, tmp_path: Path) -> None:
    stranger = make_development_keys(tmp_path / "stranger")
    release = store(with_model(settings, signing_key=stranger[0]))
    refused(settings, release, "verify", "^No trusted key signed the artefact: ")


def test_an_old_version_under_a_new_number_or_name_is_refused(settings: Settings, release: Release) -> None:
    shutil.copytree(home(settings), home(settings, 2))
    refused(settings, release_of(settings, 2), "verify", "calls itself .* version 1", version=2)
    other = with_model(settings, name="loans")
    shutil.copytree(home(settings), home(other))
    refused(other, release_of(other), "verify", "in the place of loans version 1 calls itself ")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", MANIFEST, SIGNATURE])
def test_path_tricks_in_the_manifest_are_refused_and_nothing_is_written(
    settings: Settings, name: str, tmp_path: Path
) -> None:
    store(settings)
    path = home(settings) / MANIFEST
    tricky = msgspec.json.decode(path.read_bytes())
    tricky["files"][name], tricky["sizes"][name] = sha256(b"x"), 1
    path.write_bytes(msgspec.json.encode(tricky))
    before = sorted(tmp_path.rglob("*"))
    refused(settings, release_of(settings), "verify", "can be no file of its folder")
    refused(settings, None, "verify", "can be no file of its folder")
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path.name for path in left if path.is_file()] == [".lock"]


@pytest.mark.parametrize("digest", ["../../x", "/etc", "", "x" * 5000, "a\0b"])
def test_a_release_whose_digest_is_none_leads_nowhere(settings: Settings, release: Release, digest: str) -> None:
    refused(settings, msgspec.structs.replace(release, manifest_sha256=digest), "verify", "changed after its release")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"created_at": NaN}', b"[" * 1_000_000, b"\xff", b'{"a": "' + bytes(20_000_000)]
)
def test_a_manifest_that_is_none_is_refused(settings: Settings, release: Release, data: bytes) -> None:
    (home(settings) / MANIFEST).write_bytes(data)
    refused(settings, None, "verify", "manifest")
    refused(settings, msgspec.structs.replace(release, manifest_sha256=sha256(data)), "verify", "manifest")


def test_a_file_that_is_missing_or_a_version_that_is_not_there_is_named(settings: Settings, release: Release) -> None:
    refused(settings, release, "fetch", "holds no version 7", ModelNotFound, version=7)
    (home(settings) / SAMPLES).unlink()
    refused(settings, release, "fetch", r"does not hold 'samples\.json'", ModelNotFound)


# What may be wrong with an artefact that a trusted key signed.


def test_onnx_that_is_cut_off_or_none_at_all_is_refused(settings: Settings) -> None:
    for version, data in enumerate([MODEL[: len(MODEL) // 2], b"", b"nothing of the kind"], 1):
        release = store(settings, version, FILES | {ONNX: data})
        refused(settings, release, "load", "ONNX cannot be loaded", version=version)


def test_onnx_of_another_width_is_refused(settings: Settings) -> None:
    wide = to_onnx_bytes(LogisticRegression().fit(np.hstack([ROWS, ROWS]), ROWS[:, 0] > 20), 2)
    release = store(settings, files=FILES | {ONNX: wide})
    refused(settings, release, "load", "does not take rows of 1 float32 features")


def external(location: str) -> bytes:
    """ONNX whose weights lie in another file."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [1, 2], bytes(8), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 1])
    both = helper.make_tensor_value_info("both", TensorProto.FLOAT, [None, 2])
    nodes = [
        helper.make_node("Mul", ["rows", "weights"], ["sums"]),
        helper.make_node("Softmax", ["sums"], ["both"], axis=1),
    ]
    graph = helper.make_graph(nodes, "graph", [rows], [both], [weights])
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


WEIGHTS = np.array([[0.0, 0.1]], dtype=np.float32)
SOFTMAX = 1 / (1 + np.exp(-ROWS[:, 0].astype(float) * 0.1))
SOFT_SAMPLES = Samples.of(ROWS, SOFTMAX).encode()


def mapped(name: str) -> bool:
    """Whether a file is mapped into this process's memory."""
    return name in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_external_data_in_the_folder_is_listed_and_works_and_is_mapped_into_memory(settings: Settings) -> None:
    weights = WEIGHTS.tobytes() + bytes(1_000_000)
    files = {ONNX: external("weights.bin"), "weights.bin": weights, SAMPLES: SOFT_SAMPLES}
    model = load_model(settings, 1, store(settings, files=files))
    np.testing.assert_allclose(model.score(ROWS), SOFTMAX, atol=1e-6)
    if sys.platform == "linux":
        assert mapped("weights.bin")


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "{folder}/weights.bin", "missing.bin"])
def test_external_data_outside_of_the_folder_is_refused(settings: Settings, tmp_path: Path, location: str) -> None:
    location = location.format(folder=settings.model.cache / settings.model_name)
    release = store(settings, files={ONNX: external(location), SAMPLES: SOFT_SAMPLES})
    outside = settings.model.cache / settings.model_name / "weights.bin"
    outside.parent.mkdir(parents=True)
    outside.write_bytes(WEIGHTS.tobytes())
    refused(settings, release, "load", "ONNX cannot be loaded")


def test_external_data_behind_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    files = {ONNX: external("weights.bin"), "weights.bin": WEIGHTS.tobytes(), SAMPLES: SOFT_SAMPLES}
    release = store(settings, files=files)
    load_model(settings, 1, release)
    link = cached(settings) / "weights.bin"
    link.unlink()
    link.symlink_to(tmp_path / "weights.bin")
    load_model(settings, 1, release)
    assert not (cached(settings) / "weights.bin").is_symlink(), "what was in the cache was refused, and fetched again"


def test_features_of_another_stream_are_refused(settings: Settings) -> None:
    release = store(settings, features=(Feature("balance", "balance", "number"),))
    refused(settings, release, "load", "needs the field 'balance'")


def test_a_feature_without_reference_is_refused(settings: Settings) -> None:
    refused(settings, store(settings, reference={}), "load", "no reference histogram of amount")


class Command:
    """Unpickling it runs a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_that_would_run_a_command_never_runs_it(settings: Settings, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    files = {JOBLIB: pickle.dumps(Command(proof)), SAMPLES: SAMPLE_ROWS}
    allowed = with_model(settings, unpickle=(settings.model_name,))
    refused(settings, store(settings, files=files), "load", "only a pickle, and model.unpickle does not name it")
    others = with_model(settings, unpickle=("another", "*"))
    refused(others, release_of(settings), "load", "model.unpickle does not name it")
    beside = store(settings, 2, FILES | files)
    assert load_model(allowed, 2, beside).version == 2, "where there is ONNX, the pickle beside it is for people"
    unsigned = store(settings, 3, files, signed=False)
    refused(allowed, unsigned, "verify", "not signed", version=3)
    changed = store(settings, 4, files)
    flip(home(settings, 4) / JOBLIB)
    refused(allowed, changed, "verify", "was changed", version=4)
    assert not proof.exists()
    refused(allowed, release_of(settings), "load", "joblib cannot be loaded")
    assert proof.exists(), "the pickle is one that runs: signed and allowed, it did"


@pytest.mark.parametrize("compress", [0, 3])
def test_a_pickle_that_is_signed_and_allowed_scores(settings: Settings, compress: int) -> None:
    buffer = io.BytesIO()
    joblib.dump(ESTIMATOR, buffer, compress=compress)
    release = store(settings, files={JOBLIB: buffer.getvalue(), SAMPLES: SAMPLE_ROWS})
    model = load_model(with_model(settings, unpickle=(settings.model_name,)), 1, release)
    np.testing.assert_allclose(model.score(ROWS), ESTIMATOR.predict_proba(ROWS.astype(np.float64))[:, 1])


def test_an_artefact_without_a_model_is_refused(settings: Settings) -> None:
    refused(
        settings, store(settings, files={SAMPLES: SAMPLE_ROWS}), "load", "holds neither model.onnx nor model.joblib"
    )


def test_sample_rows_that_were_altered_or_do_not_fit_are_refused(settings: Settings) -> None:
    samples = Samples.decode(SAMPLE_ROWS, 1)
    off = (samples.scores[0] + 2e-5, *samples.scores[1:])
    wide = tuple((*row, 1.0) for row in samples.rows)
    bad = {
        "other scores than its estimator did: they differ by up to 2e-05": Samples(samples.rows, off).encode(),
        "do not have the model's 1 features": Samples(wide, samples.scores).encode(),
        "no sample rows": Samples((), ()).encode(),
        "sample rows cannot be read": b"[",
    }
    for version, (sentence, data) in enumerate(bad.items(), 1):
        release = store(settings, version, FILES | {SAMPLES: data})
        refused(settings, release, "compare", sentence, version=version)
    refused(settings, store(settings, 9, {ONNX: MODEL}), "compare", "no sample rows to be compared on", version=9)


def test_a_model_that_gives_what_is_no_probability_is_refused(settings: Settings) -> None:
    model = ModelProto.FromString(external("weights.bin"))
    model.graph.node[1].CopyFrom(helper.make_node("Identity", ["sums"], ["both"]))
    weights = np.array([[0.0, 100.0]], dtype=np.float32)
    files = {
        ONNX: model.SerializeToString(),
        "weights.bin": weights.tobytes(),
        SAMPLES: Samples.of(ROWS[:1], np.zeros(1)).encode(),
    }
    refused(settings, store(settings, files=files), "warm", "gives no probabilities on usual values")


def test_a_model_that_does_not_give_a_score_for_each_row_is_refused(settings: Settings) -> None:
    model = ModelProto.FromString(external("weights.bin"))
    model.graph.node[0].CopyFrom(helper.make_node("Identity", ["weights"], ["sums"]))
    files = {ONNX: model.SerializeToString(), "weights.bin": WEIGHTS.tobytes(), SAMPLES: SOFT_SAMPLES}
    refused(settings, store(settings, files=files), "compare", "does not give one score for each row")


def test_a_model_too_big_for_the_memory_budget_is_refused(settings: Settings) -> None:
    release = store(settings, memory_bytes=30 * 2**20, peak_memory_bytes=100 * 2**20)
    tight = with_model(settings, memory_budget_mb=150)
    assert load_model(tight, 1, release, beside=50 * 2**20).version == 1
    sentence = (
        r"needs 100 MiB of memory to load, and beside the model that scores 99 MiB are left of "
        r"model\.memory_budget_mb = 150"
    )
    refused(tight, release, "load", sentence, ModelError, beside=51 * 2**20)
    huge = store(settings, 2, memory_bytes=2**60)
    refused(settings, huge, "load", "are left on this machine", ModelError, version=2)


def test_a_proper_write_can_be_loaded(settings: Settings, tmp_path: Path) -> None:
    """What the store writes is what it reads."""
    store(settings)
    folder = tmp_path / "draft"
    shutil.copytree(home(settings), folder)
    shutil.rmtree(home(settings))
    digest = ModelStore.of(settings).write(folder)
    assert load_model(settings, 1, Release(settings.model_name, 1, 0.0, digest, 1)).version == 1
