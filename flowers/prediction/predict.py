"""The prediction job, from flags to the finished file."""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flowers import console
from flowers.cli import to_plain
from flowers.config.predict import PredictConfig
from flowers.data.archives import Entry
from flowers.data.choice import Choice
from flowers.data.formats import limits
from flowers.data.paths import encode_path, readable
from flowers.data.tables import read_rows
from flowers.distributed import from_main, take_place
from flowers.errors import EXIT_STRICT, DataError, OutputError, UsageError
from flowers.files import file_digest
from flowers.locks import share
from flowers.made import how_made
from flowers.prediction import parts
from flowers.prediction.embeddings import EmbeddingsFile
from flowers.prediction.finish import finish
from flowers.prediction.inputs import input_root, list_inputs
from flowers.prediction.job import Job, open_job
from flowers.prediction.kept import drop_stale, keep_rows, whole_or_known
from flowers.prediction.parts import DamagedError
from flowers.prediction.shard_loop import classify
from flowers.prediction.table import check_embeddings_free, check_free, join_parts, thumbnails_of, write_sidecar
from flowers.prediction.work import LIST_ONLY, Work, lock_of
from flowers.prediction.work_folder import Listing, WorkFolder, remove_left_over
from flowers.stopping import StopRequest

_LISTED_AT_A_TIME = 1000
_LISTING_S = 7 * 24 * 3600.0  # others wait while the main process lists the files; of a hundred million that takes long
_WAKE_S = 0.2
_FINISHING_S = 10.0  # between the last parts of an equal job and the sidecar that says that it is done


def predict(config: PredictConfig) -> int:
    """Classify every input file; returns the exit code.

    Raises:
        StoppedError: a signal came; what is done is kept.
        FlowersError: see its message; what is done is kept.
    """
    place = take_place(_LISTING_S)
    limits.allow_pixels(config.max_pixels)
    with StopRequest() as stop:
        job = open_job(config, place, stop)
        if config.watch_s is None:
            return _predict(job)
        if place.world_size > 1:
            raise UsageError("--watch runs on one process: start it without a launcher")
        return _watch(job)


def _watch(job: Job) -> int:
    """Update the table until a signal comes; between two rounds all is done, so that this is no interruption."""
    config, stop = job.config, job.stop
    input_root(config.input)
    console.say(
        f"watching {console.plain(' '.join(map(readable, config.input)))}, every {config.watch_s:g} s; a signal ends it"
    )
    while stop.reason() is None:
        until_s = time.monotonic() + config.watch_s
        if next(_entries(job, job.choice()), None) is not None:
            _predict(job)
        while stop.reason() is None and time.monotonic() < until_s:
            time.sleep(min(_WAKE_S, max(0.0, until_s - time.monotonic())))
    console.say(f"stopped watching; {console.plain(readable(config.output))} is up to date as of the last round")
    return 0


def _predict(job: Job) -> int:
    config = job.config
    folder = WorkFolder(config.output, job.settings(), job.finished)
    try:
        found = from_main(lambda: _find_work(job, folder))
        if found.get("then_again"):
            _do_and_join(job, folder, found["job"], files_may_differ=True)
            found = from_main(lambda: _find_work(job, folder))
        facts, key = found.get("facts"), found.get("job")
        if facts and config.watch_s is not None:
            return 0
        if facts:
            name = console.plain(readable(config.output))
            console.say(f"{name} is complete: nothing to do (to classify the same files again, remove it)")
        elif not config.list_only:
            facts = _do_and_join(job, folder, key)
    finally:
        remove_left_over(folder.path)
    if job.place.rank > 0 or config.list_only:
        return 0
    if facts is None:
        return EXIT_STRICT if config.strict and _errors_of_task(config, folder.path / key) else 0
    finish(config, functools.partial(read_rows, config.output), facts, job.stop.check)
    return EXIT_STRICT if config.strict and facts["counts"].get("error") else 0


def _find_work(job: Job, folder: WorkFolder) -> dict:
    """Find the work to do ("job"), or the facts about an output that is complete ("facts")."""
    config = job.config
    array = os.environ.get("SLURM_ARRAY_JOB_ID") if config.shard else None
    listed_by = LIST_ONLY if config.list_only else array or job.place.step
    if config.merge:
        work = folder.find_only()
    else:
        shared = job.place.world_size > 1 or config.shard
        earlier = job.finished() if config.updates else None
        if config.updates and earlier is None and (work := folder.find_complete()):
            return {"job": work.key, "then_again": True}
        work = folder.find_listed(listed_by, job.root) if shared and not config.list_only else None
        if work is None:
            choice = job.choice()
            work = folder.begin(
                Listing(_entries(job, choice), job.root, config.shard_size, listed_by, choice.left_out),
                lambda: check_free(config.output, config.embeddings),
                overwrite=config.overwrite,
                keep=earlier and functools.partial(keep_rows, job, earlier),
            )
            if earlier and isinstance(work, Work):
                drop_stale(work, job.root)
                work.settle_engine(earlier["engine"])
    if isinstance(work, dict):
        return {"facts": work}
    try:
        if (embeddings := job.embeddings(work)) is not None:
            _check_embeddings(config, embeddings)
            embeddings.open()
        done = len(parts.finished(work.parts))
    except FileNotFoundError:
        return {"facts": _facts_of_equal(job, folder)}
    files, shards = console.counted(work.num_files, "file"), console.counted(work.files.num_shards, "shard")
    console.say(f"{files} in {shards}" + (f", {done} done before" if done else ""))
    return {"job": work.key}


def _entries(job: Job, choice: Choice) -> Iterator[Entry]:
    """The input files; of a hundred million the list takes long, so that a request to stop is heard meanwhile."""
    is_watching = job.config.watch_s is not None
    listed = list_inputs(job.config.input, choice)
    try:
        for number, entry in enumerate(whole_or_known(job, listed) if is_watching else listed, start=1):
            if number % _LISTED_AT_A_TIME == 0:
                job.stop.check()
            yield entry
    except DataError:
        if not is_watching:  # an empty folder may fill
            raise


def _do_and_join(job: Job, folder: WorkFolder, key: str, *, files_may_differ: bool = False) -> dict | None:
    """Do this process's share; on the main one also join all parts. Returns the facts of a finished output."""
    config, is_main = job.config, job.place.rank == 0
    try:
        with share(lock_of(folder.path / key)):
            work = folder.open(key)
            if not (config.merge or files_may_differ):
                work.check_sees(job.root)
            while True:
                try:
                    if not config.merge:
                        classify(job, work)
                    return _join(job, work) if is_main else None
                except DamagedError as error:
                    if config.merge:
                        raise
                    console.warn(str(error))
    except FileNotFoundError:
        return _facts_of_equal(job, folder) if is_main else None


def _facts_of_equal(job: Job, folder: WorkFolder) -> dict:
    """Facts about the output when the work folder is gone: an equal job has finished it meanwhile.

    Raises:
        OutputError: none has; somebody took it away.
    """
    until_s = time.monotonic() + _FINISHING_S
    while (facts := job.finished()) is None:
        if time.monotonic() > until_s:
            raise OutputError(f"{readable(folder.path)} was taken away; start the same command again") from None
        time.sleep(0.1)
    return facts


def _join(job: Job, work: Work) -> dict | None:
    """Make the output of all parts; returns its facts, or None while other tasks of an array have parts to do."""
    config, classes = job.config, job.model.classes
    missing = sorted(set(range(work.files.num_shards)) - parts.finished(work.parts))
    if missing and config.merge:
        some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise OutputError(
            f"{len(missing)} of {work.files.num_shards} shards are missing ({some}); "
            "run the tasks of the array again: each does what it lacks"
        )
    if missing:
        console.say(
            f"--shard {config.shard} is done; {len(missing)} of {work.files.num_shards} shards are left to other tasks"
        )
        return None
    start_s = time.monotonic()
    embeddings = job.embeddings(work)
    if embeddings is not None:
        _check_embeddings(config, embeddings)
    totals = join_parts(work, config.output, job.stop.check, thumbnails_of(config))
    if embeddings is not None:  # only now: a part that turned out to be damaged writes its rows there once more
        embeddings.publish()
    totals["seconds"]["join"] = round(time.monotonic() - start_s, 3)
    facts = {
        "model": work.settings["model"],
        "files": work.num_files,
        "left_out": work.left_out,
        **totals,
        "engine": work.engine(),
        "embeddings": embeddings and {"columns": embeddings.width, **file_digest(config.embeddings)},
        "settings": work.settings,
        "contents": work.contents,
        "listed_by": work.listed_by,
        "input_root": _root_from_output(config),
        "auto_min_prob": job.model.made.get("min_prob"),
        "classes": dict(zip(*(map(encode_path, names) for names in (classes.folders, classes.labels)), strict=True)),
        "made": how_made(to_plain(config)),
    }
    write_sidecar(config.output, config.output, facts)
    work.remove()
    return facts


def _check_embeddings(config: PredictConfig, embeddings: EmbeddingsFile) -> None:
    """See that no job of another output has written the embeddings file since this job began.

    Raises:
        OutputError: one has; all that is done here is kept.
    """
    if embeddings.is_unfinished and not (config.overwrite or config.updates):
        check_embeddings_free(config.output, config.embeddings, "move it away and start the same command again")


def _root_from_output(config: PredictConfig) -> str | None:
    """The folder that paths start from, relative to that of the output; None where --merge does not see the input."""
    with contextlib.suppress(DataError):
        return os.path.relpath(input_root(config.input), config.output.parent)
    return None


def _errors_of_task(config: PredictConfig, folder: Path) -> int:
    """Files that failed in the shards of this task of an array; none once another task has joined all."""
    task, tasks = config.array_task()
    with contextlib.suppress(FileNotFoundError):
        work = Work(folder)
        return work.errors(range(task, work.files.num_shards, tasks))
    return 0
