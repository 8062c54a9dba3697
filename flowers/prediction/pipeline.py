"""Read, decode, infer, write: overlapped, each one timed, in bounded memory.

Threads read and decode: the decoders release the GIL, and pictures then need no way between processes. One
thread (the caller's) cuts shards into batches, hands full ones to the engine, and formats rows.

What a batch holds depends on its shard alone, never on timing or on the number of threads or processes: a
file that gives no picture keeps its place in the batch, as zeros. So the arithmetic of its neighbours is the same
whether it fails or not, and every run gives the same bytes.
"""

import collections
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from flowers.data.archives import Entry
from flowers.data.gpu_decoder import GpuDecoder, PlainJpeg
from flowers.data.images import decode_image
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ImageError
from flowers.models.familiarity import Familiarity
from flowers.prediction.parts import STAGES
from flowers.prediction.rows import RowFormat, best_classes

_IN_FLIGHT = 4  # batches that an engine may hold at a time
_CLOSE_S = 5.0  # a thread may hang in a file system that is gone; it must not keep the job


@dataclass(eq=False)
class Shard:
    """Files that are classified together, and what is known of them.

    Attributes:
        index: which shard.
        entries: its files.
        features: float32 [files, D], NaN where a file failed; None unless asked for.
        lines: one a file, in order.
        counts: files by status.
    """

    index: int
    entries: list[Entry]
    features: np.ndarray | None = None
    lines: list[bytes] = field(default_factory=list)
    counts: collections.Counter = field(default_factory=collections.Counter)


class _Batch:
    """Up to batch_size files on their way through."""

    def __init__(self, shard: Shard, start: int, images: np.ndarray):
        self.shard, self.start = shard, start
        self.entries = shard.entries[start : start + len(images)]
        self.images = images
        self.reasons: dict[int, str] = {}
        """The reason why a file could not be decoded, by its place."""
        self.damage: dict[int, str] = {}
        """The damage of a file that decoded only in part, by its place."""
        self.for_gpu: dict[int, tuple[PlainJpeg, bytes | bytearray]] = {}
        """Files that a GPU decodes once all others are done, and their bytes as they were read, by place."""
        self.decoded = threading.Event()
        self.handles: list = []
        self._left = len(self.entries)
        self._lock = threading.Lock()

    def one_done(self) -> bool:
        """Count a file; true of the last one."""
        with self._lock:
            self._left -= 1
            return not self._left

    def fail(self, slot: int, error: Exception) -> None:
        """Whatever a file does to a decoder is a row of that file, and not the end of the job."""
        self.reasons[slot] = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
        self.images[slot] = 0


def ceiling_per_s(decode_per_s: float, infer_per_s: float, on_cpu: bool) -> float:
    """Images per second that the two allow: one after the other where both use the CPUs, else at once."""
    return 1 / (1 / decode_per_s + 1 / infer_per_s) if on_cpu else min(decode_per_s, infer_per_s)


@dataclass(frozen=True)
class PhotoReader:
    """How a file becomes a picture for the network.

    Attributes:
        read: from an entry to the bytes of the file; raises ImageError.
        preprocessing: the model's view of a picture.
        on_damaged: "mark" files that decode only in part, take them as "ok", or make each an "error".
        ahead: told of each entry some time before it is read.
        gpu: decodes the JPEGs that it can.
    """

    read: Callable[[Entry], bytes | bytearray]
    preprocessing: Preprocessing
    on_damaged: str = "mark"
    ahead: Callable[[Entry], None] = lambda entry: None
    gpu: GpuDecoder | None = None

    def view(self, data: bytes | bytearray, out: np.ndarray) -> str | None:
        """Write the picture in a file's bytes to ``out``, uint8 [S, S, 3].

        Returns:
            What is wrong with the file, if that is to be marked.

        Raises:
            ImageError: no picture can be had from them.
        """
        view = self.preprocessing
        image, damage = decode_image(data, min_short_side=view.min_short_side, to_srgb=view.to_srgb)
        if damage and self.on_damaged == "error":
            raise ImageError(damage)
        view.view(image, out)
        return damage if self.on_damaged == "mark" else None


class Pipeline:
    """Classifies shards of files.

    Args:
        photos: reads and decodes each file.
        engine: see ``flowers.engines.engine``.
        rows: how lines are written.
        workers: threads that read and decode.
        flip: also look at the mirrored picture, and take the mean of both.
        features: also collect the features of every file, [files, D] of this D.
        familiarity: marks photos like none of the classes; the engine gives features then.
        on_batch: called after every batch with the files done and how many of them failed; it may raise to stop.
    """

    def __init__(
        self,
        photos: PhotoReader,
        engine,
        rows: RowFormat,
        *,
        workers: int,
        flip: bool = False,
        features: int | None = None,
        familiarity: Familiarity | None = None,
        on_batch: Callable[[int, int], None] = lambda done, failed: None,
    ):
        self._photos, self._engine, self._rows = photos, engine, rows
        self._flip, self._features, self._familiarity, self._on_batch = flip, features, familiarity, on_batch
        self._needs_features = features is not None or familiarity is not None
        self._batch_size = engine.batch_size
        self._depth = 2 + -(-2 * workers // self._batch_size)
        self._buffers: list[np.ndarray] = []
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._clocks = [[0.0, 0.0, 0.0] for _ in range(workers)]
        self._infer_s = self._write_s = self._write_cpu_s = 0.0
        self._start_cpu_s = time.process_time()
        self._threads = [
            threading.Thread(target=self._decode_on, args=(clock,), name="decode", daemon=True)
            for clock in self._clocks
        ]
        for thread in self._threads:
            thread.start()

    def run(self, shards: Iterable[tuple[int, list[Entry]]]) -> Iterator[Shard]:
        """Classify shards, taken from the iterable one by one as there is room, and yield each when it is done."""
        batches = self._batches(shards)
        decoding: collections.deque[_Batch] = collections.deque()
        inferring: collections.deque[_Batch] = collections.deque()
        more = True
        while True:
            while more and len(decoding) < self._depth:
                batch = next(batches, None)
                if batch is None:
                    more = False
                else:
                    decoding.append(batch)
                    for slot, entry in enumerate(batch.entries):
                        self._photos.ahead(entry)
                        self._tasks.put((batch, slot))
            if decoding and len(inferring) < _IN_FLIGHT:
                batch = decoding.popleft()
                batch.decoded.wait()
                self._submit(batch)
                inferring.append(batch)
            elif inferring:
                batch = inferring.popleft()
                self._collect(batch)
                self._on_batch(len(batch.entries), len(batch.reasons))
                if len(batch.shard.lines) == len(batch.shard.entries):
                    yield batch.shard
            else:
                return

    def close(self) -> None:
        """Let the threads go; what they have not begun is dropped."""
        while True:
            try:
                self._tasks.get_nowait()
            except queue.Empty:
                break
        for _ in self._threads:
            self._tasks.put(None)
        until_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def wrote(self, seconds: float) -> None:
        """Add time that the caller spent on writing what it was given."""
        self._write_s += seconds

    def seconds(self) -> dict[str, float]:
        """Spent so far in each stage, summed over threads.

        Reading and writing: time on the clock. Decoding: time on a CPU. Inferring: time on a CPU where the engine
        shares the CPUs with the decoding threads, which makes it wait for them; else the time on the clock that
        this thread was busy with the engine or waited for it.
        """
        read_s, decode_s, threads_s = (sum(clock[stage] for clock in self._clocks) for stage in (0, 1, 2))
        infer_s = self._infer_s
        if self._engine.on_cpu:
            infer_s = max(0.0, time.process_time() - self._start_cpu_s - threads_s - self._write_cpu_s)
        return dict(zip(STAGES, (read_s, decode_s, infer_s, self._write_s), strict=True))

    def _batches(self, shards: Iterable[tuple[int, list[Entry]]]) -> Iterator[_Batch]:
        for index, entries in shards:
            shard = Shard(index, entries)
            if self._features is not None:
                shard.features = np.full((len(entries), self._features), np.nan, np.float32)
            for start in range(0, len(entries), self._batch_size):
                images = self._buffers.pop() if self._buffers else self._new_images()
                yield _Batch(shard, start, images)

    def _new_images(self) -> np.ndarray:
        """Memory for the pictures of a batch; pinned, so that a GPU copies from it while other threads go on."""
        side = self._photos.preprocessing.crop
        is_pinned = not self._engine.on_cpu and torch.cuda.is_available()
        return torch.empty((self._batch_size, side, side, 3), dtype=torch.uint8, pin_memory=is_pinned).numpy()

    def _decode_on(self, clock: list[float]) -> None:
        """One thread's work until ``close``."""
        while (task := self._tasks.get()) is not None:
            batch, slot = task
            try:
                start_s = time.perf_counter()
                data = self._photos.read(batch.entries[slot])
                clock[0] += time.perf_counter() - start_s
                read_s = time.thread_time()
                plain = self._photos.gpu.prepare(data) if self._photos.gpu is not None else None
                if plain is None:
                    self._view(batch, slot, data)
                else:
                    batch.for_gpu[slot] = plain, data
                clock[2] = time.thread_time()  # since the thread began
                clock[1] += clock[2] - read_s
            except Exception as error:
                batch.fail(slot, error)
            if batch.one_done():
                self._decode_on_gpu(batch)
                batch.decoded.set()

    def _view(self, batch: _Batch, slot: int, data: bytes | bytearray) -> None:
        if damage := self._photos.view(data, batch.images[slot]):
            batch.damage[slot] = damage

    def _decode_on_gpu(self, batch: _Batch) -> None:
        """Decode together what was left for it; what it cannot decode is for this thread after all."""
        left = sorted(batch.for_gpu.items())
        batch.for_gpu.clear()
        views = self._photos.gpu.views([plain for _, (plain, _) in left]) if left else ()
        for (slot, (_, data)), view in zip(left, views, strict=True):
            if view is not None:
                batch.images[slot] = view
            else:
                try:
                    self._view(batch, slot, data)
                except Exception as error:
                    batch.fail(slot, error)

    def _submit(self, batch: _Batch) -> None:
        start_s = time.perf_counter()
        if len(batch.reasons) < len(batch.entries):
            images = batch.images[: len(batch.entries)]
            batch.handles.append(self._engine.submit(images, lent=True))  # used again once all results are there
            if self._flip:
                batch.handles.append(self._engine.submit(np.ascontiguousarray(images[:, :, ::-1]), lent=True))
        self._infer_s += time.perf_counter() - start_s

    def _collect(self, batch: _Batch) -> None:
        """Wait for the engine, then write the batch's rows."""
        start_s = time.perf_counter()
        outputs = [handle.result() for handle in batch.handles]
        infer_s, cpu_s = time.perf_counter(), time.thread_time()
        self._infer_s += infer_s - start_s
        self._buffers.append(batch.images)
        shard = batch.shard
        count = len(batch.entries)
        if outputs:
            probs = sum(out.probs for out in outputs) / len(outputs)
            finite = np.isfinite(probs).all(axis=1)
            best = best_classes(np.where(finite[:, None], probs, 0), self._rows.topk)
            best_probs = np.take_along_axis(probs, best, axis=1).tolist()
            best = best.tolist()
            features = sum(out.features for out in outputs) / len(outputs) if self._needs_features else None
            unfamiliar = np.zeros(count, bool)
            if self._familiarity is not None:
                unfamiliar = self._familiarity.unfamiliar(probs, features)
        for slot, entry in enumerate(batch.entries):
            reason = batch.reasons.get(slot)
            if reason is None and not finite[slot]:
                reason = batch.reasons[slot] = "the model gave no finite probabilities"
            if reason is None:
                path, damage = os.fsdecode(entry.path), batch.damage.get(slot)
                status, line = self._rows.guessed(path, best[slot], best_probs[slot], damage, bool(unfamiliar[slot]))
            else:
                status, line = "error", self._rows.failed(os.fsdecode(entry.path), reason)
            shard.counts[status] += 1
            shard.lines.append(line)
        if shard.features is not None and outputs:
            good = [slot for slot in range(count) if slot not in batch.reasons]
            shard.features[batch.start : batch.start + count][good] = features[good]
        self._write_s += time.perf_counter() - infer_s
        self._write_cpu_s += time.thread_time() - cpu_s
