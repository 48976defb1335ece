"""What versions are held against: their manifests, from the model store, as they were released."""

import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import KafkaException

from ecluse.contract.records import Version
from ecluse.errors import BrokerError, ModelError, ModelNotFound, ModelRefused
from ecluse.model.registry import read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.drift.windows import Reference

logger = logging.getLogger(__name__)

#: A manifest that was refused is looked at again after so many seconds.
AGAIN_SECONDS = 60.0
#: The wait before a store or a broker that cannot be read is asked again, in seconds.
WAIT_SECONDS = 5.0

_Key = tuple[Version, str]


class Stopping(Exception):
    """The monitor is stopped while it waits."""


class References:
    """The reference of each version, by the digest of its manifest; each is fetched once. Used by one thread.

    Where the model store or the broker cannot be read it waits, and says so: profiles are on their topic meanwhile, and to pass
    them over would lose their counts. What is there and is not what was released is none.

    Args:
        settings: the stream's.
        stopping: set when nothing is to be waited for any more.
        failed: told, once for each try, of what could not be had.
        trouble: told of what is waited for; of an empty text when that has come.
    """

    def __init__(
        self,
        settings: Settings,
        stopping: threading.Event,
        failed: Callable[[], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._stopping = stopping
        self._failed = failed
        self._trouble = trouble
        self._known: dict[_Key, Reference] = {}
        self._refused: dict[_Key, float] = {}

    def __call__(self, version: Version, digest: str) -> Reference | None:
        """What a version is held against; None where there is none of this digest.

        Raises:
            Stopping: it was waited for, and the monitor stops.
        """
        key = version, digest
        if (found := self._known.get(key)) is not None:
            return found
        if time.monotonic() < self._refused.get(key, 0.0):
            return None
        try:
            found = self._known[key] = self._awaited(version, digest)
        except (ModelRefused, ModelNotFound) as error:
            self._failed()
            self._refused[key] = time.monotonic() + AGAIN_SECONDS
            logger.error("What version %d made of events is not judged: %s", version, error)
            return None
        self._refused.pop(key, None)
        return found

    def _awaited(self, version: Version, digest: str) -> Reference:
        while True:
            try:
                found = self._fetch(version, digest)
            except (ModelRefused, ModelNotFound):
                raise
            except (ModelError, BrokerError, KafkaException) as error:
                self._failed()
                said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
                logger.warning("The manifest of version %d is waited for: %s", version, said)
                self._trouble(f"the manifest of version {version} cannot be had: {said}")
                if self._stopping.wait(WAIT_SECONDS):
                    raise Stopping from error
            else:
                self._trouble("")
                return found

    def _fetch(self, version: Version, digest: str) -> Reference:
        name = self._settings.model_name
        release = read_registry(self._settings).releases.get((name, version))
        if release is None or release.manifest_sha256 != digest:
            raise ModelRefused(
                f"No version {version} of model {name} was released with a manifest of the SHA-256 {digest}."
            )
        return Reference.of(ModelStore.of(self._settings).manifest(name, version, digest))
