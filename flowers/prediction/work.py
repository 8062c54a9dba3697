"""The work folder: one list of files, cut into shards; one part file a shard.

1. A job's folder, ``OUTPUT.parts/KEY``, is named by all that decides its rows but for the files' bytes: the model, the
   flags, the names of the files. It appears whole, by one rename; the first rename wins, later ones were equal.
   Samples of the bytes are compared by whoever opens it; a file that could not be read then or now is like any other.
2. Process i of n does the shards i, i + n, ... of its array task, then, from the end, whatever has no part yet.
3. A part is whole or not there, under one name, with the same bytes whoever writes it: doing a shard twice is harmless.
4. Whoever sees all parts joins them, beside the output and by rename; then the folder goes, by one rename.
5. A restart does what is missing. Nobody waits for anybody.
6. All who work on a job share a lock (``KEY.lock``); a job of other settings cannot replace it while they live.
7. The first process chooses the engine (``engine.json``); each part names its engine, and the join compares them.
8. Whatever is read here is checked: ``job.json`` and ``engine.json`` by a CRC, the list and the parts shard by shard.
   A damaged list is made again, a damaged part is done again.
9. No file names a path outside the folder; removing the folder removes all that its job has left.
10. A start that was killed while it listed leaves ``new-*``, unlocked: the next one to finish removes it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flowers import console
from flowers.data.archives import Entry
from flowers.data.paths import readable
from flowers.errors import OutputError
from flowers.files import remove, sync_file
from flowers.parsing import read_json
from flowers.prediction import parts
from flowers.prediction.file_list import FileList
from flowers.prediction.inputs import look_at
from flowers.retries import retries

LIST_ONLY = "--list-only"
"""``listed_by`` of a list that was made ahead of the work."""

OF_FILES = {"files", "list", "shard_size", "contents"}
"""Settings that are known only when the files are; contents: of an earlier version."""
_NAMES = {"files", "list"}
_SAMPLED = 32  # files, spread over the list
DAMAGE = (ValueError, KeyError, TypeError, AttributeError)


class Work:
    """One job's folder.

    Attributes:
        settings: all that decides its rows, as plain values.
        contents: what ``sample_contents`` found when the list was made; None in work that an earlier version began.
        listed_by: the Slurm array or step whose process made the list, ``LIST_ONLY``, or None.
        left_out: how many files were found and not listed, by kind.

    Raises:
        FileNotFoundError: the folder or a file of it is gone.
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.key, self.parts = folder, folder.name, folder / "parts"
        job = _read_sealed(folder / "job.json")
        self.settings: dict = job["settings"]
        self.contents: list[str | None] | None = job.get("contents")
        self.listed_by: str | None = job["listed_by"]
        self.left_out: dict[str, int] = job.get("left_out", {})
        if key_of(self.settings) != self.key:
            raise ValueError("job.json is another job's")
        self.files = FileList(folder)
        if self.files.num_shards != -(-self.num_files // self.settings["shard_size"]):
            raise ValueError("the list is another job's")

    @property
    def num_files(self) -> int:
        """Files in all."""
        return self.settings["files"]

    def size(self, index: int) -> int:
        """Files of one shard."""
        start = index * self.settings["shard_size"]
        return min(self.settings["shard_size"], self.num_files - start)

    def shard(self, index: int) -> list[Entry]:
        """The files of one shard.

        Raises:
            FileNotFoundError: the folder is gone: another process has finished the whole job.
            OutputError: the list is damaged; it is removed, so that the next start makes it again.
        """
        try:
            return self.files.shard(index)
        except ValueError:
            path = self.folder / "list.bin"
            with contextlib.suppress(OSError):
                path.unlink()
            raise OutputError(
                f"{readable(path)} was damaged, and is removed: start the same command again to list the files anew"
            ) from None

    def missing(self, order: Sequence[int]) -> Iterator[tuple[int, list[Entry]]]:
        """The shards without a part, in this order, each looked up when it is its turn."""
        for index in order:
            if not (self.parts / parts.part_name(index)).is_file():
                yield index, self.shard(index)

    def errors(self, shards: Iterable[int]) -> int:
        """Files that failed in shards that have their part."""
        return sum(parts.read_facts(self.parts, index)["counts"].get("error", 0) for index in shards)

    def engine(self) -> dict | None:
        """Engine and precision of the first process, which all others use, too."""
        path = self.folder / "engine.json"
        state = "damaged"
        try:
            return retries.read(lambda: _read_sealed(path))
        except FileNotFoundError:
            state = "gone"
        except (OSError, *DAMAGE):
            pass
        for index in sorted(parts.finished(self.parts)) if self.parts.exists() else ():
            with contextlib.suppress(OSError, OutputError):
                if engine := parts.read_facts(self.parts, index).get("engine"):
                    console.warn(f"{readable(path)} was {state}, and is made anew from the finished shards")
                    temporary = path.with_name(f"engine-{uuid.uuid4().hex}")
                    write_sealed(temporary, engine)
                    parts.put(temporary, path)
                    return engine
        if state == "gone":  # as at the start of every job
            return None
        console.warn(f"{readable(path)} was damaged, and is made anew")
        remove(path)
        return None

    def peek_engine(self) -> dict | None:
        """The engine of the first process, if it is known; nothing is mended."""
        with contextlib.suppress(OSError, *DAMAGE):
            return _read_sealed(self.folder / "engine.json")
        return None

    def settle_engine(self, chosen: dict) -> dict:
        """Propose what to run the network with; returns what was proposed first.

        Raises:
            FileNotFoundError: the folder is gone: another process has finished the whole job.
            FlowersError: the disk is full.
        """
        if settled := self.engine():
            return settled
        proposal = self.folder / f"engine-{uuid.uuid4().hex}"
        with parts.explained(proposal):
            try:
                write_sealed(proposal, chosen)
                with contextlib.suppress(OSError):  # it is there already, or this file system has no hard links
                    os.link(proposal, self.folder / "engine.json")
                if self.engine() is None:
                    os.rename(proposal, self.folder / "engine.json")
            finally:
                unlink(proposal)
        return self.engine() or chosen

    def part_facts(self) -> Iterator[dict]:
        """The facts of all parts, in order, which were all made by the same job with the same engine.

        Raises:
            FileNotFoundError: a part is gone: another process has finished the whole job.
            OutputError: they were not; it says which two differ.
        """
        wanted = {"job": self.key, "engine": self.engine()}
        for index in range(self.files.num_shards):
            facts = parts.read_facts(self.parts, index)
            for name, value in wanted.items():
                if name in facts and facts[name] != value:
                    raise OutputError(
                        f"{readable(self.parts / parts.part_name(index))} was made with {name} {facts[name]}, the job "
                        f"has {value}: remove this file, then start the same command again to do its shard anew"
                    )
            yield facts

    def check_sees(self, root: bytes) -> None:
        """See that this process finds the same files as the one that made the list.

        Args:
            root: folder that paths are relative to.

        Raises:
            OutputError: the contents differ.
        """
        seen = sample_contents(self.files, self.num_files, self.settings["shard_size"], root)
        if not is_same(self.settings, self.contents, self.settings, seen):
            raise OutputError(refusal(self.folder, self.settings, self.settings))

    def remove(self) -> None:
        """Take the folder away, at once for all who look."""
        remove_folder(self.folder)


def lock_of(folder: Path) -> Path:
    """The lock that all processes at work on a job share."""
    return folder.with_name(f"{folder.name}.lock")


def remove_folder(folder: Path) -> None:
    gone = folder.with_name(f"gone-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
    for left in (folder, gone):
        if left.exists():
            console.warn(f"{readable(left)} is of no more use but cannot be removed")


def unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def sample_contents(files: FileList, count: int, shard_size: int, root: bytes) -> list[str | None]:
    """SHA-256 of the size and first bytes of some of the listed files; None for one that cannot be read."""
    found = []
    for number in range(0, count, -(-count // _SAMPLED)):
        shard, slot = divmod(number, shard_size)
        seen = look_at(root, files.shard(shard)[slot])
        found.append(hashlib.sha256(seen).hexdigest() if seen else None)
    return found


def is_same(then: dict, contents_then: list[str | None] | None, now: dict, contents_now: list[str | None]) -> bool:
    """Tell if a job is one that there was before: equal settings, and no sample of the files' bytes speaks against it.

    A file that could be read only once of the two times says nothing.
    """
    if contents_then is None:  # of an earlier version: one digest over all samples, among the settings
        combined = {"contents": combined_digest(contents_now)} if "contents" in then else {}
        return then == {**now, **combined}
    pairs = zip(contents_then, contents_now, strict=False)
    return then == now and all(before in (None, after) or after is None for before, after in pairs)


def combined_digest(contents: list[str | None]) -> str:
    """All samples as the one digest by which earlier versions knew them."""
    digests = [hashlib.sha256().digest() if sample is None else bytes.fromhex(sample) for sample in contents]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def refusal(place: Path, then: dict | None, now: dict) -> str:
    """Why an output or a work folder is not this job's, and what to do; equal settings mean that the bytes differ."""
    if then is None:
        return (
            f"{readable(place)} was there before, and is not known to be this job's; "
            "choose another --output, or pass --overwrite to replace it"
        )
    known_now = OF_FILES & now.keys()  # nothing is said of what is not known yet
    names = [name for name in {**now, **then} if name not in OF_FILES - known_now and then.get(name) != now.get(name)]
    if set(names) >= _NAMES:
        names.remove("list")
    if _NAMES & set(names):
        names = [name for name in names if name != "shard_size"]  # it follows from the number of files
    said = [_changed(name, then.get(name), now.get(name)) for name in names] or [
        "the contents of the files have changed"
    ]
    advice = "choose another --output, or pass --overwrite to replace it"
    if set(names) <= _NAMES:
        advice = f"pass --update to classify only what is new or changed, {advice}"
    return f"{readable(place)} was made otherwise ({'; '.join(said)}); {advice}"


def _changed(name: str, then: object, now: object) -> str:
    """One setting that differs, in words; a digest of the files' names tells nobody anything."""
    if name == "list":
        return "the files' names have changed"
    if then is False:  # embeddings that were written once; see ``table.finished_facts``
        return f"{now or name}: gone or damaged since"
    label = "number of files" if name == "files" else name
    return f"{label}: {_short(then)} then, {_short(now)} now"


def _short(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)[:12] if isinstance(value, str) else str(value)


def key_of(settings: dict) -> str:
    """Name of a job's folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_sealed(path: Path, value: dict) -> None:
    """Write JSON with its CRC."""
    text = json.dumps(value, sort_keys=True)
    path.write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "value": value}, sort_keys=True))
    sync_file(path)


def _read_sealed(path: Path) -> dict:
    """Read what ``write_sealed`` wrote.

    Raises:
        FileNotFoundError: it is gone.
        ValueError: it is damaged.
    """
    sealed = read_json(path)
    value = sealed["value"] if isinstance(sealed, dict) and "value" in sealed else None
    if not isinstance(value, dict) or zlib.crc32(json.dumps(value, sort_keys=True).encode()) != sealed.get("crc32"):
        raise ValueError(f"{path.name} is damaged")
    return value
