"""Batches on their way to the device, and how long the loop waits for them."""

import time
from collections.abc import Iterable, Iterator

import torch

from flowers.data.loaders import Batch


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to the device, on a GPU one ahead of the batch in work and beside it."""
    if device.type != "cuda":
        for batch in batches:
            yield Batch(*(tensor.to(device) for tensor in batch))
        return
    stream = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in moved:
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = moved
    if ahead is not None:
        yield ahead


class Stopwatch:
    """Counts the seconds that somebody waits for the next item of an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, items: Iterable[Batch]) -> Iterator[Batch]:
        """The same items; waiting for each is counted."""
        iterator = iter(items)
        while True:
            asked_s = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.monotonic() - asked_s
            yield item
