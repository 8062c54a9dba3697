"""Reads that fail once and would work a moment later: a busy network disk, or no file handles left for now."""

import errno
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_NAMES = (
    "EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "EAGAIN", "EINTR", "EBUSY", "ENOMEM", "ENOBUFS", "EREMOTEIO",
    "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "EPIPE", "ENOLINK", "ECOMM", "EHOSTDOWN", "EHOSTUNREACH",
    "ENETDOWN", "ENETUNREACH", "ENETRESET", "EPROTO", "ESHUTDOWN",
)  # fmt: skip
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
"""Errors of the disk or the system, not of the file; the same read may work later."""
WAITS_S = (0.05, 0.2, 0.8, 2.0)
"""Seconds to wait before each further try of one read."""
_PATIENCE_S = 60.0


class Retries:
    """Counts the reads that worked at a later try, and bounds the time spent on those that never do.

    All threads share ``_PATIENCE_S`` seconds of waiting; a read that works at a later try fills it up again. So a disk
    that hiccups is waited for each time, and one that is gone for good costs a minute, not seconds a file.

    Attributes:
        recovered: reads that failed at first and worked in the end.
    """

    def __init__(self) -> None:
        self.recovered = 0
        self._left_s = _PATIENCE_S
        self._lock = threading.Lock()

    def read(self, read: Callable[[], Result]) -> Result:
        """Call ``read``; again, after a while, where it fails with one of ``TRANSIENT``.

        Raises:
            OSError: what the last try raised.
        """
        try:
            return read()
        except OSError as error:
            failed = error
        for wait_s in WAITS_S:
            if failed.errno not in TRANSIENT or not self._may_wait(wait_s):
                break
            time.sleep(wait_s)
            try:
                result = read()
            except OSError as error:
                failed = error
                continue
            with self._lock:
                self.recovered += 1
                self._left_s = _PATIENCE_S
            return result
        raise failed

    def _may_wait(self, seconds: float) -> bool:
        with self._lock:
            may = self._left_s >= seconds
            self._left_s -= seconds if may else 0
        return may


retries = Retries()
"""Those of this process."""
