"""One process's part of the work: classify its shards, then what is left, and keep their rows."""

import collections
import os
import time
from collections.abc import Iterator

import numpy as np
import torch

from flowers import console
from flowers.config.predict import OUTPUT_KINDS, PredictConfig
from flowers.data.archives import Entry
from flowers.data.paths import readable
from flowers.data.retries import retries
from flowers.distributed import Place
from flowers.engines.engine import Engine
from flowers.engines.exported import ExportedModel
from flowers.engines.exported_engine import open_engine
from flowers.errors import FlowersError, ModelError, UsageError
from flowers.machine import cpus_per_process
from flowers.models.bundle import Bundle
from flowers.models.familiarity import Familiarity
from flowers.prediction import parts
from flowers.prediction.embeddings import EmbeddingsFile
from flowers.prediction.inputs import input_root
from flowers.prediction.kept import Kept, StampingReader, read_kept
from flowers.prediction.pipeline import PhotoReader, Pipeline, ShardResult
from flowers.prediction.rows import RowFormat
from flowers.prediction.work import Work
from flowers.stopping import StopRequest

_LOOK_EVERY_S = 2.0


def embeddings_file(config: PredictConfig, bundle: Bundle | ExportedModel, work: Work) -> EmbeddingsFile | None:
    """The embeddings that a job writes, if any."""
    if config.embeddings is None:
        return None
    return EmbeddingsFile(config.embeddings, work, bundle.head.in_features)


def shards_for(work: Work, own: range, place: Place) -> Iterator[tuple[int, list[Entry]]]:
    """This process's shards, then from the end what has no part yet, beginning at another one on each rank."""
    yield from work.missing(mine := own[place.rank :: place.world_size])
    left = sorted(set(own) - parts.finished(work.parts) - set(mine), reverse=True)
    turn = len(left) * place.rank // place.world_size
    yield from work.missing([*left[turn:], *left[:turn]])


def classify(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, place: Place, stop: StopRequest
) -> None:
    """Do shards until every shard of this array task has its part.

    Raises:
        FileNotFoundError: the work folder is gone: another process has finished the whole job.
        StoppedError: a signal came; shards that are done are kept.
        FlowersError: the disk is full, the engine cannot run here, ...
    """
    task, tasks = config.array_task()
    own = range(task, work.files.num_shards, tasks)
    for index, entries in work.missing(own[place.rank :: place.world_size]):
        kept = read_kept(work, index, config.embeddings)
        if len(kept.rows) == len(entries):  # needs no network
            _write(config, bundle, work, ShardResult(index, [], None, {}), kept, {})
            stop.check()
    if set(own) <= parts.finished(work.parts):
        return
    try:
        _classify(config, bundle, work, place, stop, own)
    except torch.OutOfMemoryError:
        raise FlowersError(
            f"the device's memory is full: pass a smaller --batch-size than {config.batch_size}"
        ) from None


def _classify(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, place: Place, stop: StopRequest, own: range
) -> None:
    missing = set(own) - parts.finished(work.parts)
    engine = _build_engine(config, bundle, work, place)
    with console.progress("classify", sum(map(work.size, missing))) as meter:
        progress = _Progress(meter, work, missing, stop, alone=place.world_size == 1)
        reader = StampingReader(os.fsencode(input_root(config.input)))
        kept: dict[int, Kept] = {}
        pipeline = Pipeline(
            PhotoReader(reader, bundle.preprocessing, config.on_damaged, reader.ahead),
            engine,
            row_format(config, bundle),
            workers=config.workers or cpus_per_process(),
            flip=config.tta == "flip",
            features=bundle.head.in_features if config.embeddings else None,
            familiarity=familiarity(config, bundle),
            on_batch=progress.advance,
        )
        about = {"job": work.key, "engine": {"engine": engine.name, "precision": engine.precision}}
        before, recovered = pipeline.seconds(), retries.recovered
        try:
            for result in pipeline.run(_unknown(config, work, shards_for(work, own, place), kept)):
                start_s = time.perf_counter()
                now = pipeline.seconds()
                seconds = {stage: round(now[stage] - before[stage], 4) for stage in now}
                facts = {"seconds": seconds, **about}
                facts["recovered"], recovered = retries.recovered - recovered, retries.recovered
                known = kept.pop(result.index)
                read = [entry for slot, entry in enumerate(work.shard(result.index)) if slot not in known.rows]
                known.stamps[[slot for slot in range(len(known.stamps)) if slot not in known.rows]] = reader.take(read)
                _write(config, bundle, work, result, known, facts)
                progress.mine.add(result.index)
                before = now
                pipeline.wrote(time.perf_counter() - start_s)
            progress.complete()
        finally:
            pipeline.close()
            reader.close()
            engine.close()
    progress.tell(pipeline.seconds(), cpus_per_process(), engine.on_cpu)


def _unknown(
    config: PredictConfig, work: Work, shards: Iterator[tuple[int, list[Entry]]], kept: dict[int, Kept]
) -> Iterator[tuple[int, list[Entry]]]:
    """Of each shard the files that do not keep their row; what is kept goes into ``kept``."""
    for index, entries in shards:
        kept[index] = read_kept(work, index, config.embeddings)
        left = [entry for slot, entry in enumerate(entries) if slot not in kept[index].rows]
        if not left:  # another process's, which had no need of the network and is gone: do it as if nothing were kept
            kept[index] = Kept({}, kept[index].stamps)
        yield index, left or entries


def _write(
    config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, result: ShardResult, kept: Kept, facts: dict
) -> None:
    """Write the part of a shard from the rows just made and those that are kept."""
    made, counts = iter(result.lines), collections.Counter(result.counts)
    size = len(result.lines) + len(kept.rows)
    lines = [kept.rows[slot].line if slot in kept.rows else next(made) for slot in range(size)]
    counts.update(row.status for row in kept.rows.values())
    facts = {"counts": dict(counts), "seconds": {}, **facts}
    embeddings = embeddings_file(config, bundle, work)
    if embeddings is not None:
        features = np.empty((size, embeddings.width), np.float32)
        features[[slot for slot in range(size) if slot not in kept.rows]] = result.features if result.lines else 0
        if kept.rows:
            earlier = np.load(config.embeddings, mmap_mode="r")
            features[sorted(kept.rows)] = earlier[[kept.rows[slot].number for slot in sorted(kept.rows)]]
        facts["embeddings_crc32"] = embeddings.write(result.index, features)
    parts.write_part(work.parts, result.index, b"".join(lines), facts, kept.stamps.tobytes())


def row_format(config: PredictConfig, bundle: Bundle | ExportedModel) -> RowFormat:
    """The format of this job's rows."""
    classes = bundle.classes
    topk = min(config.topk, len(classes.folders))
    return RowFormat(classes.labels, classes.folders, topk, config.min_prob, OUTPUT_KINDS[config.suffix()])


def familiarity(config: PredictConfig, bundle: Bundle | ExportedModel) -> Familiarity | None:
    """The score that marks unfamiliar photos in this job; None if they are not marked."""
    return bundle.familiarity if config.unfamiliar == "mark" and isinstance(bundle, Bundle) else None


def _build_engine(config: PredictConfig, bundle: Bundle | ExportedModel, work: Work, place: Place) -> Engine:
    """The engine that all processes of the job agree on: who comes first chooses."""
    settled = work.engine()
    while True:
        asked = settled or {"engine": config.engine, "precision": config.precision}
        try:
            engine = _build(config, bundle, place, **asked)
        except (ModelError, UsageError) as error:
            if settled is None:
                raise
            begun = f"{readable(work.folder)} was begun with engine {settled['engine']} {settled['precision']}"
            raise ModelError(f"{begun}, which cannot run here: {error}") from error
        chosen = {"engine": engine.name, "precision": engine.precision}
        settled = work.settle_engine(chosen)
        if settled == chosen:
            console.say(f"engine: {console.plain(engine.description)}")
            return engine
        engine.close()


def _build(config: PredictConfig, bundle: Bundle | ExportedModel, place: Place, engine: str, precision: str) -> Engine:
    features = config.embeddings is not None or familiarity(config, bundle) is not None
    return open_engine(
        bundle, engine=engine, precision=precision, batch_size=config.batch_size, device=place.device, features=features
    )


class _Progress:
    """Progress on the screen while this process and others are at work.

    Attributes:
        mine: shards whose part this process wrote.
    """

    def __init__(self, meter: console.Meter, work: Work, missing: set[int], stop: StopRequest, alone: bool):
        self.mine: set[int] = set()
        self._meter, self._work, self._missing, self._stop, self._alone = meter, work, missing, stop, alone
        self._total = sum(map(work.size, missing))
        self._done = self._errors = self._of_others = self._shown = 0
        self._looked_s = self._start_s = time.monotonic()

    def advance(self, done: int, failed: int) -> None:
        """Count a batch of this process, and now and then the shards that others have finished.

        Raises:
            FileNotFoundError: the work folder is gone: another process has finished the whole job.
            StoppedError: a signal came.
        """
        self._done += done
        self._errors += failed
        if not self._alone and time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            others = (self._missing & parts.finished(self._work.parts)) - self.mine
            self._of_others = sum(map(self._work.size, others))
        self._show(min(self._done + self._of_others, self._total))
        self._stop.check()

    def complete(self) -> None:
        """All has its part, some of it by other processes; only now are their errors known."""
        for index in self._missing - self.mine:
            self._errors += parts.read_facts(self._work.parts, index)["counts"].get("error", 0)
        self._show(self._total)

    def tell(self, seconds: dict[str, float], cpus: int, on_cpu: bool) -> None:
        """Report where the time of this process went, and its speed against what its machine can do."""
        done, elapsed_s = self._done, time.monotonic() - self._start_s
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
        console.say(f"{done} images in {elapsed_s:.1f} s: {done / elapsed_s:.0f} images/s")
        console.verbose(f"{done / elapsed_s / ceiling:.0%} of the ceiling of {ceiling:.0f} images/s ({why})")
        console.verbose(f"time: {shares}")

    def _show(self, done: int) -> None:
        self._meter.advance(max(0, done - self._shown), errors=self._errors)
        self._shown = max(done, self._shown)
