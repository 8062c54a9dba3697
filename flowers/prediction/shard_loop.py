"""One process's part of the work: claim shards, classify them, keep their rows."""

import functools
import math
import os
import time

import torch

from flowers import console
from flowers.config.predict import OUTPUT_KINDS, PredictConfig
from flowers.data.paths import readable
from flowers.engines.engine import Engine, build_engine
from flowers.engines.exported import ENGINES, ExportedModel
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import FlowersError, ModelError, UsageError
from flowers.machine import cpus_per_process
from flowers.models.bundle import Bundle
from flowers.prediction import parts
from flowers.prediction.claims import Claims
from flowers.prediction.embeddings import EmbeddingsFile
from flowers.prediction.group import Group
from flowers.prediction.inputs import input_root, read_input
from flowers.prediction.pipeline import Pipeline
from flowers.prediction.rows import RowFormat
from flowers.prediction.work import POLL_S, Work
from flowers.prediction.workers import Worker
from flowers.stopping import StopRequest

_LOOK_EVERY_S = 2.0
_LONG_WAIT_S = 30.0


def embeddings_file(config: PredictConfig, bundle: Bundle | ExportedModel, work: Work) -> EmbeddingsFile | None:
    """The embeddings that a job writes, if any."""
    if config.embeddings is None:
        return None
    return EmbeddingsFile(config.embeddings, work.key, work.num_files, bundle.head.in_features)


def shard_order(own: range, rank: int, world_size: int) -> list[int]:
    """In which order a process goes for shards: every world_size-th, then from the end what others have not begun."""
    mine = set(own[rank::world_size])
    return [*own[rank::world_size], *(index for index in reversed(own) if index not in mine)]


def classify(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, group: Group, worker: Worker, stop: StopRequest
) -> None:
    """Do shards until none is left that this process may do; the main process then waits for those of others.

    Raises:
        FileNotFoundError: the work folder is gone: another process has finished the whole job.
        StoppedError: a signal came; shards that are done are kept.
        FlowersError: the disk is full, the engine cannot run here, ...
    """
    task, tasks = config.array_task()
    own = range(task, work.files.num_shards, tasks)
    missing = set(own) - parts.finished(work.parts)
    if not missing:
        return
    try:
        _classify(config, bundle, work, group, worker, stop, own, missing)
    except torch.OutOfMemoryError:
        raise FlowersError(
            f"the device's memory is full: pass a smaller --batch-size than {config.batch_size}"
        ) from None


def _classify(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, group: Group, worker: Worker, stop: StopRequest,
    own: range, missing: set[int],
) -> None:  # fmt: skip
    engine = _build_engine(config, bundle, work, group, worker)
    embeddings = embeddings_file(config, bundle, work)
    claims = Claims(work.folder / "claims", worker)
    total = sum(map(work.size, missing))
    on_cpu = engine.name in ENGINES or not torch.cuda.is_available()
    with console.progress("classify", total) as meter:
        progress = _Progress(meter, group, worker, stop)
        pipeline = Pipeline(
            functools.partial(read_input, os.fsencode(input_root(config.input))),
            bundle.preprocessing,
            engine,
            row_format(config, bundle),
            workers=config.workers or cpus_per_process(),
            flip=config.tta == "flip",
            features=bundle.head.in_features if embeddings else None,
            on_cpu=on_cpu,
            on_batch=progress.advance,
        )
        try:
            _run(pipeline, work, claims, embeddings, shard_order(own, group.rank, group.world_size))
            while group.is_main and (left := sorted(set(own) - parts.finished(work.parts))):
                progress.wait(claims.owner(parts.part_name(left[0])), len(left))
                _run(pipeline, work, claims, embeddings, left)  # those of processes that died meanwhile
            if group.is_main:
                errors = sum(parts.read_facts(work.parts, index)["counts"].get("error", 0) for index in missing)
                progress.complete(total, errors)
        finally:
            claims.give_all_back()
            pipeline.close()
            engine.close()
    progress.tell(pipeline.seconds(), cpus_per_process(), on_cpu)


def row_format(config: PredictConfig, bundle: Bundle | ExportedModel) -> RowFormat:
    """How this job writes its rows."""
    classes = bundle.classes
    topk = min(config.topk, len(classes.folders))
    return RowFormat(classes.labels, classes.folders, topk, config.min_prob, OUTPUT_KINDS[config.suffix()])


def _run(pipeline: Pipeline, work: Work, claims: Claims, embeddings: EmbeddingsFile | None, order: list[int]) -> None:
    before = pipeline.seconds()
    for result in pipeline.run(work.claimed(claims, order)):
        start_s = time.perf_counter()
        if embeddings is not None:
            embeddings.write(result.index * work.settings["shard_size"], result.features)
        now = pipeline.seconds()
        seconds = {stage: round(now[stage] - before[stage], 4) for stage in now}
        parts.write_part(work.parts, result.index, result.rows, {"counts": result.counts, "seconds": seconds})
        claims.give_back(parts.part_name(result.index))
        before = now
        pipeline.wrote(time.perf_counter() - start_s)


def _build_engine(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, group: Group, worker: Worker
) -> Engine:
    """The engine that all processes of the job agree on: who comes first chooses."""
    settled = work.engine()
    while True:
        asked = settled or {"engine": config.engine, "precision": config.precision}
        try:
            engine = _build(config, bundle, group, **asked)
        except (ModelError, UsageError) as error:
            if settled is None:
                raise
            begun = f"{readable(work.folder)} was begun with engine {settled['engine']} {settled['precision']}"
            raise ModelError(f"{begun}, which cannot run here: {error}") from error
        chosen = {"engine": engine.name, "precision": engine.precision}
        settled = work.settle_engine(chosen, worker)
        if settled == chosen:
            console.say(f"engine: {console.plain(engine.description)}")
            return engine
        engine.close()


def _build(config: PredictConfig, bundle: Bundle | ExportedModel, group: Group, engine: str, precision: str) -> Engine:
    if isinstance(bundle, ExportedModel):
        return build_exported_engine(bundle, engine=engine, precision=precision, batch_size=config.batch_size)
    features = config.embeddings is not None
    return build_engine(
        bundle, engine=engine, precision=precision, batch_size=config.batch_size, device=group.device, features=features
    )


class _Progress:
    """What the user sees while this process and those launched with it are at work."""

    def __init__(self, meter: console.Meter, group: Group, worker: Worker, stop: StopRequest):
        self._meter, self._worker, self._stop = meter, worker, stop
        self._others: dict[str, tuple[int, int]] = {}
        self._alone = group.world_size == 1
        self._shown = 0
        self._looked_s = self._start_s = time.monotonic()
        self._waiting_s: float | None = None

    def advance(self, done: int, failed: int) -> None:
        """Count a batch of this process.

        Raises:
            StoppedError: a signal came.
        """
        self._worker.done += done
        self._worker.errors += failed
        self._show(done)
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self.look()
        self._stop.check()

    def look(self) -> None:
        """Count what the other processes of the launch have done since."""
        self._looked_s = time.monotonic()
        if self._alone:
            return
        before = sum(done for done, _ in self._others.values())
        for info in self._worker.peers():
            self._others[info["token"]] = (info["done"], info["errors"])
        self._show(sum(done for done, _ in self._others.values()) - before)

    def wait(self, owner: str | None, shards: int) -> None:
        """Wait a moment for shards that are in other hands; say so once if it takes long.

        Raises:
            StoppedError: a signal came.
        """
        self._stop.check()
        self.look()
        self._waiting_s = self._waiting_s or time.monotonic()
        if time.monotonic() - self._waiting_s > _LONG_WAIT_S:
            self._waiting_s = math.inf
            console.say(f"waiting for {shards} shards of others, such as {console.plain(self._worker.describe(owner))}")
        time.sleep(POLL_S)

    def complete(self, total: int, errors: int) -> None:
        """All is done, some of it perhaps by processes that left before anyone looked again."""
        self._meter.advance(total - self._shown, errors=errors)

    def tell(self, seconds: dict[str, float], cpus: int, on_cpu: bool) -> None:
        """Where the time of this process went, and how close it came to what its machine can do."""
        done, elapsed_s = self._worker.done, time.monotonic() - self._start_s
        if not done:
            return
        total_s = sum(seconds.values()) or 1e-9
        shares = ", ".join(f"{stage} {share_s / total_s:.0%}" for stage, share_s in seconds.items())
        decode_per_s, infer_per_s = (done / max(seconds[stage], 1e-9) for stage in ("decode", "infer"))
        if on_cpu:
            ceiling = 1 / (1 / (cpus * decode_per_s) + 1 / (cpus * infer_per_s))
            why = (
                f"{cpus} CPUs can do {cpus * decode_per_s:.0f} decoding alone, {cpus * infer_per_s:.0f} inferring alone"
            )
        else:
            ceiling = min(cpus * decode_per_s, infer_per_s)
            why = f"{cpus * decode_per_s:.0f} decoding on {cpus} CPUs, {infer_per_s:.0f} inferring on the device"
        console.say(
            f"{done} images in {elapsed_s:.1f} s: {done / elapsed_s:.0f} images/s, "
            f"{done / elapsed_s / ceiling:.0%} of the ceiling of {ceiling:.0f} ({why})"
        )
        console.say(f"time: {shares}")

    def _show(self, done: int) -> None:
        self._shown += done
        self._meter.advance(done, errors=self._worker.errors + sum(errors for _, errors in self._others.values()))
