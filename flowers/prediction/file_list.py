"""The list of input files, on disk: made once, sorted, cut into shards, read a shard at a time.

``list.bin`` holds two byte strings a file, each ended by NUL: its path as the rows show it, and where its bytes are
(see ``Entry``). ``offsets.bin`` holds the start of each shard and the CRC of its bytes, then the size of the list and
the CRC of this table, all as little-endian uint64. A list of a hundred million files costs a process no more memory
than one of a thousand.
"""

import contextlib
import hashlib
import heapq
import itertools
import operator
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers.data.archives import Entry
from flowers.files import explain_os_error, sync_file
from flowers.retries import retries

_RUN = 200_000  # entries sorted in memory at a time
_CHUNK = 1 << 24


class ListInfo(NamedTuple):
    """Facts about a list: number of files, files a shard, SHA-256 of the list, entries left out as duplicates."""

    files: int
    shard_size: int
    digest: str
    duplicates: int


def write_list(entries: Iterable[Entry], folder: Path, shard_size: Callable[[int], int]) -> ListInfo:
    """Sort the entries by path, drop duplicates (of one path the last entry stays), write the list.

    Args:
        entries: in any order; best nearly sorted.
        folder: where the two files go.
        shard_size: files a shard, from the number of files.

    Raises:
        FlowersError: the disk is full or the folder cannot be written.
    """
    try:
        runs = _write_runs(entries, folder)
        digest, files, duplicates = hashlib.sha256(), 0, 0
        with open(folder / "list.bin", "wb") as file:
            merged = heapq.merge(*map(_read_run, runs), key=_path_of)
            for _, same in itertools.groupby(merged, key=_path_of):
                *earlier, entry = same
                duplicates += len(earlier)
                files += 1
                line = entry.path + b"\0" + entry.place + b"\0"
                digest.update(line)
                file.write(line)
        for run in runs:
            with contextlib.suppress(OSError):  # it goes with the work folder
                run.unlink()
        size = shard_size(files)
        with open(folder / "offsets.bin", "wb") as file:
            file.write(_table(folder / "list.bin", _shard_offsets(folder / "list.bin", size)).tobytes())
        for name in ("list.bin", "offsets.bin"):
            sync_file(folder / name)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return ListInfo(files, size, digest.hexdigest(), duplicates)


class FileList:
    """A list as ``write_list`` left it.

    No file stays open: on a network file system an open one keeps its folder from being removed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not whole.
    """

    def __init__(self, folder: Path):
        self._path = folder / "list.bin"
        offsets = folder / "offsets.bin"
        table = retries.read(lambda: np.fromfile(offsets, dtype="<u8"), offsets).reshape(-1, 2)
        self._offsets, self._crcs = table[:, 0], table[:, 1]
        if not len(table) or _crc(table) != table[-1, 1] or self._offsets[-1] != self._path.stat().st_size:
            raise ValueError("the list of files is not whole")

    @property
    def num_shards(self) -> int:
        """Shards in all."""
        return len(self._offsets) - 1

    def shard(self, index: int) -> list[Entry]:
        """The entries of one shard, in order.

        Raises:
            ValueError: it is damaged.
            OSError: it cannot be read.
        """
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])

        def read() -> bytes:
            with open(self._path, "rb") as file:
                file.seek(start)
                return file.read(end - start)

        data = retries.read(read, self._path)
        if zlib.crc32(data) != self._crcs[index]:
            raise ValueError(f"shard {index} of the list of files is damaged")
        parts = data.split(b"\0")
        return [Entry(path, place) for path, place in zip(parts[0:-1:2], parts[1::2], strict=True)]


_path_of = operator.itemgetter(0)


def _write_runs(entries: Iterable[Entry], folder: Path) -> list[Path]:
    runs: list[Path] = []
    entries = iter(entries)
    while held := list(itertools.islice(entries, _RUN)):
        held.sort(key=_path_of)  # stable: of one path the last entry stays last
        path = folder / f"run-{len(runs):06d}.bin"
        with open(path, "wb") as file:
            file.writelines(part + b"\0" for entry in held for part in entry)
        runs.append(path)
    return runs


def _read_run(path: Path) -> Iterator[Entry]:
    rest = b""
    with open(path, "rb") as file:
        while block := file.read(1 << 18):
            parts = (rest + block).split(b"\0")
            rest = b"\0".join(parts[-1:] if len(parts) % 2 else parts[-2:])
            whole = len(parts) - 1 - (len(parts) - 1) % 2
            for index in range(0, whole, 2):
                yield Entry(parts[index], parts[index + 1])


def _shard_offsets(path: Path, shard_size: int) -> np.ndarray:
    """Offset of each shard, and of the end: every ``2 * shard_size``-th NUL ends one."""
    offsets, seen, start = [0], 0, 0
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            nuls = np.flatnonzero(np.frombuffer(block, np.uint8) == 0)
            first = -(seen + 1) % (2 * shard_size)
            offsets += (start + 1 + nuls[first :: 2 * shard_size]).tolist()
            seen += len(nuls)
            start += len(block)
    if offsets[-1] != start:
        offsets.append(start)
    return np.array(offsets, dtype="<u8")


def _table(path: Path, offsets: np.ndarray) -> np.ndarray:
    """Content of ``offsets.bin``: uint64 [shards + 1, 2]."""
    table = np.zeros((len(offsets), 2), "<u8")
    table[:, 0] = offsets
    with open(path, "rb") as file:
        for index in range(len(offsets) - 1):
            table[index, 1] = zlib.crc32(file.read(int(offsets[index + 1] - offsets[index])))
    table[-1, 1] = _crc(table)
    return table


def _crc(table: np.ndarray) -> int:
    """The CRC of a table, without its own place for it."""
    return zlib.crc32(table.tobytes()[:-8])
