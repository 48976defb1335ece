"""The bypass switch as a worker follows it: what the newest one says, where this worker's own settings allow it.

What they do not allow lets nobody past, and `refused` says why; scoring goes on. The settings may be mended beside it (a secret
that is mounted late), so it is tried again.
"""

import logging
import threading
import time
from collections.abc import Callable

from ecluse.contract.arms import secret_id
from ecluse.errors import EcluseError, SettingsError
from ecluse.model.registry import Registry, Switched
from ecluse.secrets import read_secret
from ecluse.settings import Settings
from scoring.arms import Bypass

logger = logging.getLogger(__name__)

#: The wait before a switch that was refused is tried again, in seconds.
RETRY_SECONDS = 5.0


class LiveSwitch:
    """Keeps the switch in force ready. `keep_up` is one thread's; the rest may be read and called by any.

    Args:
        settings: the stream's.
        clock: seconds that only grow.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._hand_over: Callable[[Bypass], None] = _nobody
        self._handing = threading.Lock()
        self._try_again = 0.0
        #: Who goes past now. Replaced whole.
        self.bypass = Bypass(settings)
        #: What the topic says, as far as it was read.
        self.switched: Switched | None = None
        #: Why the switch is not obeyed; empty where it is, or where there is none.
        self.refused = ""

    def hand_over_to(self, take: Callable[[Bypass], None]) -> None:
        """Have each new switch given to `take`, in the thread that keeps up, and the one that is there now in the caller's."""
        with self._handing:
            self._hand_over = take
            take(self.bypass)

    def keep_up(self, registry: Registry) -> None:
        """Obey what the registry says now, if it is not obeyed yet."""
        switched = registry.switches.get(self._settings.model_name)
        if switched == self.switched and not (self.refused and self._clock() >= self._try_again):
            return
        self.switched = switched
        try:
            fresh, refused = self._allowed(switched), ""
        except Exception as error:  # whatever it is, nobody goes past, and scoring goes on
            if not isinstance(error, EcluseError):
                logger.exception("the bypass switch cannot be obeyed")
            fresh, refused = Bypass(self._settings), f"Nobody goes past the model here: {error}"
            self._try_again = self._clock() + RETRY_SECONDS
            if refused != self.refused:
                logger.error("%s", refused)
        self.refused = refused
        if fresh.revision != self.bypass.revision:
            logger.info(
                "a share of %g goes past the model from the next chunk on, by switch revision %d", *_words(fresh)
            )
        with self._handing:
            self.bypass = fresh
            self._hand_over(fresh)

    def _allowed(self, switched: Switched | None) -> Bypass:
        if switched is None or not switched.switch.share:
            return Bypass(self._settings, switched)
        secret = require_secret(self._settings, switched.switch.share)
        if secret_id(secret) != switched.switch.secret_id:
            raise SettingsError(["bypass.secret_file holds another secret than the one that the switch was set with."])
        return Bypass(self._settings, switched, secret)


def require_secret(settings: Settings, share: float) -> bytes:
    """The secret that draws, where the settings allow such a share.

    Raises:
        SettingsError: they do not, or it cannot be read.
    """
    bypass = settings.bypass
    if share > bypass.max_share:
        raise SettingsError([f"A share of {share:.6g} is more than bypass.max_share allows ({bypass.max_share:g})."])
    if bypass.secret_file is None:
        raise SettingsError(["bypass.secret_file is not set: without a secret, nobody can be drawn."])
    return read_secret(bypass.secret_file, "bypass.secret_file")


def _words(bypass: Bypass) -> tuple[float, int]:
    return bypass.share, bypass.revision


def _nobody(bypass: Bypass) -> None:
    """Who wants it reads `LiveSwitch.bypass`."""
    del bypass
