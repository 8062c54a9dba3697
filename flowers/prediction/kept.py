"""Rows of a finished table that an update keeps: those of files that are as they were when they were read.

Beside ``predictions.csv`` lies ``predictions.stamps``: for each row, in order, three little-endian int64, the file's
size in bytes, its time of change in ns, and a digest of its first bytes (size -1: it could not be read, so nothing is
known). A member of an archive has its own size and first bytes, and the archive's time. The JSON beside the table holds
the checksum of this file.

An update lists the files anew and goes through list, table and stamps side by side, in order, in bounded memory. What
is kept of a shard goes to ``known/`` in the work folder before the work begins; its other files are classified as ever.
"""

import bisect
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers import console
from flowers.data.archives import Entry
from flowers.data.paths import PathList, decode_path, readable
from flowers.data.threads import in_order
from flowers.errors import ImageError, OutputError
from flowers.files import file_digest
from flowers.prediction import parts
from flowers.prediction.inputs import file_of, is_remote, look_at, read_input
from flowers.prediction.job import Job
from flowers.prediction.table import read_lines, stamps_path
from flowers.prediction.work import Work, is_same, refusal
from flowers.retries import retries

_HEAD_BYTES = 1 << 14
_LOOKS_AT_ONCE = 16  # each is a few round trips on a network file system
_READS_AHEAD = 32
UNKNOWN = (-1, -1, -1)

Stamp = tuple[int, int, int]


class Row(NamedTuple):
    """A row of a finished table: its number, path and status, its line as parts hold it, the stamp of its file."""

    number: int
    path: bytes
    status: str
    line: bytes
    stamp: Stamp


class KeptRow(NamedTuple):
    """A row that is kept: status, line, and its number in the earlier table."""

    status: str
    line: bytes
    number: int


class KeptShard(NamedTuple):
    """The rows that are kept of one shard, by their place in it, and the stamps of all its places."""

    rows: dict[int, KeptRow]
    stamps: np.ndarray

    @property
    def new_slots(self) -> list[int]:
        """The places of files that are classified."""
        return [slot for slot in range(len(self.stamps)) if slot not in self.rows]


class StampingReader:
    """Reads input files and remembers the stamp of each until it is asked for.

    The file is looked at before it is read: one that changes meanwhile has an old stamp, and is read again next time.

    Args:
        root: the folder that paths are relative to.
    """

    def __init__(self, root: bytes):
        self._root = root
        self._stamps: dict[bytes, Stamp] = {}
        self._coming: dict[bytes, Future] = {}
        self._pool: ThreadPoolExecutor | None = None

    def ahead(self, entry: Entry) -> None:
        """Begin to read a file at an address, since many servers are slow to answer but answer many at a time."""
        if is_remote(entry):
            self._pool = self._pool or ThreadPoolExecutor(_READS_AHEAD, "ahead")
            self._coming[entry.path] = self._pool.submit(read_input, self._root, entry)

    def close(self) -> None:
        """Drop what was begun and not asked for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, entry: Entry) -> bytes | bytearray:
        """The bytes of an input file; raises ImageError as ``read_input`` does."""
        if is_remote(entry):
            coming = self._coming.pop(entry.path, None)
            return coming.result() if coming is not None else read_input(self._root, entry)
        if entry.place:  # of a zip, what is stored is not what is read
            self._stamps[entry.path] = stamp_of(self._root, entry)
            return read_input(self._root, entry)
        time_ns = _time_ns(self._root, entry)
        data = read_input(self._root, entry)
        self._stamps[entry.path] = len(data), time_ns, _digest(memoryview(data)[:_HEAD_BYTES])
        return data

    def take(self, entries: list[Entry]) -> np.ndarray:
        """Stamps of files that were read, int64 [files, 3], which are then forgotten."""
        found = [self._stamps.pop(entry.path, UNKNOWN) for entry in entries]
        return np.array(found, "<i8").reshape(-1, 3)


def stamp_of(root: bytes, entry: Entry) -> Stamp:
    """The stamp of an input file as it is now; ``UNKNOWN`` if it cannot be read."""
    if entry.place.startswith(b"!"):  # what is wrong is known from the archive's list
        return 0, 0, _digest(entry.place)
    time_ns = _time_ns(root, entry)
    seen = look_at(root, entry, _HEAD_BYTES)
    if not seen or time_ns < 0:
        return UNKNOWN
    size, _, head = seen.partition(b":")
    return int(size), time_ns, _digest(head)


def is_settled(root: bytes, entry: Entry, seconds: float, now_s: float) -> bool:
    """False for a file that was written to within the last seconds: it may not be whole yet."""
    return entry.place.startswith(b"!") or abs(now_s - _time_ns(root, entry) / 1e9) >= seconds


def whole_or_known(job: Job, entries: Iterator[Entry]) -> Iterator[Entry]:
    """The files of a round of --watch: new ones that may still be being written wait for the next round."""
    root, now_s = job.root, time.time()
    known: PathList | None = None
    for entry in entries:
        if not is_settled(root, entry, job.config.watch_s, now_s):
            known = _paths_of_table(job) if known is None else known
            place = bisect.bisect_left(known, entry.path, key=os.fsencode)
            if place == len(known) or os.fsencode(known[place]) != entry.path:
                continue
        yield entry


def _paths_of_table(job: Job) -> PathList:
    facts = job.finished()
    lines = read_lines(job.config.output, facts["settings"]) if facts else ()
    return PathList(decode_path(path) for path, _, _ in lines)


def keep_rows(job: Job, earlier: dict, work: Work) -> bool:
    """Write what new work keeps of the finished table, shard by shard.

    Args:
        earlier: facts about the table.
        work: the work over the new list.

    Returns:
        True if every file of the list keeps its row.

    Raises:
        OutputError: --retry-errors without --update, and the files are others.
    """
    config = job.config
    if not config.follows and not is_same(earlier["settings"], earlier.get("contents"), work.settings, work.contents):
        raise OutputError(refusal(config.output, earlier["settings"], work.settings))
    root, failed, now_s = job.root, job.rows.failed, time.time()

    def is_kept(found: tuple[int, Entry, Row]) -> bool:
        _, entry, row = found
        if config.retry_errors and row.status == "error":
            return False
        if not config.follows or _is_unchanged(root, entry, row, failed):
            return True
        return config.watch_s is not None and not is_settled(root, entry, config.watch_s, now_s)

    (work.folder / "known").mkdir()
    facts = {"embeddings": _file_facts(config.embeddings) if config.embeddings else None}
    rows = _finished_rows(config.output, earlier)
    row = next(rows, None)
    missing = 0
    for index in range(work.files.num_shards):
        entries = work.shard(index)
        both: list[tuple[int, Entry, Row]] = []
        for slot, entry in enumerate(entries):
            while row is not None and row.path < entry.path:
                row = next(rows, None)
            if row is not None and row.path == entry.path:
                both.append((slot, entry, row))
        stamps = np.full((len(entries), 3), -1, "<i8")
        lines = []
        for (slot, _, found), keeps in zip(both, in_order(is_kept, both, _LOOKS_AT_ONCE) if both else (), strict=True):
            if keeps:
                stamps[slot] = found.stamp
                lines.append(json.dumps([slot, found.status, found.line.decode(), found.number]).encode() + b"\n")
        missing += len(entries) - len(lines)
        if lines:
            parts.write_part(work.folder / "known", index, b"".join(lines), facts, stamps.tobytes())
    return not missing


def _finished_rows(output: Path, facts: dict) -> Iterator[Row]:
    """The rows of a finished table with the stamps beside it, in order; without those nothing is known of its files."""
    stamps = None
    with contextlib.suppress(OSError, KeyError):
        if file_digest(stamps_path(output)) == facts["stamps"]:
            stamps = np.asarray(np.memmap(stamps_path(output), "<i8", "r")).reshape(-1, 3)
    if stamps is None:
        console.warn(f"{readable(stamps_path(output))} is not as it was written: no file is known to be unchanged")
    for number, (path, status, line) in enumerate(read_lines(output, facts["settings"])):
        stamp = UNKNOWN if stamps is None else tuple(stamps[number].tolist())
        yield Row(number, os.fsencode(decode_path(path)), status, line, stamp)


def _is_unchanged(root: bytes, entry: Entry, row: Row, failed: Callable[[str, str], bytes]) -> bool:
    """Tell if a file is as it was when its row was made.

    Args:
        failed: makes the row of a file that cannot be read, from its path and the reason.
    """
    if row.stamp != UNKNOWN:
        return row.stamp == stamp_of(root, entry)
    try:
        read_input(root, entry)
    except ImageError as error:
        return failed(os.fsdecode(entry.path), str(error)) == row.line
    return False


def read_kept(work: Work, index: int, embeddings: Path | None) -> KeptShard:
    """Read the rows that are kept of one shard: none if its file is missing or damaged, or its embeddings are gone."""
    size, folder = work.size(index), work.folder / "known"
    with contextlib.suppress(FileNotFoundError, OutputError):
        facts = parts.read_facts(folder, index)
        lines = b"".join(parts.read_rows(folder, index)).splitlines()
        stamps = np.frombuffer(parts.read_stamps(folder, index), "<i8").reshape(size, 3).copy()
        if embeddings is None or facts["embeddings"] == _file_facts(embeddings):
            found = {}
            for slot, status, line, number in map(json.loads, lines):
                found[slot] = KeptRow(status, line.encode(), number)
            return KeptShard(found, stamps)
    return KeptShard({}, np.full((size, 3), -1, "<i8"))


def drop_stale(work: Work, root: bytes) -> None:
    """Remove the parts of an interrupted update whose files have changed since they were read."""
    for index in parts.finished(work.parts):
        entries = work.shard(index)
        with contextlib.suppress(OutputError, ValueError):
            known = np.frombuffer(parts.read_stamps(work.parts, index), "<i8").reshape(-1, 3).tolist()
            now = in_order(lambda entry: stamp_of(root, entry), entries, _LOOKS_AT_ONCE)
            if all(tuple(then) == seen != UNKNOWN for then, seen in zip(known, now, strict=True)):
                continue
        parts.remove_part(work.parts, index)


def _time_ns(root: bytes, entry: Entry) -> int:
    try:
        return retries.read(lambda: os.stat(os.path.join(root, file_of(entry)))).st_mtime_ns
    except (OSError, ValueError):
        return -1


def _digest(head: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(head, digest_size=8).digest(), "little", signed=True)


def _file_facts(path: Path) -> list[int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return None
