"""Threads that compute chunks of a fixed number of images, so that an image's bits depend on nothing beside it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, local

import numpy as np
import torch

from flowers.engines.torch_engine import Infer


class Pool:
    """Threads that each run the network on chunks of a fixed number of images.

    Args:
        start: called once by each thread, gives its function from images to outputs.
        chunk: images per call.
        threads: how many.
        size: side of the images in pixels, for the first call, which shows whatever is wrong (and compiles).
    """

    def __init__(self, start: Callable[[], Infer], chunk: int, threads: int, size: int):
        self.chunk, self.size = chunk, size
        self._start, self._own = start, local()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        torch_threads = torch.get_num_threads()
        barrier = Barrier(threads)  # so that each of them starts now
        try:
            self.submit(np.zeros((chunk, size, size, 3), np.uint8)).result()
            for ready in [self._executor.submit(self._get_ready, barrier) for _ in range(threads)]:
                ready.result()
        except BaseException:
            barrier.abort()  # where the system gives no more threads, those that are there wait for them
            self.close()
            raise
        finally:
            torch.set_num_threads(torch_threads)  # ours compute alone, which torch takes for a rule for new threads

    def submit(self, images: np.ndarray) -> Future:
        """A future of [features] or [features, probs]; the images must not change until then."""
        return self._executor.submit(self._run, images)

    def close(self) -> None:
        """Stop the threads; what has not begun is dropped."""
        self._executor.shutdown(cancel_futures=True)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        return self._get_ready()(images)

    def _get_ready(self, barrier: Barrier | None = None) -> Infer:
        if not hasattr(self._own, "infer"):
            self._own.infer = self._start()
        if barrier is not None:
            barrier.wait()
        return self._own.infer


def run_all(pool: Pool, images: np.ndarray | list[np.ndarray]) -> list[np.ndarray]:
    """Features and probs of any number of images."""
    if not len(images):
        return [np.empty((0, 0), np.float32)] * 2
    return joined([pool.submit(chunk) for chunk in cut(np.asarray(images), pool.chunk, lent=True)], len(images))


def joined(futures: list[Future], count: int) -> list[np.ndarray]:
    """The outputs of the first ``count`` images of some chunks."""
    columns = zip(*[future.result() for future in futures], strict=True)
    return [np.concatenate(column)[:count] for column in columns]


def cut(images: np.ndarray, chunk: int, lent: bool) -> list[np.ndarray]:
    """Cut images into arrays of ``chunk`` each, the last one filled up with black ones.

    Args:
        lent: full chunks are parts of ``images``, which nobody changes until they are computed; else they are copies.
    """
    parts = [images[first : first + chunk] for first in range(0, len(images), chunk)]
    return [part if lent and len(part) == chunk else _filled_up(part, chunk) for part in parts]


def _filled_up(part: np.ndarray, chunk: int) -> np.ndarray:
    block = np.empty((chunk, *part.shape[1:]), np.uint8)
    block[: len(part)] = part
    block[len(part) :] = 0
    return block
