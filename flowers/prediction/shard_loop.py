"""One process's part of the work: classify its shards, then what is left, and keep their rows."""

import collections
import time
from collections.abc import Iterator

import numpy as np
import torch

from flowers import console
from flowers.data.archives import Entry
from flowers.data.gpu_decoder import GpuDecoder
from flowers.data.paths import readable
from flowers.distributed import Place
from flowers.engines.engine import Engine
from flowers.engines.exported_engine import open_engine
from flowers.errors import FlowersError, ModelError, UsageError
from flowers.machine import cpus_per_process
from flowers.prediction import parts
from flowers.prediction.job import Job
from flowers.prediction.kept import KeptShard, StampingReader, read_kept
from flowers.prediction.pipeline import PhotoReader, Pipeline, Shard, ceiling_per_s
from flowers.prediction.work import Work
from flowers.retries import retries

_LOOK_EVERY_S = 2.0


def shards_for(work: Work, own: range, place: Place) -> Iterator[tuple[int, list[Entry]]]:
    """This process's shards, then from the end what has no part yet, beginning at another one on each rank."""
    yield from work.missing(mine := own[place.rank :: place.world_size])
    left = sorted(set(own) - parts.finished(work.parts) - set(mine), reverse=True)
    turn = len(left) * place.rank // place.world_size
    yield from work.missing([*left[turn:], *left[:turn]])


def classify(job: Job, work: Work) -> None:
    """Do shards until every shard of this array task has its part.

    Raises:
        FileNotFoundError: the work folder is gone: another process has finished the whole job.
        StoppedError: a signal came; shards that are done are kept.
        FlowersError: the disk is full, the engine cannot run here, ...
    """
    task, tasks = job.config.array_task()
    own = range(task, work.files.num_shards, tasks)
    missing = set(own) - parts.finished(work.parts)
    for index in sorted(missing & set(own[job.place.rank :: job.place.world_size])):
        kept = read_kept(work, index, job.config.embeddings)
        if not kept.new_slots:  # needs no network
            _write(job, work, Shard(index, []), kept, {})
            job.stop.check()
    if set(own) <= parts.finished(work.parts):
        return
    try:
        _classify(job, work, own)
    except torch.OutOfMemoryError:
        raise FlowersError(
            f"the device's memory is full: pass a smaller --batch-size than {job.config.batch_size}"
        ) from None


def _classify(job: Job, work: Work, own: range) -> None:
    config = job.config
    missing = set(own) - parts.finished(work.parts)
    gpu_decoder = _gpu_decoder(job)
    engine = _build_engine(job, work)
    with console.progress("classify", sum(map(work.size, missing))) as meter:
        progress = _Progress(job, work, missing, meter)
        reader = StampingReader(job.root)
        pipeline = Pipeline(
            PhotoReader(reader, job.model.preprocessing, config.on_damaged, reader.ahead, gpu_decoder),
            engine,
            job.rows,
            workers=config.workers or cpus_per_process(),
            flip=config.tta == "flip",
            features=job.model.head.in_features if config.embeddings else None,
            familiarity=job.familiarity,
            on_batch=progress.advance,
        )
        about = {"job": work.key, "engine": {"engine": engine.name, "precision": engine.precision}}
        before, recovered = pipeline.seconds(), retries.recovered
        kept: dict[int, KeptShard] = {}
        try:
            for shard in pipeline.run(_without_kept(job, work, shards_for(work, own, job.place), kept)):
                start_s = time.perf_counter()
                now = pipeline.seconds()
                seconds = {stage: round(now[stage] - before[stage], 4) for stage in now}
                facts = {"seconds": seconds, **about, "recovered": retries.recovered - recovered}
                before, recovered = now, retries.recovered
                of_shard = kept.pop(shard.index)
                of_shard.stamps[of_shard.new_slots] = reader.take(shard.entries)
                _write(job, work, shard, of_shard, facts)
                progress.mine.add(shard.index)
                pipeline.wrote(time.perf_counter() - start_s)
            progress.complete()
        finally:
            pipeline.close()
            reader.close()
            engine.close()
    progress.tell(pipeline.seconds(), cpus_per_process(), engine.on_cpu)


def _without_kept(
    job: Job, work: Work, shards: Iterator[tuple[int, list[Entry]]], kept: dict[int, KeptShard]
) -> Iterator[tuple[int, list[Entry]]]:
    """Of each shard the files that do not keep their row; what is kept goes into ``kept``."""
    for index, entries in shards:
        of_shard = read_kept(work, index, job.config.embeddings)
        if not of_shard.new_slots:  # another process's, which had no need of the network and is gone: do it all
            of_shard = KeptShard({}, of_shard.stamps)
        kept[index] = of_shard
        yield index, [entries[slot] for slot in of_shard.new_slots]


def _write(job: Job, work: Work, shard: Shard, kept: KeptShard, facts: dict) -> None:
    """Write the part of a shard from the rows just made and those that are kept."""
    made, new = iter(shard.lines), kept.new_slots
    lines = [kept.rows[slot].line if slot in kept.rows else next(made) for slot in range(len(kept.stamps))]
    counts = shard.counts + collections.Counter(row.status for row in kept.rows.values())
    facts = {"counts": dict(counts), "seconds": {}, **facts}
    embeddings = job.embeddings(work)
    if embeddings is not None:
        features = np.empty((len(lines), embeddings.width), np.float32)
        if new:
            features[new] = shard.features
        if kept.rows:
            earlier = np.load(job.config.embeddings, mmap_mode="r")
            features[list(kept.rows)] = earlier[[row.number for row in kept.rows.values()]]
        facts["embeddings_crc32"] = embeddings.write(shard.index, features)
    parts.write_part(work.parts, shard.index, b"".join(lines), facts, kept.stamps.tobytes())


def _gpu_decoder(job: Job) -> GpuDecoder | None:
    if job.config.decode == "cpu":
        return None
    device = torch.device(job.place.device or "cuda")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UsageError("--decode gpu: torch sees no GPU here; leave it out")
    return GpuDecoder(job.model.preprocessing, device)


def _build_engine(job: Job, work: Work) -> Engine:
    """The engine that all processes of the job agree on: who comes first chooses."""
    config = job.config
    options = {
        "batch_size": config.batch_size,
        "device": job.place.device,
        "features": config.embeddings is not None or job.familiarity is not None,
    }
    settled = work.engine()
    while True:
        asked = settled or {"engine": config.engine, "precision": config.precision}
        try:
            engine = open_engine(job.model, **asked, **options)
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


class _Progress:
    """Progress on the screen while this process and others are at work.

    Attributes:
        mine: shards whose part this process wrote.
    """

    def __init__(self, job: Job, work: Work, missing: set[int], meter: console.Meter):
        self.mine: set[int] = set()
        self._job, self._work, self._missing, self._meter = job, work, missing, meter
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
        if self._job.place.world_size > 1 and time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            others = (self._missing & parts.finished(self._work.parts)) - self.mine
            self._of_others = sum(map(self._work.size, others))
        self._show(min(self._done + self._of_others, self._total))
        self._job.stop.check()

    def complete(self) -> None:
        """All has its part, some of it by other processes; only now are their errors known."""
        self._errors += self._work.errors(self._missing - self.mine)
        self._show(self._total)

    def tell(self, seconds: dict[str, float], cpus: int, on_cpu: bool) -> None:
        """Report where the time of this process went, and its speed against what its machine can do."""
        done, elapsed_s = self._done, time.monotonic() - self._start_s
        if not done:
            return
        total_s = sum(seconds.values()) or 1e-9
        shares = ", ".join(f"{stage} {share_s / total_s:.0%}" for stage, share_s in seconds.items())
        decode_per_s, infer_per_s = (done / max(seconds[stage], 1e-9) for stage in ("decode", "infer"))
        decode_per_s *= cpus
        why = f"{decode_per_s:.0f} decoding on {cpus} CPUs, {infer_per_s:.0f} inferring on the device"
        if on_cpu:
            infer_per_s *= cpus
            why = f"{cpus} CPUs can do {decode_per_s:.0f} decoding alone, {infer_per_s:.0f} inferring alone"
        ceiling = ceiling_per_s(decode_per_s, infer_per_s, on_cpu)
        console.say(f"{console.counted(done, 'image')} in {elapsed_s:.1f} s: {done / elapsed_s:.0f} images/s")
        console.verbose(f"{done / elapsed_s / ceiling:.0%} of the ceiling of {ceiling:.0f} images/s ({why})")
        console.verbose(f"time: {shares}")

    def _show(self, done: int) -> None:
        self._meter.advance(max(0, done - self._shown), errors=self._errors)
        self._shown = max(done, self._shown)
