"""The prediction job, from flags to the finished file."""

import contextlib
import os
import time
from collections.abc import Iterator

from flowers import console
from flowers.cli import to_plain
from flowers.config.predict import OUTPUT_KINDS, PredictConfig
from flowers.data.images import IMAGE_EXTENSIONS
from flowers.data.paths import readable
from flowers.distributed import from_main
from flowers.engines.exported import ExportedModel, open_model
from flowers.errors import EXIT_STRICT, OutputError, UsageError
from flowers.models.bundle import Bundle, how_made
from flowers.prediction import parts
from flowers.prediction.claims import Claims
from flowers.prediction.file_list import Entry
from flowers.prediction.group import Group
from flowers.prediction.inputs import input_root, list_inputs, look_at
from flowers.prediction.opening import find_work, open_work
from flowers.prediction.places import check_free, check_outputs
from flowers.prediction.report import report_path, write_report
from flowers.prediction.rows import STATUSES
from flowers.prediction.shard_loop import classify, embeddings_file
from flowers.prediction.sort_photos import check_target, sort_photos
from flowers.prediction.table import finished_facts, join_parts, require_writer, sidecar_path, write_sidecar
from flowers.prediction.work import POLL_S, Work, default_shard_size, parent_folder
from flowers.prediction.workers import Worker
from flowers.stopping import StopRequest

_LISTED_AT_A_TIME = 1000


def predict(config: PredictConfig) -> int:
    """Classify every input file; returns the exit code.

    Raises:
        StoppedError: a signal came; what is done is kept.
        FlowersError: see its message; what is done is kept.
    """
    group = Group()
    with StopRequest() as stop:
        with Worker(parent_folder(config.output)) as worker:
            bundle = open_model(config.checkpoint)
            _check_features(config, bundle)
            found = from_main(lambda: _find_work(config, bundle, worker, stop))
            try:
                if "facts" in found:
                    facts = found["facts"]
                    name = console.plain(readable(config.output))
                    console.say(f"{name} is complete: nothing to do (to classify the same files again, remove it)")
                else:
                    work = Work(worker.folder / found["job"])
                    worker.join(work.key, found["launch"])
                    if not config.merge:
                        classify(config, bundle, work, group, worker, stop)
                    facts = _join(config, bundle, work, worker, stop) if group.is_main else None
            except FileNotFoundError:
                facts = _facts_of_equal(config, worker)
        if not group.is_main:
            return 0
        if facts is None:
            return EXIT_STRICT if config.strict and _errors_of_task(config, work) else 0
        return _finish(config, facts, stop)


def _check_features(config: PredictConfig, bundle: Bundle | ExportedModel) -> None:
    if config.embeddings is not None and isinstance(bundle, ExportedModel):
        raise UsageError("--embeddings: an exported file gives probabilities only; use the bundle it was made of")


def _settings(config: PredictConfig, bundle: Bundle | ExportedModel) -> dict:
    """All that decides the rows, but for the files."""
    return {
        "model": bundle.hash,
        "kind": OUTPUT_KINDS[config.suffix()],
        "topk": min(config.topk, len(bundle.classes.folders)),
        "min_prob": config.min_prob,
        "tta": config.tta,
        "engine": config.engine,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "embeddings": config.embeddings and os.path.relpath(config.embeddings, config.output.parent),
    }


def _find_work(config: PredictConfig, bundle: Bundle | ExportedModel, worker: Worker, stop: StopRequest) -> dict:
    """On the main process: what there is to do, or the facts about an output that is complete."""
    require_writer(config.output)
    check_outputs(config, _extensions(config))
    check_target(config)
    if config.topk > len(bundle.classes.folders):
        console.warn(f"--topk {config.topk}: the model knows {len(bundle.classes.folders)} classes, all are given")
    settings = _settings(config, bundle)

    def finished() -> dict | None:
        return finished_facts(config.output, config.embeddings)

    def shard_size(files: int) -> int:
        return config.shard_size or default_shard_size(files, config.batch_size)

    if config.merge:
        work = find_work(worker, settings, finished)
    else:
        work = open_work(
            config.output,
            settings,
            lambda: _entries(config, stop),
            worker,
            shard_size=shard_size,
            finished=finished,
            place=os.path.abspath(config.input),
            look=lambda entry: look_at(os.fsencode(input_root(config.input)), entry),
            overwrite=config.overwrite,
            check_free=lambda: check_free(config.output, config.embeddings),
            array=os.environ.get("SLURM_ARRAY_JOB_ID") if config.shard else None,
            check_stop=stop.check,
        )
    if isinstance(work, dict):
        return {"facts": work}
    try:
        done = len(parts.finished(work.parts))
        embeddings = embeddings_file(config, bundle, work)
        if embeddings is not None:
            work.note_unfinished(embeddings.partial)
            embeddings.open(begun=done > 0)
    except FileNotFoundError:
        return {"facts": _facts_of_equal(config, worker)}
    console.say(f"{work.num_files} files in {work.files.num_shards} shards" + (f", {done} done before" if done else ""))
    return {"job": work.key, "launch": worker.token}


def _facts_of_equal(config: PredictConfig, worker: Worker) -> dict:
    """Facts about the output when the work folder is gone: an equal job has finished it meanwhile.

    Raises:
        OutputError: none has; somebody took it away.
    """
    facts = finished_facts(config.output, config.embeddings)
    if facts is None:
        raise OutputError(f"{readable(worker.folder)} was taken away; start the same command again") from None
    return facts


def _extensions(config: PredictConfig) -> frozenset[str]:
    given = config.extensions()
    return IMAGE_EXTENSIONS if given is None else given


def _entries(config: PredictConfig, stop: StopRequest) -> Iterator[Entry]:
    """The input files; of a hundred million the list takes long, so that a request to stop is heard meanwhile."""
    for number, entry in enumerate(list_inputs(config.input, _extensions(config)), start=1):
        if number % _LISTED_AT_A_TIME == 0:
            stop.check()
        yield entry


def _join(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, worker: Worker, stop: StopRequest
) -> dict | None:
    """Make the output of all parts; returns its facts, or None while other tasks of an array have parts to do."""
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
    claims = Claims(work.folder / "claims", worker)
    while not claims.take("join"):
        stop.check()
        time.sleep(POLL_S)
    try:
        return _join_all(config, bundle, work, worker, stop)
    finally:
        claims.give_all_back()


def _join_all(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, worker: Worker, stop: StopRequest
) -> dict:
    start_s = time.monotonic()
    totals = join_parts(work, config.output, config.suffix(), work.settings["topk"], stop.check)
    embeddings = embeddings_file(config, bundle, work)
    if embeddings is not None:  # only now: a part that turned out to be damaged writes its rows there once more
        embeddings.publish()
    totals["seconds"]["join"] = round(time.monotonic() - start_s, 3)
    facts = {
        "model": work.settings["model"],
        "files": work.num_files,
        **totals,
        "engine": work.engine(),
        "embeddings": embeddings and {"bytes": embeddings.bytes, "columns": embeddings.width},
        "settings": work.settings,
        "listed_by": work.listed_by,
        "made": how_made(to_plain(config)),
    }
    write_sidecar(work, config.output, facts)
    work.remove()
    worker.sweep(work.key)
    return facts


def _errors_of_task(config: PredictConfig, work: Work) -> int:
    """Files that failed in the shards of this task of an array; none once another task has joined all."""
    task, tasks = config.array_task()
    with contextlib.suppress(FileNotFoundError):
        own = range(task, work.files.num_shards, tasks)
        return sum(parts.read_facts(work.parts, index)["counts"].get("error", 0) for index in own)
    return 0


def _finish(config: PredictConfig, facts: dict, stop: StopRequest) -> int:
    """What follows once the output is there."""
    counts = {status: facts["counts"].get(status, 0) for status in STATUSES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "ok")
    if config.copy_to or config.link_to:
        sort_photos(config, stop.check)
    if config.report:
        write_report(config, facts)
    places = {
        "predictions": config.output,
        "to look at": report_path(config) if config.report else None,
        "how they were made": sidecar_path(config.output),
        "embeddings": config.embeddings,
        "photos by class": config.copy_to or config.link_to,
    }
    written = [(what, readable(place)) for what, place in places.items() if place is not None]
    score = console.job_command("evaluate", "--predictions", config.output, "--labels", "TRUE_CLASSES.csv")
    console.done(f"{facts['files']} rows ({said})", written, [score])
    return EXIT_STRICT if config.strict and counts["error"] else 0
