"""Artefacts for tests: a small model, laid into a store as a stranger could, signed or not."""

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ecluse.contract.records import Release, Thresholds
from ecluse.errors import ModelError, ModelRefused
from ecluse.model import signing
from ecluse.model.artefact import load_model
from ecluse.model.features import Feature
from ecluse.model.manifest import MANIFEST, ONNX, SAMPLES, Histogram, Manifest, histogram, sha256
from ecluse.model.samples import Samples, synthetic_rows
from ecluse.settings import Settings
from retrain.convert import to_onnx_bytes

ROWS = np.arange(40, dtype=np.float32)[:, None]
ESTIMATOR = LogisticRegression().fit(ROWS, ROWS[:, 0] > 20)
MODEL = to_onnx_bytes(ESTIMATOR, 1)
AMOUNT = Feature("amount", "amount", "number")
REFERENCE = {"amount": histogram(ROWS[:, 0])}
PROBED = synthetic_rows([AMOUNT], REFERENCE)
SAMPLE_ROWS = Samples.of(PROBED, ESTIMATOR.predict_proba(PROBED)[:, 1]).encode()
FILES = {ONNX: MODEL, SAMPLES: SAMPLE_ROWS}


def manifest(name: str, version: int = 1, files: dict[str, bytes] = FILES, **changes: Any) -> Manifest:
    """The manifest of a model of `amount`."""
    made = Manifest(
        name=name,
        version=version,
        created_at=0.0,
        features=(AMOUNT,),
        reference=REFERENCE,
        score_reference=Histogram((), (1,), 0, 0.5),
        thresholds=Thresholds(0.5, 0.9),
        policy={},
        metrics={},
        training={},
        onnx={},
        libraries={},
        files={file: sha256(data) for file, data in files.items()},
        sizes={file: len(data) for file, data in files.items()},
    )
    return msgspec.structs.replace(made, **changes)


def lay(folder: Path, described: Manifest, files: dict[str, bytes] = FILES) -> Path:
    """Write an artefact's files into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    (folder / MANIFEST).write_bytes(described.encode())
    return folder


def home(settings: Settings, version: int = 1) -> Path:
    """A version's place in the store, which is a folder."""
    return Path(settings.model.store) / settings.model_name / str(version)


def sign(settings: Settings, folder: Path) -> None:
    """Sign with the settings' key."""
    assert settings.model.signing_key is not None
    signing.sign(folder, settings.model.signing_key, production=settings.model.production)


def release_of(settings: Settings, version: int = 1) -> Release:
    """The release of what the store holds as a version."""
    encoded = (home(settings, version) / MANIFEST).read_bytes()
    return Release(settings.model_name, version, time.time(), sha256(encoded), 1)


def store(
    settings: Settings, version: int = 1, files: dict[str, bytes] = FILES, *, signed: bool = True, **changes: Any
) -> Release:
    """Lay an artefact into the store by hand, so that it may be anything, and give its release."""
    folder = lay(home(settings, version), manifest(settings.model_name, version, files, **changes), files)
    if signed:
        sign(settings, folder)
    return release_of(settings, version)


def with_model(settings: Settings, **changes: Any) -> Settings:
    """The settings with another value in the section `model`."""
    return settings.model_copy(update={"model": settings.model.model_copy(update=changes)})


def refused(
    settings: Settings,
    release: Release | None,
    step: str,
    sentence: str,
    kind: type[ModelError] = ModelRefused,
    version: int = 1,
    beside: int = 0,
) -> None:
    """It does not load, for this reason, told in one sentence that says where it showed."""
    with pytest.raises(ModelError, match=sentence) as failed:
        load_model(settings, version, release, beside=beside)
    said = str(failed.value)
    assert type(failed.value) is kind
    assert (failed.value.step, said[-1], "\n" in said) == (step, ".", False), said


def cached(settings: Settings) -> Path:
    """The one folder in the cache."""
    place = settings.model.cache / settings.model_name
    (folder,) = (path for path in place.iterdir() if path.is_dir())
    return folder


def empty_cache(settings: Settings) -> None:
    shutil.rmtree(settings.model.cache, ignore_errors=True)


def flip(file: Path, at: int = -1, mask: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= mask
    file.write_bytes(bytes(data))
