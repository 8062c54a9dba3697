"""One finished shard on disk: its rows, the stamps of its files, then a line with their sizes, CRCs and counts.

A part has its final name only when it is whole; the last line is there so that a disk that lost what it promised to
keep (a power cut, a network file system) is found out before its rows are believed.
"""

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from flowers.data.paths import readable
from flowers.errors import OutputError, system_reason
from flowers.files import explain_os_error, remove
from flowers.parsing import parse_json
from flowers.retries import retries

STAGES = ("read", "decode", "infer", "write")
"""What the seconds of a shard are counted by."""

_TAIL_BYTES = 4096
_COPY_BYTES = 1 << 20


class DamagedError(OutputError):
    """A finished shard is not what was written; its part is removed, so that the shard is done again."""


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """A full disk and the like in one line; what is not there any more stays a FileNotFoundError.

    That one goes through all of a job's functions: another process has finished the whole job, and its folder is gone.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain_os_error(error, place) from error


def part_name(index: int) -> str:
    """File name of a shard's part."""
    return f"{index:08d}"


def write_part(folder: Path, index: int, rows: bytes, facts: dict, stamps: bytes = b"") -> None:
    """Write the part of one shard.

    Args:
        folder: where parts are.
        rows: its lines.
        facts: what to remember of it, as plain values (counts, seconds).
        stamps: how its files looked when they were read, see ``kept.py``.

    Raises:
        FileNotFoundError: the folder is gone: another process has finished the whole job.
        FlowersError: the disk is full or the folder cannot be written.
    """
    tail = {"bytes": len(rows), "crc32": zlib.crc32(rows), **facts}
    tail |= {"stamps_bytes": len(stamps), "stamps_crc32": zlib.crc32(stamps)} if stamps else {}
    tail["check"] = _check(tail)
    temporary = folder / f"{part_name(index)}.{uuid.uuid4().hex}.tmp"
    with explained(folder):
        try:
            with open(temporary, "xb") as file:
                file.write(rows)
                file.write(stamps)
                file.write(b"\0" + json.dumps(tail).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            put(temporary, folder / part_name(index))
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def put(new: Path, path: Path) -> None:
    """Rename a file to its final name, also where a folder has taken that."""
    if path.is_dir():
        remove(path)
    os.replace(new, path)


def read_facts(folder: Path, index: int) -> dict:
    """Read the facts that ``write_part`` stored, and bytes and crc32 of the rows.

    Raises:
        FileNotFoundError: there is no such part.
        DamagedError: it is damaged, and removed.
    """
    if (facts := peek(folder, index)) is not None:
        return facts
    raise _damaged(folder / part_name(index))


def peek(folder: Path, index: int) -> dict | None:
    """As ``read_facts``, but a damaged part stays where it is, and gives None.

    Raises:
        FileNotFoundError: there is no such part.
    """
    path = folder / part_name(index)

    def end() -> tuple[int, bytes]:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            return size, file.read()

    size, read = retries.read(end, path)
    _, mark, tail = read.rpartition(b"\0")
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        facts = parse_json(tail) if mark else {}
        held = facts.get("bytes", 0) + facts.get("stamps_bytes", 0)
        if facts.pop("check", None) == _check(facts) and held == size - len(tail) - 1:
            return facts
    return None


def read_rows(folder: Path, index: int) -> Iterator[bytes]:
    """The rows of a part, in blocks.

    Raises:
        FileNotFoundError: there is no such part.
        DamagedError: it is damaged, and removed.
    """
    facts = read_facts(folder, index)
    left, crc = facts["bytes"], 0
    with open(folder / part_name(index), "rb") as file:
        while left:
            block = file.read(min(left, _COPY_BYTES))
            if not block:
                break
            left -= len(block)
            crc = zlib.crc32(block, crc)
            yield block
    if left or crc != facts["crc32"]:
        raise _damaged(folder / part_name(index))


def read_stamps(folder: Path, index: int) -> bytes:
    """The stamps of a part; empty in one that an earlier version wrote.

    Raises:
        FileNotFoundError: there is no such part.
        DamagedError: it is damaged, and removed.
    """
    facts = read_facts(folder, index)
    with open(folder / part_name(index), "rb") as file:
        file.seek(facts["bytes"])
        stamps = file.read(facts.get("stamps_bytes", 0))
    if zlib.crc32(stamps) != facts.get("stamps_crc32", 0):
        raise _damaged(folder / part_name(index))
    return stamps


def finished(folder: Path) -> set[int]:
    """Numbers of the shards that have their part.

    Raises:
        FileNotFoundError: the folder is gone: another process has finished the whole job.
    """

    def listed() -> set[int]:
        return {int(entry.name) for entry in os.scandir(folder) if entry.name.isdigit() and entry.is_file()}

    return retries.read(listed, folder)


def remove_part(folder: Path, index: int) -> None:
    """Remove the part of a shard, which is then done again."""
    (folder / part_name(index)).unlink(missing_ok=True)


def _damaged(path: Path) -> OutputError:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # as long as it stands there its shard counts as done
        return OutputError(
            f"{readable(path)} is damaged and cannot be removed ({system_reason(error)}): remove it, then "
            "start the same command again"
        )
    return DamagedError(f"{readable(path)} was damaged, and is removed: its shard has to be done again")


def _check(facts: dict) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
