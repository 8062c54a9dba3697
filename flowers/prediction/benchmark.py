"""How fast this machine predicts, and with which flags: engines alone, decoding alone, then all of it together.

Measured is the code that predicts: ``Pipeline`` reads, decodes and formats rows, ``build_engine`` gives the engines.
Decoding alone is a pipeline whose engine knows every answer at once; inferring alone gets pictures that are decoded.
"""

import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from flowers import console
from flowers.config.benchmark import BenchmarkConfig
from flowers.data.archives import Entry
from flowers.data.choice import Choice
from flowers.data.images import read_image
from flowers.data.paths import readable
from flowers.data.preprocessing import Preprocessing
from flowers.engines.engine import ENGINES, PRECISIONS, Engine, Outputs, build_engine
from flowers.environment import are_several
from flowers.errors import DataError, ImageError, ModelError, UsageError
from flowers.files import claim, write_json
from flowers.machine import available_cpus
from flowers.made import how_made
from flowers.models.bundle import Bundle, load_bundle
from flowers.prediction.inputs import input_root, list_inputs, read_input
from flowers.prediction.pipeline import PhotoReader, Pipeline, ceiling_per_s
from flowers.prediction.rows import RowFormat

FINALISTS = 2  # engines that are tried in the whole pipeline
IN_FLIGHT = 4  # batches, as in the pipeline
NOT_BY_DEFAULT = ("auto", "compile")


@dataclass(frozen=True)
class EngineSpeed:
    """An engine alone, on decoded pictures.

    Attributes:
        start_s: to build it; converted networks are kept, so the next start may be faster.
    """

    engine: str
    precision: str
    batch_size: int
    images_per_s: float
    start_s: float


@dataclass(frozen=True)
class PipelineSpeed:
    """All of it: files to rows.

    Attributes:
        decode_per_s: what reading and decoding alone reach with so many workers.
        infer_per_s: what the engine reaches alone.
        ceiling_per_s: what the two allow together: one after the other where both use the CPUs, else the slower one.
    """

    engine: str
    precision: str
    batch_size: int
    workers: int
    images_per_s: float
    decode_per_s: float
    infer_per_s: float
    ceiling_per_s: float

    @property
    def flags(self) -> str:
        """The flags for jobs/predict.py."""
        return (
            f"--engine {self.engine} --precision {self.precision} --batch-size {self.batch_size} "
            f"--workers {self.workers}"
        )


def benchmark(config: BenchmarkConfig) -> int:
    """Measure, print the tables and the flags to use, write the figures.

    Returns:
        0.

    Raises:
        FlowersError: no such model or photos, no engine that runs here, an output that cannot be written.
    """
    if are_several():
        raise UsageError("benchmark.py measures one process: start it without a launcher")
    bundle = load_bundle(config.checkpoint)
    if config.output is not None:
        claim(config.output)
    sample = Sample(config, bundle.preprocessing)
    console.facts("flowers: benchmark", [
        ("model", f"{bundle.model}, {bundle.preprocessing.crop} px, {len(bundle.classes.folders)} classes"),
        ("photos", f"{len(sample.entries)}, {sample.read_bytes / len(sample.entries) / 1e3:.0f} kB each"),
        ("machine", f"{available_cpus()} CPUs" + (", a GPU" if torch.cuda.is_available() else "")),
        ("reading", f"{len(sample.entries) / sample.read_s:.0f} files/s, {sample.read_bytes / sample.read_s / 1e6:.0f} "
                    "MB/s on one thread (faster where the system had them in memory)"),
    ])  # fmt: skip
    engines, passed_over = try_engines(config, bundle, sample)
    if not engines:
        raise UsageError("no engine could run here: " + "; ".join(passed_over))
    for reason in passed_over:
        console.say(f"not tried: {console.plain(reason)}")
    console.table(
        "inferring alone", ("engine", "precision", "batch", "images/s", "start, s"),
        [(e.engine, e.precision, e.batch_size, f"{e.images_per_s:.0f}", f"{e.start_s:.1f}") for e in engines],
    )  # fmt: skip
    whole = try_pipelines(config, bundle, sample, engines)
    console.table(
        "from files to rows",
        ("engine", "precision", "batch", "workers", "images/s", "decoding alone", "ceiling", "of it"),
        [(p.engine, p.precision, p.batch_size, p.workers, f"{p.images_per_s:.0f}", f"{p.decode_per_s:.0f}",
          f"{p.ceiling_per_s:.0f}", f"{p.images_per_s / p.ceiling_per_s:.0%}") for p in whole],
    )  # fmt: skip
    best = whole[0]
    limit = "decoding" if best.decode_per_s < best.infer_per_s else "the network"
    console.say(
        f"fastest: {best.images_per_s:.0f} images/s, {best.images_per_s / best.ceiling_per_s:.0%} of the ceiling of "
        f"{best.ceiling_per_s:.0f} (decoding alone {best.decode_per_s:.0f}, inferring alone {best.infer_per_s:.0f}); "
        f"{limit} takes the larger part"
    )
    console.say(f"flags:   {best.flags}")
    if config.output is not None:
        figures = {
            "flags": best.flags,
            "model": {"name": bundle.model, "hash": bundle.hash},
            "photos": {"count": len(sample.entries), "bytes": sample.read_bytes, "read_s": sample.read_s},
            "engines": [asdict(speed) for speed in engines],
            "pipelines": [asdict(speed) for speed in whole],
            "not_tried": passed_over,
            "made": how_made({"checkpoint": str(config.checkpoint), "input": str(config.input)}),
        }
        write_json(config.output, figures)
    return 0


class Sample:
    """Photos to measure with: where they are, what reading them took, and what the network sees of them.

    Attributes:
        entries: those that give a picture.
        images: uint8 [N, S, S, 3].
        read_bytes: of all files.
        read_s: seconds to read them, one after the other.

    Raises:
        DataError: not one photo can be read.
    """

    def __init__(self, config: BenchmarkConfig, view: Preprocessing):
        self.read = functools.partial(read_input, os.fsencode(input_root(config.input)))
        self.entries: list[Entry] = []
        images: list[np.ndarray] = []
        self.read_bytes, self.read_s = 0, 0.0
        failed = 0
        for entry in itertools.islice(list_inputs(config.input, Choice()), config.images):
            try:
                start_s = time.perf_counter()
                data = self.read(entry)
                read_s = time.perf_counter() - start_s
                image = read_image(data, min_short_side=view.min_short_side, to_srgb=view.to_srgb)
                images.append(view.view(image))
            except ImageError:
                failed += 1
                continue
            self.entries.append(entry)
            self.read_bytes += len(data)
            self.read_s += read_s
        if not images:
            raise DataError(f"--input {readable(config.input)}: none of its first {failed} files gives a picture")
        if failed:
            console.warn(f"left out {console.counted(failed, 'file that gives', 'files that give')} no picture")
        self.images = np.stack(images)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Full batches of pictures without end."""
        start = 0
        while True:
            rows = np.arange(start, start + batch_size) % len(self.images)
            yield self.images[rows]
            start += batch_size


def try_engines(config: BenchmarkConfig, bundle: Bundle, sample: Sample) -> tuple[list[EngineSpeed], list[str]]:
    """Every engine, precision and batch size that can run here, fastest first; and why others cannot.

    Raises:
        UsageError: an engine or precision that does not exist.
    """
    for flag, given, known in (("engines", config.engines, ENGINES), ("precisions", config.precisions, PRECISIONS)):
        for name in given:
            if name not in known or name == "auto":
                raise UsageError(f"--{flag}: got {name!r}, expected some of {', '.join(known[1:])}")
    names = config.engines or [name for name in ENGINES if name not in NOT_BY_DEFAULT]
    precisions = config.precisions or PRECISIONS[1:]
    speeds, reasons = [], []
    ways = list(itertools.product(names, precisions))
    with console.progress("engines", len(ways) * len(config.batch_sizes), "measurements") as meter:
        for name, precision in ways:
            for batch_size in config.batch_sizes:
                try:
                    start_s = time.perf_counter()
                    engine = build_engine(bundle, engine=name, precision=precision, batch_size=batch_size)
                    start_s = time.perf_counter() - start_s
                    try:
                        per_s = infer_rate(engine, sample, config.seconds)
                    finally:
                        engine.close()
                except (UsageError, ModelError) as error:
                    reasons.append(f"{name} {precision}: {error}")
                    meter.advance(len(config.batch_sizes))
                    break
                except torch.OutOfMemoryError:  # an engine begins with a whole batch, so mostly as it is built
                    reasons.append(f"{name} {precision}, batch {batch_size}: the device's memory is full")
                else:
                    speeds.append(EngineSpeed(name, precision, batch_size, per_s, start_s))
                meter.advance(1)
    return sorted(speeds, key=lambda speed: -speed.images_per_s), reasons


def infer_rate(engine: Engine, sample: Sample, seconds: float) -> float:
    """Images per second of an engine that always has batches waiting."""
    batches = sample.batches(engine.batch_size)
    waiting = deque(engine.submit(next(batches)) for _ in range(IN_FLIGHT))
    done, start_s = -IN_FLIGHT, time.perf_counter()
    while done < 1 or time.perf_counter() - start_s < seconds:
        waiting.popleft().result()
        waiting.append(engine.submit(next(batches)))
        done += 1
        if done == 0:  # what is slow only at first is over
            start_s = time.perf_counter()
    spent_s = time.perf_counter() - start_s
    for handle in waiting:
        handle.result()
    return done * engine.batch_size / spent_s


def try_pipelines(
    config: BenchmarkConfig, bundle: Bundle, sample: Sample, engines: Sequence[EngineSpeed]
) -> list[PipelineSpeed]:
    """The best engines with each number of workers, from files to rows; fastest first."""
    cpus = available_cpus()
    workers = sorted(set(config.workers or (max(1, cpus // 2), cpus, 2 * cpus)))
    finalists: dict[tuple[str, str], EngineSpeed] = {}
    for speed in engines:
        finalists.setdefault((speed.engine, speed.precision), speed)
    found = []
    chosen = list(finalists.values())[:FINALISTS]
    with console.progress("pipelines", (1 + len(chosen)) * len(workers), "measurements") as meter:
        decode_per_s = {}
        for count in workers:
            known = KnownAnswers(len(bundle.classes.folders), chosen[0].batch_size)
            decode_per_s[count] = pipeline_rate(known, bundle, sample, count, config.seconds)
            meter.advance(1)
        for speed in chosen:
            engine = build_engine(bundle, engine=speed.engine, precision=speed.precision, batch_size=speed.batch_size)
            for count in workers:
                per_s = pipeline_rate(engine, bundle, sample, count, config.seconds)
                rates = decode_per_s[count], speed.images_per_s
                ceiling = ceiling_per_s(*rates, engine.on_cpu)
                found.append(
                    PipelineSpeed(speed.engine, speed.precision, speed.batch_size, count, per_s, *rates, ceiling)
                )
                meter.advance(1)
            engine.close()
    return sorted(found, key=lambda speed: -speed.images_per_s)


def pipeline_rate(engine, bundle: Bundle, sample: Sample, workers: int, seconds: float) -> float:
    """Images per second from files to rows, after the pipeline has filled."""
    classes = bundle.classes
    rows = RowFormat(classes.labels, classes.folders, min(5, len(classes.folders)), 0.0, "csv")
    marks: list[tuple[float, int]] = []  # when each batch was done, and its images
    stop: list[int] = []

    def on_batch(done: int, failed: int) -> None:
        marks.append((time.perf_counter(), done))

    def shards() -> Iterator[tuple[int, list[Entry]]]:
        files = itertools.cycle(sample.entries)
        for index in itertools.count():
            if len(marks) > IN_FLIGHT + 1 and marks[-1][0] - marks[IN_FLIGHT][0] > seconds:
                stop.append(len(marks))
                return
            yield index, list(itertools.islice(files, engine.batch_size))

    photos = PhotoReader(sample.read, bundle.preprocessing)
    pipeline = Pipeline(photos, engine, rows, workers=workers, on_batch=on_batch)
    try:
        deque(pipeline.run(shards()), maxlen=0)
    finally:
        pipeline.close()
    (start_s, _), *rest = marks[IN_FLIGHT : stop[0]]  # neither while it fills nor while it empties
    return sum(done for _, done in rest) / (rest[-1][0] - start_s)


class KnownAnswers:
    """An engine that costs nothing: every picture is anything."""

    on_cpu = False

    def __init__(self, num_classes: int, batch_size: int):
        self.batch_size = batch_size
        self._probs = np.full((batch_size, num_classes), 1 / num_classes, np.float32)

    def submit(self, images: np.ndarray, *, lent: bool = False) -> "KnownAnswers":
        """Nothing to be done."""
        return self

    def result(self) -> Outputs:
        """The same for all; batches here are always full."""
        return Outputs(self._probs, None)
