"""Reads that fail once and would work a moment later: a busy network disk, or no file handles left for now."""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from flowers.errors import TRANSIENT

Result = TypeVar("Result")

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

    def read(self, read: Callable[[], Result], path: str | os.PathLike | None = None) -> Result:
        """Call ``read``; again, after a while, where it fails with one of ``TRANSIENT``.

        Args:
            path: what is read, for an error that does not name it: of an open file the system says no name.

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
        if path is not None and failed.filename is None:
            failed.filename = os.fspath(path)
        raise failed

    def _may_wait(self, seconds: float) -> bool:
        with self._lock:
            may = self._left_s >= seconds
            self._left_s -= seconds if may else 0
        return may


retries = Retries()
"""Those of this process."""


@contextlib.contextmanager
def only_of_the_file() -> Iterator[None]:
    """Suppress the errors of a file that is not there, or cannot be one; those of ``TRANSIENT`` say nothing of it."""
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT:
            raise


def is_there(path: str | os.PathLike) -> bool:
    """True if there is something of that name; a disk that gives no answer is asked again, and not taken for a no.

    Raises:
        OSError: it gives none.
    """
    try:
        retries.read(lambda: os.lstat(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a name that cannot be one
        return False
    return True


def mode_of(path: str | os.PathLike) -> int:
    """Type and permissions of a file or folder, or of what a link leads to; 0 if there is none; as ``is_there``."""
    try:
        return retries.read(lambda: os.stat(path)).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def is_file(path: str | os.PathLike) -> bool:
    """True for a regular file or a link to one; otherwise as ``is_there``."""
    return stat.S_ISREG(mode_of(path))
