"""From a release to a model that may serve: fetch, verify, load, compare, warm. The one way into any process's memory.

Nothing is loaded before the signature holds, and nothing is unpickled but what the operator's own settings name.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ecluse.contract.records import Release
from ecluse.errors import ModelError, ModelRefused
from ecluse.model import signing
from ecluse.model.manifest import JOBLIB, MANIFEST, ONNX, SAMPLES, Manifest, sha256, sha256_of
from ecluse.model.runtime import Model, Scorer, joblib_scorer, onnx_scorer
from ecluse.model.samples import Samples
from ecluse.model.store import ModelStore, require_released
from ecluse.settings import Settings

#: Versions of a model that stay in the cache.
_KEPT = 4
#: Where the one process that may is fetching. So what is broken off again and again takes the disk once.
_FETCHING = ".fetching"
#: How long to wait for another process that fetches, and how old a download must be to be given up, in seconds.
_PATIENCE, _ABANDONED = 900.0, 86_400.0
Progress = Callable[[int, int], None]


def load_model(
    settings: Settings,
    version: int,
    release: Release | None,
    *,
    beside: int = 0,
    progress: Progress | None = None,
) -> Model:
    """Load a version of the stream's model: everything is checked before, and it is warm after.

    Args:
        settings: the stream's.
        version: which.
        release: what the models topic says of it; None trusts the signature alone (offline use).
        beside: the memory of the model that stays loaded meanwhile, in bytes.
        progress: told of the bytes that are fetched, and of all.

    Raises:
        ModelNotFound: the store does not hold it whole.
        ModelRefused: it must not be served; `step` says where that showed.
        ModelError: the store cannot be read, the disk is full, or the memory does not suffice.
        SettingsError: the trusted keys cannot be used.
    """
    manifest, folder = verified(settings, version, release, progress)
    with _step("load"):
        _require_memory(settings, manifest, beside)
        model = Model(manifest, _scorer(settings, manifest, folder), settings.stream.schema_of_events())
    with _step("compare"):
        if SAMPLES not in manifest.files:
            raise ModelRefused(f"Version {version} of model {manifest.name} has no sample rows to be compared on.")
        model.compare(Samples.decode((folder / SAMPLES).read_bytes(), len(manifest.features)))
    with _step("warm"):
        model.warm()
    return model


def verified(
    settings: Settings, version: int, release: Release | None, progress: Progress | None = None
) -> tuple[Manifest, Path]:
    """The manifest and the local folder of a version whose files are those of its manifest, and signed by a trusted key.

    Raises: as `load_model`.
    """
    signing.fingerprints(settings.model.trusted_keys, production=settings.model.production)  # before a long download
    digest = release.manifest_sha256 if release else None
    if found := _cached(settings, version, digest):
        return found
    with _step("fetch"), _alone(_place(settings)) as place:
        # One process fetches; those that waited for it find what it left.
        if found := _cached(settings, version, digest):
            return found
        if release is not None:
            _make_room(place, release.size_bytes)
        with _fetched_into(place / _FETCHING, settings, version, digest, progress) as folder:
            (manifest, _), actual = _verify(settings, folder, version, digest), sha256_of(folder / MANIFEST)
            if found := _cached(settings, version, actual):  # without a release, only now known
                return found
            final = place / _kept(version, actual)
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
        _prune(place, final)
        return manifest, final


def verified_in_store(
    settings: Settings, version: int, release: Release, progress: Progress | None = None
) -> tuple[Manifest, Path]:
    """The manifest of a version as the store holds it now, whatever the cache holds, and the trusted key that signed it.

    Raises: as `load_model`.
    """
    signing.fingerprints(settings.model.trusted_keys, production=settings.model.production)  # before a long download
    with fetched(settings, version, release.manifest_sha256, progress) as folder:
        return _verify(settings, folder, version, release.manifest_sha256)


@contextlib.contextmanager
def fetched(settings: Settings, version: int, digest: str | None, progress: Progress | None = None) -> Iterator[Path]:
    """A version's files in a folder of their own while the context lasts: as its manifest lists them, whoever signed them.

    Raises: as `ModelStore.fetch`.
    """
    with _step("fetch"):
        folder = Path(tempfile.mkdtemp(prefix=".", dir=_place(settings)))
    with _fetched_into(folder, settings, version, digest, progress):
        yield folder


@contextlib.contextmanager
def _fetched_into(
    folder: Path, settings: Settings, version: int, digest: str | None, progress: Progress | None
) -> Iterator[Path]:
    """See `fetched`. What is there, a process that was killed has left."""
    try:
        with _step("fetch"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                ModelStore.of(settings).fetch(settings.model_name, version, digest, folder, progress)
            except ModelRefused as error:  # it came, and is not what was released
                error.step = "verify"
                raise
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(settings: Settings) -> Path:
    place = settings.model.cache.expanduser() / settings.model_name
    place.mkdir(parents=True, exist_ok=True)
    return place


def _kept(version: int, digest: str) -> str:
    """The name of a version's folder in the cache. The digest may be a stranger's text."""
    return f"{version}-{sha256(digest.encode())[:16]}"


def _cached(settings: Settings, version: int, digest: str | None) -> tuple[Manifest, Path] | None:
    """A version from the cache. One that is damaged, or signed by a key that is not trusted any more, is not there."""
    if digest is None:
        return None
    folder = settings.model.cache.expanduser() / settings.model_name / _kept(version, digest)
    with contextlib.suppress(ModelError):
        manifest, _ = _verify(settings, folder, version, digest)
        with contextlib.suppress(OSError):
            os.utime(folder)
        return manifest, folder
    return None


def _verify(settings: Settings, folder: Path, version: int, digest: str | None) -> tuple[Manifest, Path]:
    """The manifest, and the trusted key that signed it."""
    with _step("verify"):
        manifest = require_released((folder / MANIFEST).read_bytes(), settings.model_name, version, digest)
        return manifest, signing.verify(folder, settings.model.trusted_keys, production=settings.model.production)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[Path]:
    """The cache to one process. The lock goes with its holder, however that ends."""
    with (place / ".lock").open("w") as lock:
        try:
            for attempt in Retrying(
                stop=stop_after_delay(_PATIENCE), wait=wait_fixed(0.1), retry=retry_if_exception_type(BlockingIOError)
            ):
                with attempt:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except RetryError as error:
            raise ModelError(
                f"Another process has been fetching a model into {place} for {_PATIENCE:.0f} s."
            ) from error
        yield place


def _scorer(settings: Settings, manifest: Manifest, folder: Path) -> Scorer:
    require_form(settings, manifest)
    if ONNX in manifest.files:
        return onnx_scorer(folder / ONNX, len(manifest.features))
    return joblib_scorer(folder / JOBLIB)


def require_form(settings: Settings, manifest: Manifest) -> None:
    """Make sure that a version holds what these settings allow to load.

    Raises:
        ModelRefused: it holds no model, or a pickle alone that `model.unpickle` does not name.
    """
    if ONNX in manifest.files:
        return
    if JOBLIB not in manifest.files:
        raise ModelRefused(f"Version {manifest.version} of model {manifest.name} holds neither {ONNX} nor {JOBLIB}.")
    if manifest.name not in settings.model.unpickle:
        raise ModelRefused(
            f"Version {manifest.version} of model {manifest.name} has no ONNX, only a pickle, and model.unpickle does not "
            "name it: unpickling runs code."
        )


def _require_memory(settings: Settings, manifest: Manifest, beside: int) -> None:
    budget = settings.model.memory_budget_mb
    needs = max(manifest.peak_memory_bytes, manifest.memory_bytes) or sum(manifest.sizes.values())
    free = psutil.virtual_memory().available if budget is None else budget * 2**20 - beside
    if needs > free:
        raise ModelError(
            f"Version {manifest.version} of model {manifest.name} needs {needs / 2**20:,.0f} MiB of memory to load, and beside "
            f"the model that scores {max(0, free) / 2**20:,.0f} MiB are left"
            f"{' on this machine' if budget is None else f' of model.memory_budget_mb = {budget}'}."
        )


def _make_room(place: Path, wanted: int) -> None:
    """Where the disk has less room than a version takes, remove what was not used for longest; the one last used stays."""
    with contextlib.suppress(OSError):
        for folder in _by_use(place)[:-1]:
            if shutil.disk_usage(place).free >= wanted:
                return
            shutil.rmtree(folder, ignore_errors=True)


def _prune(place: Path, used: Path) -> None:
    """Remove from the cache what was not used for longest, and what is left of downloads that were broken off.

    What another process has loaded stays in its memory.
    """
    with contextlib.suppress(OSError):
        partial = [path for path in place.iterdir() if path.is_dir() and path.name.startswith(".")]
        kept = [path for path in _by_use(place) if path != used]
        abandoned = [path for path in partial if path.stat().st_mtime < time.time() - _ABANDONED]
        for path in [*abandoned, *kept[: -(_KEPT - 1)]]:
            shutil.rmtree(path, ignore_errors=True)


def _by_use(place: Path) -> list[Path]:
    """The versions in the cache, the one that was not used for longest first."""
    folders = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(folders, key=os.path.getmtime)


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Say in an error where on the way into service it came."""
    try:
        yield
    except ModelError as error:
        error.step = error.step or name
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        failed = ModelError(f"The cache of models cannot be used: {error.strerror or error}{where}.")
        failed.step = name
        raise failed from error
