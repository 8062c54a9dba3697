"""The order of images: a pure function of seed and epoch, whatever the number of processes or earlier starts.

The permutation of an epoch depends on (seed, epoch) only. Position p of it goes to rank p mod world_size, and
the augmentation of a draw depends on (seed, epoch, sample index, occurrence) only. So one process and N processes
with the same global batch see the same images with the same augmentation, and a resumed run continues with exactly
the next image. A position in an epoch is one number: the step.

All randomness comes from Philox 4x64, a counter-based generator whose raw stream is fixed by its definition
(Salmon et al. 2011) and which NumPy promises to keep (NEP 19); shuffling is our own, a stable sort of raw 64-bit
keys, because NumPy does not promise to keep ``Generator.permutation``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowers import console
from flowers.errors import UsageError

# Streams of one (seed, epoch) that must never overlap; they stand in the highest word of the counter.
_PERMUTATION, _WEIGHTED, _SAMPLE = 1, 2, 3


class Draw(NamedTuple):
    """One place in a batch, filled.

    Attributes:
        index: which sample.
        epoch: which epoch's augmentation.
        position: place in the epoch, counted over all ranks.
        weight: 1 for a real image; 0 for one that only fills a batch up to its shape and must not count.
        occurrence: how often this sample was drawn before in this epoch; above 0 only in weighted sampling.
    """

    index: int
    epoch: int
    position: int
    weight: float
    occurrence: int = 0


def sample_rng(seed: int, epoch: int, index: int, occurrence: int = 0) -> np.random.Generator:
    """The generator that augments one sample in one epoch, whoever draws it.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        epoch: from 0.
        index: of the sample, from 0.
        occurrence: how often the sample came before in this epoch, so that repeats get views of their own.
    """
    return np.random.Generator(_philox(seed, epoch, _SAMPLE, index, occurrence))


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a training run.

    Attributes:
        num_samples: images in the training set, which is also the number of draws in an epoch.
        seed: of the run.
        batch_size: images per process and micro-step.
        world_size: processes.
        grad_accum_steps: micro-steps whose gradients make one step.
        sample_weights: [num_samples] relative chances to be drawn, float, not negative; without them every
            sample comes exactly once an epoch.
    """

    num_samples: int
    seed: int
    batch_size: int
    world_size: int = 1
    grad_accum_steps: int = 1
    sample_weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "world_size", "grad_accum_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed: got {self.seed}, expected 0 to 2**64 - 1")
        weights = self.sample_weights
        if weights is not None and (
            np.shape(weights) != (self.num_samples,)
            or not np.all(np.isfinite(weights))
            or np.min(weights) < 0
            or np.max(weights) == 0
        ):
            raise ValueError(
                f"sample_weights: got shape {np.shape(weights)}, expected {self.num_samples} finite weights, "
                "none negative, not all zero"
            )

    @property
    def global_batch_size(self) -> int:
        """Images per step, over all ranks and micro-steps."""
        return self.batch_size * self.world_size * self.grad_accum_steps

    @property
    def batch_arithmetic(self) -> str:
        """The factors of the global batch size, in words."""
        processes = console.counted(self.world_size, "process", "processes")
        return f"{self.batch_size} x {processes} x {console.counted(self.grad_accum_steps, 'micro-step')}"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates per epoch; the last one may hold fewer real images."""
        return -(-self.num_samples // self.global_batch_size)

    def real_in_step(self, step_in_epoch: int) -> int:
        """Images of weight 1 in a step, over all ranks: what the step's loss sum is divided by."""
        left = self.num_samples - step_in_epoch * self.global_batch_size
        return max(0, min(self.global_batch_size, left))

    def permutation(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in order.

        Without weights every index comes exactly once. With weights an index is drawn k or k + 1 times, where k is
        the whole part of its share of the draws, and num_samples * weight / sum(weights) times on average
        (systematic resampling of a shuffled list): without bias, and with less noise than independent draws.

        Returns:
            int64 [num_samples]
        """
        shuffled = _shuffle(np.arange(self.num_samples), self.seed, epoch, _PERMUTATION)
        if self.sample_weights is None:
            return shuffled
        stream = _philox(self.seed, epoch, _WEIGHTED)
        offset = int(stream.random_raw() >> 11) / 2**53
        edges = np.cumsum(np.asarray(self.sample_weights, dtype=np.float64)[shuffled])
        edges *= self.num_samples / edges[-1]
        hit = np.searchsorted(edges, np.arange(self.num_samples) + offset, side="right")
        last = np.flatnonzero(np.diff(edges, prepend=0.0) > 0)[-1]  # rounding must not reach past it
        return _shuffle(shuffled[np.minimum(hit, last)], self.seed, epoch, _WEIGHTED)

    def micro_batches(self, epoch: int, rank: int, start_step: int = 0) -> Iterator[list[Draw]]:
        """The batches of one rank: grad_accum_steps lists a step, each of exactly batch_size draws.

        Step s covers positions s * global_batch_size onwards; of these, rank r takes every world_size-th from the
        r-th on, and cuts them into its micro-steps. The last step is filled up with draws of weight 0 that repeat the
        epoch from its start, so that shapes never change.

        Args:
            start_step: first step wanted, to resume in the middle of an epoch.
        """
        permutation = self.permutation(epoch)
        occurrences = _occurrences(permutation)
        for first in range(start_step * self.global_batch_size, self.num_samples, self.global_batch_size):
            local = range(first + rank, first + self.global_batch_size, self.world_size)
            for micro_step in range(self.grad_accum_steps):
                batch = []
                for position in local[micro_step * self.batch_size : (micro_step + 1) * self.batch_size]:
                    place = position % self.num_samples
                    weight = 1.0 if position < self.num_samples else 0.0
                    batch.append(Draw(int(permutation[place]), epoch, position, weight, int(occurrences[place])))
                yield batch


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[list[Draw]]:
    """The batches of one rank for an evaluation: every sample exactly once over all ranks.

    Sample i goes to rank i mod world_size. All ranks get the same number of batches and all batches the same shape,
    as collective calls and compiled networks need; the gaps are filled with draws of weight 0.
    """
    for first in range(0, num_samples, batch_size * world_size):
        positions = range(first + rank, first + batch_size * world_size, world_size)
        yield [
            Draw(position if position < num_samples else 0, 0, position, float(position < num_samples))
            for position in positions
        ]


def class_balance(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights for ``Order.sample_weights`` under which every class is drawn equally often.

    Args:
        targets: [N] int64 class indices.

    Returns:
        [N] float64, 1 / (size of the sample's class).
    """
    sizes = np.bincount(targets, minlength=num_classes)
    return 1.0 / sizes[targets]


def _philox(seed: int, epoch: int, stream: int, index: int = 0, occurrence: int = 0) -> np.random.Philox:
    """Key: (seed, epoch). Counter: a run of 2**64 blocks of its own for every (index, occurrence, stream)."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, index, occurrence, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def _shuffle(items: np.ndarray, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Sort by raw 64-bit keys; the occurrence word 1 keeps them apart from other use of the stream."""
    keys = _philox(seed, epoch, stream, occurrence=1).random_raw(len(items))
    return items[np.argsort(keys, kind="stable")]


def _occurrences(permutation: np.ndarray) -> np.ndarray:
    """For each position how often its index stood before: [5, 2, 5, 5] -> [0, 0, 1, 2]."""
    by_index = np.argsort(permutation, kind="stable")
    ordered = permutation[by_index]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    run_start = np.repeat(starts, np.diff(starts, append=len(ordered)))
    occurrences = np.empty(len(permutation), dtype=np.int64)
    occurrences[by_index] = np.arange(len(permutation)) - run_start
    return occurrences
