"""Lock files: one process at a time, on one machine and on network file systems that know locks.

The kernel releases a lock when the process that holds it ends, however it ends. Forked loader processes would keep it
for the seconds that they outlive a killed job, so they close their copy as soon as they start.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flowers.console import warn
from flowers.errors import InUseError
from flowers.files import explain_os_error, lies_at, lock, make_parents

_held: set[IO] = set()


@contextlib.contextmanager
def refuse_others(path: Path, what: Path, advice: str) -> Iterator[None]:
    """Hold a lock file inside the block; a second process that wants it is refused.

    Where files cannot be locked, a warning says so. Inside the block the file may be removed, with its folder.

    Args:
        path: the lock file; it is made if needed and stays, with the name of its last holder.
        what: the folder or file that it protects, for the message.
        advice: what else to do, for the message.

    Raises:
        InUseError: another process holds it.
    """
    try:
        file, locked = _open_locked(path, wait=False)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        raise InUseError(f"{what} is in use by {holder or 'another process'}: {advice}") from None
    if not locked:
        warn(f"{what}: this file system has no locks; start only one job on it at a time")
    with _held_open(file):
        _sign(file)
        yield


@contextlib.contextmanager
def share(path: Path) -> Iterator[None]:
    """Hold a lock file inside the block together with others that share it; ``refuse_others`` refuses meanwhile."""
    file, _ = _open_locked(path, wait=True, shared=True)
    with _held_open(file):
        _sign(file)
        yield


@contextlib.contextmanager
def take_turns(path: Path) -> Iterator[None]:
    """Let one process at a time into the block while the others wait; where files cannot be locked all go in."""
    file, _ = _open_locked(path, wait=True)
    with _held_open(file):
        yield


def is_held(path: Path) -> bool:
    """Tell if a process holds a lock file, alone or shared; False where the file system knows no locks."""
    try:
        with open(path, encoding="utf-8") as file:
            lock(file.fileno())  # let go again at once
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _open_locked(path: Path, wait: bool, shared: bool = False) -> tuple[IO, bool]:
    """Open a lock file and lock it.

    Returns:
        The file; False where the system or the file system knows no locks.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    while True:
        make_parents(path.parent)
        if path.is_dir():
            raise explain_os_error(IsADirectoryError(errno.EISDIR, "a folder", path), path)
        try:
            file = open(path, "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:  # the folder was removed between our two steps
            continue
        try:
            if not lock(file.fileno(), shared=shared, wait=wait):
                return file, False
        except BlockingIOError:
            file.close()
            raise
        if lies_at(path, file.fileno()):
            return file, True
        file.close()  # the last holder removed it between our two steps: lock the new one


def _open_no_link(path: str, flags: int) -> int:
    """Refuse a link: its holder would write his name into a file that somebody else chose."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def _held_open(file: IO) -> Iterator[None]:
    """Keep a file open inside the block, in this process only."""
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        file.close()


def _sign(file: IO) -> None:
    """Write who holds a lock file, for the message that refuses others."""
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        file.truncate(0)
        # Past the buffer, which would keep what a full disk refused and fail with it again when the file is closed.
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
