"""Walk a tree of photos: in a fixed order, in bounded memory, whatever lies in the way."""

import contextlib
import errno
import functools
import heapq
import os
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flowers import console
from flowers.data.choice import UNREADABLE_FOLDER, Choice
from flowers.data.paths import readable
from flowers.data.shards import stamp_of
from flowers.errors import DataError, system_reason
from flowers.retries import retries

_CHUNK = 16384  # names of one folder sorted at a time
_LOOKS_AT_ONCE = 16  # each is a round trip on a network file system
_INT64_MAX = 2**63 - 1

Identity = tuple[int, int]
"""Device and inode."""


def scan_images(root: str | os.PathLike, choice: Choice | None = None, below: str = "") -> Iterator[str]:
    """Yield every image file below a folder.

    An image file is a regular file, or a link to one, that ``choice`` takes: by default one that ends like a picture,
    in upper or lower case; links that lead nowhere count, so that the file someone believes to be there gets its error.
    Names that begin with a dot are skipped, files and folders alike (.ipynb_checkpoints, ._foo.jpg), and so are the
    folders of disks and archives (@eaDir, lost+found); ``choice`` counts what is left out. Links to folders
    are followed, but the first one only of several to the same folder, and none back to a folder that one is
    already in. Such links, FIFOs, sockets, devices and folders that cannot be read are told one by one.

    Memory goes with the names of the folders on one branch, about 30 bytes a name, not with the tree.

    Args:
        root: the folder.
        choice: which files are taken.
        below: what patterns of ``choice`` see before a path, with a slash at its end.

    Yields:
        Paths relative to ``root``, posix separators, undecodable bytes as surrogates (``os.fsdecode``), sorted by
        their bytes (``os.fsencode``) over the whole tree.

    Raises:
        DataError: ``root`` is not a folder, or cannot be read.
    """
    top = os.fsencode(root)
    choice, shown = choice or Choice(), os.fsencode(below)
    try:
        status = retries.read(functools.partial(os.stat, top))
        if not stat.S_ISDIR(status.st_mode):
            raise DataError(f"{readable(os.fsdecode(top))}: not a folder")
        names = _listed(top, shown, choice)
    except OSError as error:
        raise DataError(f"{readable(os.fsdecode(top))}: {_reason(error)}") from None
    # One entry a folder on the current branch: its path below the root, who it is, the names still to come.
    branch = [(b"", (status.st_dev, status.st_ino), names)]
    linked: set[Identity] = set()
    while branch:
        prefix, _, names = branch[-1]
        name = next(names, None)
        if name is None:
            branch.pop()
        elif not name.endswith(b"/"):
            yield os.fsdecode(prefix + name)
        else:
            path = os.path.join(top, prefix, name[:-1])
            try:
                status = retries.read(functools.partial(os.stat, path))
                identity = (status.st_dev, status.st_ino)
                if reason := _why_not_followed(path, identity, [above for _, above, _ in branch], linked):
                    console.warn(f"{readable(os.fsdecode(path))}: {reason}, not followed")
                    continue
                branch.append((prefix + name, identity, _listed(path, shown + prefix + name, choice)))
            except FileNotFoundError:
                continue  # removed since its parent was listed
            except OSError as error:
                choice.left_out[UNREADABLE_FOLDER] += 1
                console.warn(f"{readable(os.fsdecode(path))}: {_reason(error)}; its images are left out")


def folders_from(top: str) -> Iterator[str]:
    """A folder, and those below it that are not hidden, by the same rule about links; in no order."""
    linked: set[Identity] = set()
    waiting: list[tuple[str, tuple[Identity, ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if above and _why_not_followed(folder, identity, above, linked):
                continue
            with os.scandir(folder) as entries:
                below = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        except OSError:
            continue
        yield folder
        waiting += [(path, (*above, identity)) for path in below]


def _why_not_followed(
    path: str | bytes, identity: Identity, above: Collection[Identity], linked: set[Identity]
) -> str | None:
    """Why a walk does not enter a folder; None if it does.

    Args:
        above: the folders that it lies in.
        linked: folders that a link was followed to; one that is now is added. Without it a few folders that link to
            each other would make billions of paths.
    """
    if identity in above:
        return "a link back to a folder it lies in"
    if os.path.islink(path):
        if identity in linked:
            return "another link to the same folder"
        linked.add(identity)
    return None


def _listed(folder: bytes, prefix: bytes, choice: Choice) -> Iterator[bytes]:
    """As ``_sorted_names``; a listing that broke off is begun again, and what it counted does not count."""
    before = choice.left_out.copy()

    def listed() -> Iterator[bytes]:
        choice.left_out.clear()
        choice.left_out.update(before)
        return _sorted_names(folder, prefix, choice)

    return retries.read(listed)


def _sorted_names(folder: bytes, prefix: bytes, choice: Choice) -> Iterator[bytes]:
    """List one folder: image files and, with a slash at the end, folders; sorted with that slash.

    The slash makes a walk in this order sorted by whole paths: "a.jpg" comes before "a/b.jpg". Sorted names are
    kept joined by NUL, which no name holds, a chunk each, and merged as they are asked for.
    """
    endings, is_plain = choice.endings, not choice.exclude
    chunks: list[bytes] = []
    names: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            try:
                if name.startswith(b"."):
                    choice.leave_out(entry.path, "hidden")
                elif entry.is_dir():
                    if reason := choice.skips(prefix + name):
                        choice.leave_out(entry.path, reason)
                    else:
                        names.append(name + b"/")
                elif is_plain and name.lower().endswith(endings) and entry.is_file():
                    names.append(name)  # most files, so that they do not wait for the questions below
                elif not (entry.is_file() or not os.path.exists(entry.path)):
                    choice.left_out["neither a file nor a folder"] += 1
                    console.warn(f"{readable(os.fsdecode(entry.path))}: neither a file nor a folder, left out")
                elif choice.takes(prefix + name, functools.partial(_head, entry.path)):
                    names.append(name)
            except OSError as error:
                if error.errno == errno.ELOOP:  # a link to itself
                    if choice.takes(prefix + name, lambda _: b""):
                        names.append(name)  # an input that gets its error
                else:
                    choice.left_out["that cannot be looked at"] += 1
                    console.warn(f"{readable(os.fsdecode(entry.path))}: {_reason(error)}; left out")
            if len(names) == _CHUNK:
                chunks.append(_join(names))
                names = []
    chunks.append(_join(names))
    return heapq.merge(*map(_split, chunks)) if len(chunks) > 1 else _split(chunks[0])


def _head(path: bytes, count: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(count)
    return b""


def _join(names: list[bytes]) -> bytes:
    return b"".join(name + b"\0" for name in sorted(names))


def _split(chunk: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(chunk):
        end = chunk.index(b"\0", start)
        yield chunk[start:end]
        start = end + 1


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "no such folder"
    if error.errno == errno.EACCES:
        return "no permission to list this folder"
    return system_reason(error)


def file_stamps(path_of: Callable[[int], str], count: int) -> np.ndarray:
    """Size in bytes and time of change in ns of files or photos in shards, [count, 2] int64; -1 for what is not seen.

    Args:
        path_of: gives the path of a file by its index.
    """

    def stamp(path: str) -> tuple[int, int]:
        status = _status(path)
        return stamp_of(path) if status is None else (status.st_size, status.st_mtime_ns)

    return _looked_at(path_of, count, stamp)


def file_ids(path_of: Callable[[int], str], count: int) -> np.ndarray:
    """Device and inode of files, by which they are the same whatever their paths, [count, 2] int64; -1 for no file.

    Args:
        path_of: gives the path of a file by its index.
    """

    def identity(path: str) -> tuple[int, int]:
        status = _status(path)
        return (-1, -1) if status is None else (status.st_dev & _INT64_MAX, status.st_ino & _INT64_MAX)

    return _looked_at(path_of, count, identity)


def _status(path: str) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return retries.read(lambda: os.stat(path))
    return None


def _looked_at(path_of: Callable[[int], str], count: int, look: Callable[[str], tuple[int, int]]) -> np.ndarray:
    """What ``look`` tells of each file, [count, 2] int64; in threads, since each look may take a round trip."""

    def part(indices: np.ndarray) -> np.ndarray:
        return np.array([look(path_of(int(index))) for index in indices], np.int64).reshape(-1, 2)

    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        return np.concatenate(list(pool.map(part, np.array_split(np.arange(count), _LOOKS_AT_ONCE))))
