"""The work folder: one list of files, cut into shards; one part file a shard.

1. A job's folder, ``OUTPUT.parts/KEY``, is named by all that decides its rows: the model, the flags, the names of the
   files and samples of their bytes. It appears whole, by one rename; the first rename wins, later ones were equal.
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
import errno
import filecmp
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flowers import console
from flowers.data.paths import readable
from flowers.errors import DataError, InUseError, OutputError
from flowers.files import explain_os_error, sync_file, sync_folder
from flowers.locks import refuse_others, share, take_turns
from flowers.prediction import parts
from flowers.prediction.file_list import Entry, FileList, write_list
from flowers.prediction.inputs import look_at

LIST_ONLY = "--list-only"
"""``listed_by`` of a list that was made ahead of the work."""

_FORMAT_VERSION = 2
_NAMES = {"list": "the files' names", "files": "number of files", "contents": "contents of the files"}
_SAMPLED = 32  # files, spread over the list
_MAX_SHARD_BATCHES = 64
_SHARDS_WANTED = 64
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError)


def default_shard_size(files: int, batch_size: int) -> int:
    """Files a shard: whole batches, about 64 shards, at most 64 batches each; the number of processes plays no part."""
    batches = -(-files // (batch_size * _SHARDS_WANTED))
    return batch_size * min(max(batches, 1), _MAX_SHARD_BATCHES)


class Work:
    """One job's folder.

    Attributes:
        settings: all that decides its rows, as plain values.
        listed_by: the Slurm array or step whose process made the list, ``LIST_ONLY``, or None.

    Raises:
        FileNotFoundError: the folder or a file of it is gone.
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.key, self.parts = folder, folder.name, folder / "parts"
        job = _read_sealed(folder / "job.json")
        self.settings: dict = job["settings"]
        self.listed_by: str | None = job["listed_by"]
        if _key(self.settings) != self.key:
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

    def engine(self) -> dict | None:
        """Engine and precision of the first process, which all others use, too."""
        path = self.folder / "engine.json"
        try:
            return _read_sealed(path)
        except FileNotFoundError:
            return None
        except (OSError, *_DAMAGE):
            pass
        for index in sorted(parts.finished(self.parts)):
            with contextlib.suppress(OSError, OutputError):
                if engine := parts.read_facts(self.parts, index).get("engine"):
                    console.warn(f"{readable(path)} was damaged, and is made anew from the finished shards")
                    self._replace("engine.json", engine)
                    return engine
        console.warn(f"{readable(path)} was damaged, and is made anew")
        shutil.rmtree(path, ignore_errors=True)  # a folder in its place
        _unlink(path)
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
        try:
            _write_sealed(proposal, chosen)
            try:
                os.link(proposal, self.folder / "engine.json")
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # no hard links on this file system
                    raise
                if self.engine() is None:
                    os.rename(proposal, self.folder / "engine.json")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain_os_error(error, proposal) from error
        finally:
            with contextlib.suppress(OSError):
                proposal.unlink()
        return self.engine() or chosen

    def check_engines(self) -> None:
        """See that all parts were made by the same job with the same engine.

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

    def check_sees(self, root: bytes) -> None:
        """See that this process finds the same files as the one that made the list.

        Args:
            root: folder that paths are relative to.

        Raises:
            OutputError: the contents differ.
        """
        seen = _contents(self, root)
        if seen != self.settings["contents"]:
            raise OutputError(_refusal(self.folder, self.settings, {"contents": seen}))

    def remove(self) -> None:
        """Take the folder away, at once for all who look."""
        _remove(self.folder)
        remove_left_over(self.folder.parent)

    def _replace(self, name: str, value: dict) -> None:
        temporary = self.folder / f"{name}-{uuid.uuid4().hex}"
        _write_sealed(temporary, value)
        parts.put(temporary, self.folder / name)


class WorkFolder:
    """``OUTPUT.parts``: where the work on an output is found or begun.

    Args:
        output: the final file; the folder lies beside it, so that renames work.
        settings: what decides the rows, but for the files.
        finished: facts about the output, if it is there and whole.
    """

    def __init__(self, output: Path, settings: dict, finished: Callable[[], dict | None]):
        self.path = output.with_name(f"{output.name}.parts")
        self._output, self._finished = output, finished
        self._settings = {"format": _FORMAT_VERSION, **settings}

    def find_listed(self, listed_by: str, root: bytes) -> Work | dict | None:
        """The work whose list a process of the same Slurm array or step made, or ``--list-only``.

        Raises:
            OutputError: it lists other files than this process sees.
        """
        facts = self._finished()
        if facts and facts["listed_by"] == listed_by and _begins_with(facts["settings"], self._settings):
            return facts
        for work in filter(None, map(_open, _jobs(self.path))):
            if work.listed_by in (listed_by, LIST_ONLY) and _begins_with(work.settings, self._settings):
                work.check_sees(root)
                return work
        return None

    def find_only(self) -> Work | dict:
        """Find the work that an array has done, without listing any files.

        Returns:
            The work, or the facts about an output that is made of it already.

        Raises:
            OutputError: there is none for these settings, or more than one.
        """
        found = [(folder, _open(folder)) for folder in _jobs(self.path)]
        fitting = [work for _, work in found if work and _begins_with(work.settings, self._settings)]
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1:
            raise OutputError(
                f"{readable(self.path)} holds work over {len(fitting)} different lists of files; "
                "start without --merge to resume one of them"
            )
        facts = self._finished()
        if facts and _begins_with(facts["settings"], self._settings):
            return facts
        for folder, work in found:
            if work is None:
                raise OutputError(f"{readable(folder)} is damaged; start without --merge to list the files anew")
            raise OutputError(_refusal(self.path, work.settings, self._settings))
        raise OutputError(f"{readable(self.path)}: nothing to join; start without --merge, or with --shard, first")

    def open(self, key: str) -> Work:
        """One job's folder.

        Raises:
            FileNotFoundError: it is gone: another process has finished the whole job.
            OutputError: it is damaged.
        """
        try:
            return Work(self.path / key)
        except _DAMAGE:
            raise OutputError(f"{readable(self.path / key)} is damaged: start the same command again") from None

    def begin(
        self,
        entries: Iterable[Entry],
        root: bytes,
        check_free: Callable[[], None],
        *,
        shard_size: int | None = None,
        overwrite: bool = False,
        listed_by: str | None = None,
    ) -> Work | dict:
        """List the files, and find or begin the work over them.

        Args:
            entries: the files.
            root: folder that their paths are relative to.
            check_free: raises when something is in the way of what comes with the output; called unless ``overwrite``.
            shard_size: files a shard; None: the usual.
            overwrite: replace what another job left here.
            listed_by: see ``Work``.

        Returns:
            The work to do, or the facts about an output that is already what this job would make.

        Raises:
            OutputError: another job's output or work is there.
            InUseError: a job of other settings is at work on this output.
            DataError: no files.
        """
        new = self.path / f"new-{uuid.uuid4().hex}"
        try:
            with share(new.with_suffix(".lock")):
                try:
                    work = self._list(new, entries, root, shard_size, listed_by)
                    with take_turns(self.path / "turn.lock"):
                        return self._settle(work, check_free, overwrite)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
                    _unlink(new.with_suffix(".lock"))
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def _list(
        self, new: Path, entries: Iterable[Entry], root: bytes, shard_size: int | None, listed_by: str | None
    ) -> Path:
        """Make the list and settings in a folder of this process; returns the folder under the job's name."""
        folder = new / "unnamed"
        (folder / "parts").mkdir(parents=True)
        batch_size = self._settings.get("batch_size", 1)
        info = write_list(entries, folder, lambda files: shard_size or default_shard_size(files, batch_size))
        if not info.files:
            raise DataError("--input: no images there; expected files that end like images, or see --ext")
        if info.duplicates:
            console.warn(f"{info.duplicates} files are listed more than once, each is classified once")
        settings = {**self._settings, "files": info.files, "list": info.digest, "shard_size": info.shard_size}
        settings["contents"] = _sampled(FileList(folder), info.files, info.shard_size, root)
        _write_sealed(folder / "job.json", {"settings": settings, "listed_by": listed_by})
        sync_folder(folder)  # else a machine that goes down soon may leave the job's name on empty files
        named = new / _key(settings)
        os.rename(folder, named)
        return named

    def _settle(self, listed: Path, check_free: Callable[[], None], overwrite: bool) -> Work | dict:
        """Give a new list the job's name once nothing speaks against it."""
        settings = Work(listed).settings
        final = self.path / listed.name
        for other in set(_jobs(self.path)) - {final}:
            _make_way(other, settings, overwrite)
        if final.exists():
            _mend(final, listed)
            return Work(final)
        facts = self._finished()
        if facts and facts["settings"] == settings:
            return facts
        if not overwrite:
            if self._output.exists():
                raise OutputError(_refusal(self._output, facts and facts["settings"], settings))
            check_free()
        os.rename(listed, final)
        sync_folder(self.path)
        return Work(final)


def remove_left_over(parent: Path) -> None:
    """Remove what starts that were killed while they listed have left, and the folder if it holds nothing more."""
    if not parent.is_dir():
        return
    with contextlib.suppress(OSError), take_turns(parent / "turn.lock"):
        for entry in list(os.scandir(parent)):
            path = Path(entry.path)
            if entry.name.startswith(("new-", "gone-")) and path.suffix != ".lock":
                with contextlib.suppress(InUseError), refuse_others(path.with_suffix(".lock"), path, ""):
                    shutil.rmtree(path, ignore_errors=True)
                    _unlink(path.with_suffix(".lock"))
        jobs = {folder.name for folder in _jobs(parent)}
        for entry in list(os.scandir(parent)):
            stem = entry.name.removesuffix(".lock")
            if entry.name.endswith(".lock") and stem not in jobs and not (parent / stem).exists() and stem != "turn":
                with contextlib.suppress(InUseError), refuse_others(Path(entry.path), parent, ""):
                    _unlink(Path(entry.path))
        if [entry.name for entry in os.scandir(parent)] == ["turn.lock"]:
            _unlink(parent / "turn.lock")
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_way(folder: Path, settings: dict, overwrite: bool) -> None:
    """Remove another job's work, if that is wanted or nothing is done, and nobody is at it."""
    if not overwrite and _has_results(folder):
        work = _open(folder)
        raise OutputError(_refusal(folder, work and work.settings, settings))
    lock = lock_of(folder)
    advice = "a job with other settings is at work on this output; stop it first, or choose another --output"
    with refuse_others(lock, folder, advice):
        _remove(folder)
        _unlink(lock)


def lock_of(folder: Path) -> Path:
    """The lock that all processes at work on a job share."""
    return folder.with_name(f"{folder.name}.lock")


def _mend(folder: Path, listed: Path) -> None:
    """Replace files of a job that are damaged or gone by those of an equal list."""
    (folder / "parts").mkdir(exist_ok=True)
    for name in ("list.bin", "offsets.bin"):
        try:
            same = filecmp.cmp(folder / name, listed / name, shallow=False)
        except OSError:
            same = False
        if not same:
            console.warn(f"{readable(folder / name)} was damaged, and is made anew")
            parts.put(listed / name, folder / name)
    if _open(folder) is None:
        console.warn(f"{readable(folder / 'job.json')} was damaged, and is made anew")
        parts.put(listed / "job.json", folder / "job.json")


def _open(folder: Path) -> Work | None:
    """A job's folder; None if it is damaged, was just taken away, or is nothing of ours."""
    try:
        return Work(folder)
    except (OSError, *_DAMAGE):
        return None


def _jobs(parent: Path) -> list[Path]:
    """The jobs' folders."""
    with contextlib.suppress(FileNotFoundError):
        found = [entry for entry in os.scandir(parent) if len(entry.name) == 12 and entry.is_dir(follow_symlinks=False)]
        return sorted(Path(entry.path) for entry in found)
    return []


def _remove(folder: Path) -> None:
    gone = folder.with_name(f"gone-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
    for left in (folder, gone):
        if left.exists():
            console.warn(f"{readable(left)} is of no more use but cannot be removed")


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _has_results(folder: Path) -> bool:
    """True if more than the list of files would be lost: not where a wrong flag ended a job before its first photo."""
    with contextlib.suppress(OSError):
        return any(os.scandir(folder / "parts"))
    return True


def _contents(work: Work, root: bytes) -> str:
    return _sampled(work.files, work.num_files, work.settings["shard_size"], root)


def _sampled(files: FileList, count: int, shard_size: int, root: bytes) -> str:
    """SHA-256 of the size and first bytes of some of the listed files."""
    digest = hashlib.sha256()
    for number in range(0, count, -(-count // _SAMPLED)):
        shard, slot = divmod(number, shard_size)
        digest.update(hashlib.sha256(look_at(root, files.shard(shard)[slot])).digest())
    return digest.hexdigest()


def _refusal(place: Path, then: dict | None, now: dict) -> str:
    """Why an output or a work folder is not this job's, and what to do."""
    if then is None:
        what = "was there before, and is not known to be this job's"
    else:
        names = [name for name in now if then.get(name) != now[name]]
        if "files" in names and "list" in names:
            names.remove("list")
        said = [f"{_NAMES.get(name, name)}: {_short(then.get(name))} then, {_short(now[name])} now" for name in names]
        what = f"was made otherwise ({'; '.join(said)})"
    return f"{readable(place)} {what}; choose another --output, or pass --overwrite to replace it"


def _short(value: object) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)


def _key(settings: dict) -> str:
    """Name of a job's folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _begins_with(whole: dict, settings: dict) -> bool:
    """True if full settings agree with those that are known before the files are."""
    return all(whole.get(name) == value for name, value in settings.items())


def _write_sealed(path: Path, value: dict) -> None:
    """Write JSON with its CRC."""
    text = json.dumps(value, sort_keys=True)
    path.write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "value": value}, sort_keys=True))
    sync_file(path)


def _read_sealed(path: Path) -> dict:
    """Read what ``_write_sealed`` wrote.

    Raises:
        FileNotFoundError: it is gone.
        ValueError: it is damaged.
    """
    sealed = json.loads(path.read_bytes())
    value = sealed["value"] if isinstance(sealed, dict) and "value" in sealed else None
    if not isinstance(value, dict) or zlib.crc32(json.dumps(value, sort_keys=True).encode()) != sealed.get("crc32"):
        raise ValueError(f"{path.name} is damaged")
    return value
