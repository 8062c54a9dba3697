"""Many images side by side in threads: decoders and torch release Python's lock while they work."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items under way or waiting to be taken, for each thread


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Apply a function to every item in threads, and give the results in the order of the items, in bounded memory.

    Each thread computes alone: torch's own threads would only compete with the others.

    Raises:
        Whatever ``function`` raises, at its item's turn; items that nobody has begun are dropped then.
    """
    threads = max(1, threads)
    torch_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images", initializer=_compute_alone)
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch_threads)  # torch takes what our threads chose for a rule for new threads


def _compute_alone() -> None:
    torch.get_num_threads()  # the first look takes over torch's setting; later ones leave ours alone
    torch.set_num_threads(1)
