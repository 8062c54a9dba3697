"""Which work a job does: what is there already, what it has to begin, what it must not touch."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from flowers import console
from flowers.data.paths import readable
from flowers.errors import DataError, OutputError
from flowers.files import explain_os_error, sync_file, sync_folder
from flowers.prediction.claims import Claims
from flowers.prediction.file_list import Entry, FileList, ListInfo, write_list
from flowers.prediction.work import POLL_S, Work, remove_unfinished
from flowers.prediction.workers import BEAT_S, STALE_S, Worker

FORMAT_VERSION = 2
_NAMES = {"list": "the files' names", "files": "number of files", "contents": "what is in the files"}
_LOOKED_AT = 32  # files, all over the list


def open_work(
    output: Path,
    settings: dict,
    entries: Callable[[], Iterable[Entry]],
    worker: Worker,
    *,
    shard_size: Callable[[int], int],
    finished: Callable[[], dict | None],
    place: str = "",
    look: Callable[[Entry], bytes] = lambda entry: b"",
    overwrite: bool = False,
    check_free: Callable[[], None] = lambda: None,
    array: str | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Work | dict:
    """Find or begin the work of a job.

    The files are listed by one process, while others that start meanwhile wait for its list. A list that was there
    before, or that is of another place, is compared with the files as they are now, unless the same Slurm array made
    it. By their names, and a few by what is in them: photos of two cameras are often called the same.

    Args:
        output: the final file.
        settings: what decides the rows, but for the files.
        entries: lists the files.
        worker: this process.
        shard_size: files a shard, from the number of files.
        finished: facts about the output, if it is there and whole.
        place: where the files are; the same ones may be elsewhere the next time.
        look: gives what a file is known by, whatever it is called.
        overwrite: replace what another job left here.
        check_free: raises when something is in the way of what comes with the output; called unless ``overwrite``.
        array: Slurm's name for the array that this process belongs to.
        check_stop: raises when the process was asked to stop.

    Returns:
        The work to do, or the facts about an output that is already what this job would make.

    Raises:
        OutputError: another job's output or work is there, or another job is at it right now.
        DataError: no files.
    """
    parent = worker.folder
    worker.sweep()
    settings = {"format": FORMAT_VERSION, **settings}
    before = set(_jobs(parent))
    listing = Claims(parent / "claims", worker)
    try:
        (parent / "claims").mkdir(exist_ok=True)
        while True:
            facts = finished()
            if array and facts and facts["listed_by"] == array and _begins_with(facts["settings"], settings):
                return _cleared(parent, facts)
            for key in _jobs(parent):
                job = read_job(parent / key)
                fresh = job and (
                    (key not in before and job.get("place") == place) or (array and job["listed_by"] == array)
                )
                if fresh and _begins_with(job["settings"], settings):
                    with contextlib.suppress(FileNotFoundError):  # an equal job finished just now
                        return Work(parent / key)
            if listing.take("listing"):
                break
            check_stop()
            time.sleep(POLL_S)
    except OSError as error:
        raise explain_os_error(error, parent) from error
    try:
        return _list_files(
            output, settings, entries, worker, shard_size, finished, place, look, overwrite, check_free, array
        )
    finally:
        listing.give_back("listing")


def find_work(worker: Worker, settings: dict, finished: Callable[[], dict | None]) -> Work | dict:
    """Find the work that an array has done, without listing any files.

    Returns:
        The work, or the facts about an output that is made of it already.

    Raises:
        OutputError: there is none for these settings, or more than one.
    """
    settings = {"format": FORMAT_VERSION, **settings}
    jobs = {key: read_job(worker.folder / key) for key in _jobs(worker.folder)}
    fitting = [key for key, job in jobs.items() if job and _begins_with(job["settings"], settings)]
    if len(fitting) == 1:
        with contextlib.suppress(FileNotFoundError):  # an equal job finished just now
            return Work(worker.folder / fitting[0])
    facts = finished()
    if len(fitting) < 2 and facts and _begins_with(facts["settings"], settings):
        return facts
    if len(fitting) > 1:
        raise OutputError(
            f"{readable(worker.folder)} holds work over {len(fitting)} different lists of files; "
            "start without --merge to go on with one of them"
        )
    if jobs:
        then = next(iter(jobs.values()))
        raise OutputError(_refusal(worker.folder, then and then["settings"], settings))
    raise OutputError(f"{readable(worker.folder)}: nothing to join; start without --merge, or with --shard, first")


def _list_files(
    output: Path,
    settings: dict,
    entries: Callable[[], Iterable[Entry]],
    worker: Worker,
    shard_size: Callable[[int], int],
    finished: Callable[[], dict | None],
    place: str,
    look: Callable[[Entry], bytes],
    overwrite: bool,
    check_free: Callable[[], None],
    array: str | None,
) -> Work | dict:
    """Make the list in a folder of our own; give it the job's name once nothing speaks against it."""
    parent = worker.folder
    new = parent / f"new-{worker.token}"
    try:
        (new / "parts").mkdir(parents=True)
        (new / "claims").mkdir()
        info = write_list(entries(), new, shard_size)
        if not info.files:
            raise DataError("--input: no images there; expected files that end like images, or see --ext")
        if info.duplicates:
            console.warn(f"{info.duplicates} files are listed more than once, each is classified once")
        settings = {**settings, "files": info.files, "list": info.digest, "shard_size": info.shard_size}
        settings["contents"] = _contents(new, info, look)
        key = _key(settings)
        job = {"settings": settings, "listed_by": array, "place": place}
        (new / "job.json").write_text(json.dumps(job, indent=1))
        sync_file(new / "job.json")
        sync_folder(new)  # else a machine that goes down soon may leave the job's name on empty files
        for other in set(_jobs(parent)) - {key}:
            _make_way(parent / other, settings, worker, overwrite)
        if not (parent / key).exists():
            facts = finished()
            if facts and facts["settings"] == settings:
                return facts
            if not overwrite:
                if output.exists():
                    raise OutputError(_refusal(output, facts and facts["settings"], settings))
                check_free()
            with contextlib.suppress(FileExistsError):
                _rename_new(new, parent / key)
        try:
            return Work(parent / key)
        except FileNotFoundError:  # an equal job finished just now
            facts = finished()
            if facts and facts["settings"] == settings:
                return facts
            raise
    except OSError as error:
        raise explain_os_error(error, parent) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _contents(folder: Path, info: ListInfo, look: Callable[[Entry], bytes]) -> str:
    """What some of the listed files are known by."""
    files, digest = FileList(folder), hashlib.sha256()
    for number in range(0, info.files, -(-info.files // _LOOKED_AT)):
        shard, slot = divmod(number, info.shard_size)
        digest.update(hashlib.sha256(look(files.shard(shard)[slot])).digest())
    return digest.hexdigest()


def _rename_new(folder: Path, final: Path) -> None:
    try:
        os.rename(folder, final)
    except OSError:
        if not final.exists():
            raise
        raise FileExistsError from None  # another process was first; its list is the same, or it had another name


def _make_way(folder: Path, settings: dict, worker: Worker, overwrite: bool) -> None:
    """Remove another job's work, if that is wanted or nothing is done, and nobody is at it."""
    if not overwrite and _has_results(folder):
        other = read_job(folder)
        raise OutputError(_refusal(folder, other and other["settings"], settings))
    until_s = time.monotonic() + STALE_S + BEAT_S
    while living := [info for info in worker.others() if info["job"] == folder.name and worker.is_alive(info["token"])]:
        info = living[0]
        if worker.is_here(info["token"]) or time.monotonic() > until_s:
            raise OutputError(
                f"{readable(folder)}: process {info['pid']} on {info['machine']} is at work on this output, with other "
                "settings; stop it first, or choose another --output"
            )
        time.sleep(POLL_S)
    gone = folder.with_name(f"gone-{uuid.uuid4().hex}")
    os.rename(folder, gone)
    remove_unfinished(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _has_results(folder: Path) -> bool:
    """Whether more than the list of files would be lost: not where a wrong flag ended a job before its first photo."""
    with contextlib.suppress(OSError):
        return any(os.scandir(folder / "parts"))
    return True


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


def _cleared(parent: Path, facts: dict) -> dict:
    """Facts about a finished output, its work folder taken away if whoever finished it did not come to that."""
    shutil.rmtree(parent / _key(facts["settings"]), ignore_errors=True)
    return facts


def _begins_with(whole: dict, settings: dict) -> bool:
    """Whether full settings agree with those that are known before the files are."""
    return all(whole.get(name) == value for name, value in settings.items())


def _jobs(parent: Path) -> list[str]:
    """Names of the jobs' folders."""
    return sorted(entry.name for entry in os.scandir(parent) if len(entry.name) == 12 and entry.is_dir())


def read_job(folder: Path) -> dict | None:
    """A job folder's settings, listed_by and place; None if it was just taken away, or is nothing of ours."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / "job.json").read_text())
    return None
