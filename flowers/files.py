"""Write files and folders so that they are whole or absent: write beside, fsync, rename."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flowers.errors import FlowersError
from flowers.retries import retries

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FULL_BELOW_BYTES = 64 * 2**20
"""A write that failed with less than this left on the disk is taken to have failed because the disk is full."""
MAX_NAME_BYTES = 255
"""The most that file systems take for one name."""
_SHORT_BYTES = 80
_WRITE_FAILED = ("PytorchStreamWriter", "inline_container", "iostream error", "I/O error", "os error")
"""What the messages of torch and safetensors hold where a write failed."""
_LONGEST_REASON = 200
NPZ_DAMAGE = (
    ValueError, TypeError, LookupError, EOFError, RuntimeError, AttributeError, MemoryError, zipfile.BadZipFile,
    zlib.error, struct.error,
)  # fmt: skip
"""What numpy and zipfile raise for an ``.npz`` that is not as it was written, where it is not an OSError."""


@contextlib.contextmanager
def write_atomically(path: Path, mode: str = "w", **open_kwargs) -> Iterator[IO]:
    """Open a file that takes its final name only when the block ends well.

    Args:
        path: the final name; its folder is made if needed.
        mode: "w" (UTF-8, newlines as written) or "wb".

    Raises:
        FlowersError: the disk is full or the place cannot be written; nothing is left behind and
            an earlier file of that name is untouched.
    """
    path = Path(path)
    if "b" not in mode:
        open_kwargs = {"encoding": "utf-8", "newline": "", **open_kwargs}
    try:
        make_parents(path.parent)
        with file_beside(path) as temporary:
            with open(temporary, mode, **open_kwargs) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_json(path: Path, values: object) -> None:
    """Write plain values as a JSON file, whole or not at all, as ``write_atomically`` does."""
    with write_atomically(path) as file:
        json.dump(values, file, indent=1)


@contextlib.contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Make a file that is to take the name ``path``; what is not renamed in the block goes at its end.

    What a killed process has left of such a file goes first, what a living one writes stays: that is locked.
    """
    handle, name = _new_file(path)
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            if lies_at(name, handle):  # else it was renamed, and one of that name is another process's
                name.unlink()
        os.close(handle)


def _new_file(path: Path) -> tuple[int, Path]:
    """Make and lock a file beside ``path``, of one name as a rule: what is left of it is found without a listing."""
    name = path.with_name(f".{_shortened(path.name)}.flowers_.tmp")
    _remove_abandoned(name)
    with contextlib.suppress(FileExistsError):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(BlockingIOError):
            if not lock(handle) or lies_at(name, handle):
                return handle, name
        os.close(handle)  # another process took it for abandoned between our two steps
    handle, other = tempfile.mkstemp(dir=path.parent, prefix=f".{_shortened(path.name)}.", suffix=".tmp")
    lock(handle)
    allow_as_usual(other)
    return handle, Path(other)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder for what is to take the name ``path``, as ``file_beside`` does for a file."""
    start = f".{_shortened(path.name)}.tmp-"
    for left in os.listdir(path.parent):
        if left.startswith(start):
            _remove_abandoned(path.with_name(left))
    handle, temporary = _new_folder(path.with_name(start))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def _new_folder(start: Path) -> tuple[int, Path]:
    """Make and lock a folder whose name begins so; in containers and on other machines processes have our number."""
    while True:
        temporary = start.with_name(f"{start.name}{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            handle = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):
                if not lock(handle) or lies_at(temporary, handle):
                    return handle, temporary
            os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove what a killed process has left; what a living one holds stays, and all where there are no locks."""
    with contextlib.suppress(OSError, FlowersError):
        kind = os.O_RDONLY if path.is_dir() else os.O_RDWR  # locks over NFS need both
        handle = os.open(path, kind | getattr(os, "O_NOFOLLOW", 0))
        try:
            if lock(handle) and lies_at(path, handle):
                remove(path)
        finally:
            os.close(handle)


def lies_at(path: Path, handle: int) -> bool:
    """Tell if a name still leads to an open file or folder, not to another one or none; False if nobody knows."""
    with contextlib.suppress(OSError):
        return retries.read(lambda: os.path.samestat(os.fstat(handle), os.stat(path)))
    return False


def lock(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder as long as it is open.

    Returns:
        False where the system or the file system knows no locks.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    if fcntl is None:
        return False
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _shortened(name: str) -> str:
    """The start of a name, for one beside it that is not too long."""
    return os.fsdecode(os.fsencode(name)[:_SHORT_BYTES])


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside ``path``; it takes that name only when the block ends well.

    An earlier folder of that name steps aside as ``.NAME.old`` and is removed last, so that one of the two is
    whole at any moment; ``restore_folder`` puts it back after a crash between the two renames. A link stays, what it
    leads to is replaced.

    Raises:
        FlowersError: the disk is full, the place cannot be written, or a file is there; what was there is untouched.
    """
    path = _behind_link(Path(path))
    try:
        make_parents(path.parent)
        restore_folder(path)
        if path.exists() and not path.is_dir():  # it would step aside and be removed like an earlier folder
            raise FileExistsError(errno.EEXIST, "a file", path)
        with folder_beside(path) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    sync_file(file)
            sync_folder(temporary)
            old = old_name(path)
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, path) from error
    except Exception as error:  # torch and safetensors have errors of their own for a write that failed
        if not any(sign in str(error) for sign in _WRITE_FAILED):
            raise
        is_full = shutil.disk_usage(path.parent).free < FULL_BELOW_BYTES or "os error 28" in str(error)
        said = " ".join(str(error).split())[:_LONGEST_REASON]
        said = f"a write failed, look at the disk, its quota and permissions ({said})"
        raise explain_os_error(OSError(errno.ENOSPC if is_full else errno.EIO, said), path) from error


def restore_folder(path: Path) -> None:
    """Undo a ``replace_folder`` that was killed between its two renames; else do nothing."""
    path, old = _behind_link(path), old_name(path)
    if old.exists() and not path.exists():
        os.rename(old, path)
    elif old.exists():
        shutil.rmtree(old, ignore_errors=True)
        if old.exists():  # a file that is open on a network file system; the next one to step aside needs the name
            os.rename(old, path.parent / f".{_shortened(path.name)}.tmp-{time.time_ns()}")


def old_name(path: Path) -> Path:
    """The path at which ``replace_folder`` keeps the earlier folder while it puts the new one in its place."""
    path = _behind_link(path)
    name = f".{path.name}.old"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f".{_shortened(path.name)}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}.old"
    return path.parent / name


def _behind_link(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def make_parents(folder: Path) -> None:
    """Make a folder and those above it; one that is there already is fine.

    Raises:
        OSError: it cannot be made; also where a thousand are missing, at which ``mkdir`` ends in a RecursionError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), folder) from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it; one that is there already is fine, if it can be written.

    Raises:
        FlowersError: it cannot be made or written.
    """
    try:
        make_parents(Path(path))
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise explain_os_error(error, path) from error


def claim(path: Path) -> None:
    """Find out before the work, not after it, that a file of this name can be written.

    Raises:
        FlowersError: it cannot: it is a folder, or its own cannot be made or written.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise explain_os_error(IsADirectoryError(errno.EISDIR, "a folder", path), path)


def user_cache() -> Path | None:
    """Where this project keeps what it can make again; None for those without a home, as in some containers."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "flowers" if os.path.isabs(caches) else None


def file_digest(path: Path) -> dict[str, int | str]:
    """Size and SHA-256 of a file, as they are stored beside it to notice damage; a disk's hiccup is waited for.

    Raises:
        OSError: it cannot be read.
    """

    def digest() -> dict[str, int | str]:
        with open(path, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return {"bytes": size_bytes, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    return retries.read(digest, path)


def remove(path: Path) -> None:
    """Remove a file, or whatever folder stands in its place; one that is not there is fine.

    Raises:
        FlowersError: it cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except NotADirectoryError:  # a file stands in the place of its folder
        return
    except OSError as error:
        raise explain_os_error(error, path) from error


def sync_file(path: Path) -> None:
    """Make a written file last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do not sync folders; the rename still holds
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def explain_os_error(error: OSError, path: Path) -> FlowersError:
    """Turn an errno into one line for the user."""
    hints = {
        errno.ENOSPC: "the disk is full: free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space and start the same command again",
        errno.EACCES: "no permission: choose another place, or change its permissions",
        errno.EROFS: "the file system is read-only: choose another place",
        errno.EEXIST: "a file stands where a folder has to be: choose another place",
        errno.ENOTDIR: "a part of this path is a file, not a folder: choose another place",
        errno.EISDIR: "this is a folder, a file name was expected",
    }
    hint = hints.get(error.errno or 0, error.strerror or str(error))
    return FlowersError(f"cannot write {path}: {hint}")


def allow_as_usual(path: Path) -> None:
    """Give a file the permissions that a new one has here; what makes temporary files makes them for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
