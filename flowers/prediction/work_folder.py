"""``OUTPUT.parts``, where the work on an output is found or begun, replaced and cleared away; see ``work.py``."""

import contextlib
import filecmp
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from flowers import console
from flowers.data.archives import Entry
from flowers.data.paths import readable
from flowers.data.workbook import check_room
from flowers.errors import DataError, FlowersError, OutputError
from flowers.files import explain_os_error, sync_folder
from flowers.locks import refuse_others, share, take_turns
from flowers.prediction import parts
from flowers.prediction.file_list import FileList, write_list
from flowers.prediction.work import (
    DAMAGE,
    LIST_ONLY,
    OF_FILES,
    Work,
    combined_digest,
    is_same,
    key_of,
    lock_of,
    refusal,
    remove_folder,
    sample_contents,
    unlink,
    write_sealed,
)  # fmt: skip

_FORMAT_VERSION = 2
_MAX_SHARD_BATCHES = 64
_SHARDS_WANTED = 64


def default_shard_size(files: int, batch_size: int) -> int:
    """Files a shard: whole batches, about 64 shards, at most 64 batches each; the number of processes plays no part."""
    batches = -(-files // (batch_size * _SHARDS_WANTED))
    return batch_size * min(max(batches, 1), _MAX_SHARD_BATCHES)


def work_folder_of(output: Path) -> Path:
    """The folder beside an output in which the work on it lies."""
    return output.with_name(f"{output.name}.parts")


class Listing(NamedTuple):
    """The files of a job that is to be found or begun.

    Attributes:
        entries: the files; they are taken once.
        root: folder that their paths are relative to.
        shard_size: files a shard; None: the usual.
        listed_by: see ``Work``.
        left_out: see ``Work``; looked at when ``entries`` has ended.
    """

    entries: Iterable[Entry]
    root: bytes
    shard_size: int | None = None
    listed_by: str | None = None
    left_out: Mapping[str, int] = MappingProxyType({})


class WorkFolder:
    """``OUTPUT.parts``: where the work on an output is found or begun.

    Args:
        output: the final file; the folder lies beside it, so that renames work.
        settings: what decides the rows, but for the files.
        finished: facts about the output, if it is there and whole.
    """

    def __init__(self, output: Path, settings: dict, finished: Callable[[], dict | None]):
        self.path = work_folder_of(output)
        self._output, self._finished = output, finished
        self._settings = {"format": _FORMAT_VERSION, **settings}

    def find_listed(self, listed_by: str, root: bytes) -> Work | dict | None:
        """The work whose list a process of the same Slurm array or step made, or ``--list-only``.

        Raises:
            OutputError: it lists other files than this process sees.
        """
        facts = self._fitting_facts()
        if facts and facts.get("listed_by") == listed_by:
            return facts
        for work in self._fitting_work():
            if work.listed_by in (listed_by, LIST_ONLY):
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
        fitting = self._fitting_work()
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1:
            raise OutputError(
                f"{readable(self.path)} holds work over {len(fitting)} different lists of files; "
                "start without --merge to resume one of them"
            )
        if facts := self._fitting_facts():
            return facts
        if jobs := job_folders(self.path):
            if (work := _open(jobs[0])) is None:
                raise OutputError(f"{readable(jobs[0])} is damaged; start without --merge to list the files anew")
            raise OutputError(refusal(self.path, work.settings, self._settings))
        raise OutputError(f"{readable(self.path)}: nothing to join; start without --merge, or with --shard, first")

    def find_complete(self) -> Work | None:
        """Work that has all its parts, but no output yet or a new output without the rest: it only has to be joined."""
        complete = (work for work in self._fitting_work() if len(parts.finished(work.parts)) == work.files.num_shards)
        return next(complete, None)

    def _fitting_work(self) -> list[Work]:
        """Intact work of these settings, whatever its files."""
        found = filter(None, map(_open, job_folders(self.path)))
        return [work for work in found if _begins_with(work.settings, self._settings)]

    def _fitting_facts(self) -> dict | None:
        """The facts about an output of these settings, whatever its files."""
        facts = self._finished()
        return facts if facts and _begins_with(facts["settings"], self._settings) else None

    def open(self, key: str) -> Work:
        """One job's folder.

        Raises:
            FileNotFoundError: it is gone: another process has finished the whole job.
            OutputError: it is damaged.
        """
        try:
            return Work(self.path / key)
        except DAMAGE:
            raise OutputError(f"{readable(self.path / key)} is damaged: start the same command again") from None

    def begin(
        self,
        listing: Listing,
        check_free: Callable[[], None],
        *,
        overwrite: bool = False,
        keep: Callable[[Work], bool] | None = None,
    ) -> Work | dict:
        """List the files, and find or begin the work over them.

        Args:
            listing: the files.
            check_free: raises when something is in the way of what comes with the output; called unless ``overwrite``.
            overwrite: replace what another job left here.
            keep: an update: writes what new work keeps of the finished output, True if that is all of it.

        Returns:
            The work to do, or the facts about an output that is already what this job would make.

        Raises:
            OutputError: another job's output or work is there.
            InUseError: a job of other settings is at work on this output.
            DataError: no files.
            UsageError: more than the output can hold.
        """
        if keep is None and not os.access(self.path.parent, os.W_OK) and (facts := self._finished()):
            return self._facts_if_same(facts, listing)
        new = self.path / f"new-{uuid.uuid4().hex}"
        try:
            with share(new.with_suffix(".lock")):
                try:
                    work = self._list(new, listing)
                    all_kept = None if keep is None else keep(Work(work))
                    with take_turns(self.path / "turn.lock"):
                        return self._settle(work, check_free, overwrite, all_kept)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
                    unlink(new.with_suffix(".lock"))
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def _facts_if_same(self, facts: dict, listing: Listing) -> dict:
        """The facts about a finished output in a place that cannot be written, if it is what this job would make."""
        with tempfile.TemporaryDirectory(prefix="flowers-") as folder:
            work = Work(self._list(Path(folder), listing))
            if not is_same(facts["settings"], facts.get("contents"), work.settings, work.contents):
                raise OutputError(refusal(self._output, facts["settings"], work.settings))
        return facts

    def _list(self, new: Path, listing: Listing) -> Path:
        """Make the list and settings in a folder of this process; returns the folder under the job's name."""
        folder = new / "unnamed"
        (folder / "parts").mkdir(parents=True)
        batch_size = self._settings.get("batch_size", 1)

        def shard_size(files: int) -> int:
            return listing.shard_size or default_shard_size(files, batch_size)

        info = write_list(listing.entries, folder, shard_size)
        if not info.files:
            raise DataError("--input: no images there; expected files that end like images, or see --ext")
        if info.duplicates:
            files_are = console.counted(info.duplicates, "file is", "files are")
            console.warn(f"{files_are} listed more than once, each is classified once")
        check_room(self._output, info.files, pictures="thumbnails" in self._settings)
        settings = {**self._settings, "files": info.files, "list": info.digest, "shard_size": info.shard_size}
        contents = sample_contents(FileList(folder), info.files, info.shard_size, listing.root)
        about = {"contents": contents, "listed_by": listing.listed_by, "left_out": dict(listing.left_out)}
        write_sealed(folder / "job.json", {"settings": settings, **about})
        sync_folder(folder)  # else a machine that goes down soon may leave the job's name on empty files
        named = new / key_of(settings)
        os.rename(folder, named)
        return named

    def _settle(
        self, listed: Path, check_free: Callable[[], None], overwrite: bool, all_kept: bool | None
    ) -> Work | dict:
        """Give a new list the job's name once nothing speaks against it; ``all_kept`` is None but for an update."""
        new = Work(listed)
        settings = new.settings
        final = self.path / listed.name
        earlier = self.path / key_of({**settings, "contents": combined_digest(new.contents)})
        if _open(earlier) is not None:  # as an earlier version began it
            final = earlier
        is_update = all_kept is not None
        for other in set(job_folders(self.path)) - {final}:
            _make_way(other, settings, overwrite or is_update)  # an update's source is the table, which is whole
        if final.exists():
            _mend(final, listed)
            work = Work(final)
            if is_update:
                remove_folder(final / "known")
                os.rename(listed / "known", final / "known")
            if is_update or is_same(work.settings, work.contents, settings, new.contents):
                return work
            _make_way(final, settings, overwrite)
        facts = self._finished()
        same = facts and is_same(facts["settings"], facts.get("contents"), settings, new.contents)
        if same and all_kept in (None, True):
            return facts
        if is_update and not (facts and _begins_with(facts["settings"], self._settings)):  # gone or changed meanwhile
            raise OutputError(refusal(self._output, facts and facts["settings"], self._settings))
        if not (overwrite or is_update):
            if self._output.exists():
                raise OutputError(refusal(self._output, facts and facts["settings"], settings))
            check_free()
        os.rename(listed, final)
        sync_folder(self.path)
        return Work(final)


def remove_left_over(parent: Path) -> None:
    """Remove what starts that were killed while they listed have left, and the folder if it holds nothing more."""
    if not parent.is_dir():
        return
    with contextlib.suppress(OSError), take_turns(parent / "turn.lock"):
        for path in list(parent.iterdir()):
            if path.name.startswith(("new-", "gone-")) and path.suffix != ".lock":
                with contextlib.suppress(FlowersError), refuse_others(path.with_suffix(".lock"), path, ""):
                    shutil.rmtree(path, ignore_errors=True)
                    unlink(path.with_suffix(".lock"))
        for lock in list(parent.glob("*.lock")):
            if not lock.with_suffix("").exists() and lock.name != "turn.lock":
                with contextlib.suppress(FlowersError), refuse_others(lock, parent, ""):
                    unlink(lock)
        if os.listdir(parent) == ["turn.lock"]:
            unlink(parent / "turn.lock")
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_way(folder: Path, settings: dict, overwrite: bool) -> None:
    """Remove another job's work, if that is wanted or nothing is done, and nobody is at it."""
    if not overwrite and _has_results(folder):
        work = _open(folder)
        raise OutputError(refusal(folder, work and work.settings, settings))
    lock = lock_of(folder)
    advice = "a job with other settings is at work on this output; stop it first, or choose another --output"
    with refuse_others(lock, folder, advice):
        remove_folder(folder)
        unlink(lock)


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
    except (OSError, *DAMAGE):
        return None


def job_folders(parent: Path) -> list[Path]:
    """The folders of all jobs at work on an output."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = [entry for entry in os.scandir(parent) if len(entry.name) == 12 and entry.is_dir(follow_symlinks=False)]
        return sorted(Path(entry.path) for entry in found)
    return []


def _has_results(folder: Path) -> bool:
    """True if more than the list of files would be lost: not where a wrong flag ended a job before its first photo."""
    with contextlib.suppress(OSError):
        return any(os.scandir(folder / "parts"))
    return True


def _begins_with(whole: dict, settings: dict) -> bool:
    """True if full settings agree with those that are known before the files are."""
    names = (whole.keys() | settings.keys()) - OF_FILES
    return all(whole.get(name) == settings.get(name) for name in names)
