"""What training costs beside the network's passes, and its loader beside decoding and augmenting.

    python tests/bench/bench_training_overhead.py                   # the real photos
    python tests/bench/bench_training_overhead.py --photos DIR --rounds 3

The loop is that of a run, ``Trainer.train_epoch``, on a batch that is there already, with EfficientNet-Lite0's modules,
on a pretended device: the passes, the optimizer's step and the arithmetic of the average (EMA) sleep, as the host does
while a GPU computes. What its thread takes of the CPU is compared with the shortest loop that trains, on the same
device.

The loader is that of a run, too, against as many processes that decode and augment the same images and do nothing else.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from bench_train_step import resident_trainer
from measuring import FLOWERS102, Row, photos_in, rate, run_alone, spread, take_turns

STEPS = 25
"""A turn's; the epochs of ``resident_trainer`` are no shorter, so that no turn validates."""
BATCH_SIZE = 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--photos", type=Path, default=FLOWERS102 / "photos")
    parser.add_argument("--batches", type=int, default=12, help="of 32 images for each loader process")
    parser.add_argument("--rounds", type=int, default=7)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    return [*loop(options.rounds), *loading(options.photos, options.batches, options.rounds)]


class EnoughError(Exception):
    """A turn is over."""


class ResidentBatches:
    """The same batch for every step of a turn."""

    def __init__(self, batches, batch):
        self.inputs, self._batch = batches.inputs, batch

    def epoch(self, epoch: int, start_step: int) -> Iterator:
        """A turn's batches."""
        for _ in range(STEPS):
            yield self._batch
        raise EnoughError


def loop(rounds: int) -> list[Row]:
    """What the loop of a run takes beside a plain one, without and with an average of the weights."""
    import torch
    from torch.nn.functional import cross_entropy

    from flowers import console
    from flowers.training.checkpoint import Progress

    flags = ["--model", "efficientnet_lite0", "--weights", "none", "--image-size", 32, "--train-size", 32]
    trainer, batch = resident_trainer([*flags, "-b", BATCH_SIZE, "--mixed-precision", "no"])
    network, optimizer, average = trainer.network, trainer.optimizer.optimizer, trainer.average
    inputs = trainer.batches.inputs
    trainer.batches = ResidentBatches(trainer.batches, batch)
    network.forward = pretended_forward(network)
    optimizer.step = lambda: time.sleep(0.001)

    def run(averaged: bool) -> float:
        trainer.progress, trainer.average = Progress(), average if averaged else None
        trainer.unread.clear()
        start_s = time.thread_time()
        with console.progress("train", STEPS * BATCH_SIZE) as meter, contextlib.suppress(EnoughError):
            trainer.train_epoch(meter)
        return time.thread_time() - start_s

    def plain() -> float:
        start_s = time.thread_time()
        for _ in range(STEPS):
            cross_entropy(network(inputs(batch)), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.thread_time() - start_s

    ways = {"plain": plain, "run": lambda: run(False), "averaged": lambda: run(True)}
    with mock.patch.object(torch, "_foreach_lerp_", return_value=None):
        seconds = take_turns(ways, rounds)
    plain_us = [1e6 * spent_s / STEPS for spent_s in seconds["plain"]]
    rows = []
    for way, with_average in (("run", "without EMA"), ("averaged", "with EMA, but for its arithmetic")):
        added_us = [1e6 * spent_s / STEPS - us for spent_s, us in zip(seconds[way], plain_us, strict=True)]
        rows.append(
            Row(
                f"training loop on a pretended device, EfficientNet-Lite0's modules, {with_average}",
                f"{statistics.median(added_us):.0f} us of CPU a step more ({spread(added_us)})",
                f"a plain loop of forward, loss, backward, step and zero_grad, {statistics.median(plain_us):.0f} us "
                f"({spread(plain_us)})",
            )
        )
    return rows


def pretended_forward(network) -> Callable:
    """A forward pass of 1 ms, whose backward pass takes 2 ms and gives the head's bias a gradient of zero."""
    import torch

    bias = [parameter for parameter in network.parameters() if parameter.requires_grad][-1]

    class Pretended(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images, bias):
            time.sleep(0.001)
            return torch.zeros(len(images), bias.numel())

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.002)
            return None, torch.zeros_like(bias)

    return lambda images: Pretended.apply(images, bias)


def loading(photos: Path, count: int, rounds: int) -> list[Row]:
    """The loader's batches, from files and from the cache, against the same number of processes without a loader."""
    import torch

    from flowers.data.augment import Augmentation
    from flowers.data.folders import Samples
    from flowers.data.image_cache import open_cache
    from flowers.data.loaders import TrainLoader, TrainViews
    from flowers.data.order import Order
    from flowers.machine import available_cpus

    torch.set_num_threads(1)
    workers, size = available_cpus(), 32
    count *= workers
    filling = min(2 * workers, count // 4)
    names = [str(path.relative_to(photos)) for path in photos_in(photos)][:256]
    samples = Samples(photos, names * -(-count * size // len(names)), np.zeros(count * size + len(names), np.int64))
    augmentation = Augmentation(224)
    order = Order(count * size, 0, size)
    batches = list(order.micro_batches(0, 0))
    rows = []
    for what, cache in (
        ("files", None),
        ("the image cache (--cache)", open_cache(samples, "ram", augmentation.cache_short_side)),
    ):
        views = TrainViews(samples, augmentation, 0, cache)
        loader = TrainLoader(samples, augmentation, order, rank=0, workers=workers, cache=cache)
        used_s: dict[str, list[float]] = {"alone": [], "loader": []}

        def alone(views=views, used_s=used_s) -> float:
            fork, results = multiprocessing.get_context("fork"), multiprocessing.SimpleQueue()
            shares = [batches[rank::workers] for rank in range(workers)]
            processes = [fork.Process(target=make_views, args=(views, share, results)) for share in shares]
            for process in processes:
                process.start()
            found = [results.get() for _ in processes]
            for process in processes:
                process.join()
            used_s["alone"].append(sum(cpu_s for _, cpu_s in found))
            return max(seconds for seconds, _ in found)

        def loaded(loader=loader, used_s=used_s) -> float:
            """From a batch after the loader has filled up to one before it runs dry: those come at its pace."""
            before_s = cpu_of_family()
            marks = [time.perf_counter() for _ in loader.epoch(0)][filling : count - filling]
            used_s["loader"].append(cpu_of_family() - before_s)
            return (marks[-1] - marks[0]) * count / (len(marks) - 1)

        seconds = take_turns({"loader": loaded, "alone": alone}, rounds)
        ratios = [a / b for a, b in zip(seconds["alone"], seconds["loader"], strict=True)]
        cpu_ms = {name: 1000 * statistics.median(values[-rounds:]) / (count * size) for name, values in used_s.items()}
        rows.append(
            Row(
                f"training views from {what} by {workers} loader processes",
                rate(count * size, seconds["loader"]),
                f"{statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%}) of {workers} processes that "
                f"only decode and augment, {rate(count * size, seconds['alone'])}; {cpu_ms['loader']:.2f} ms of CPU an "
                f"image against {cpu_ms['alone']:.2f}",
            )
        )
        del loader
    return rows


def make_views(views, batches: list, results) -> None:
    """In a process: time and CPU time of making these batches."""
    start_s, cpu_s = time.perf_counter(), time.process_time()
    for batch in batches:
        views.__getitems__(batch)
    results.put((time.perf_counter() - start_s, time.process_time() - cpu_s))


def cpu_of_family() -> float:
    """CPU seconds of this process and of its children that live."""
    ticks = 0
    for child in multiprocessing.active_children():
        ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
