"""Learning rate, view size, mixing and seeds over a run: functions of the step or the epoch alone.

They keep no state, so a resumed run and a run with another number of processes follow the same curves.
"""

import math
from dataclasses import dataclass

import numpy as np

from flowers.config.train import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to ``floor``; or, with shape "constant", the peak rate from there on.

    Source: Loshchilov and Hutter 2017, "SGDR", arXiv:1608.03983 (the cosine, without restarts).
    """

    peak: float
    warmup_steps: int
    total_steps: int
    shape: str = "cosine"
    floor: float = 0.0

    def lr(self, step: int) -> float:
        """Learning rate of an update; the first is 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        if self.shape == "constant":
            return self.peak
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + (self.peak - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """The learning rates of a run; the warm-up takes at most half of it.

    A rate that ``--lr auto`` found below ``--min-lr`` stays as it is.
    """
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 2)
    floor = min(config.min_lr, config.lr)
    return Schedule(config.lr, warmup_steps, total_steps, config.schedule, floor)


def mixes(config: TrainConfig, epoch: int) -> bool:
    """True if mixup or CutMix applies in an epoch (from 0)."""
    return epoch < config.epochs - config.mix_off_epochs and (config.mixup_alpha > 0 or config.cutmix_alpha > 0)


def view_sizes(config: TrainConfig) -> list[int]:
    """Side of the training views in pixels, epoch by epoch: growing in steps of 16 from first_train_size to train_size.

    Small views are a fast and strong augmentation to begin with; the last quarter of the epochs, or the last of a few,
    sees the full size.

    Source: Tan and Le 2021, EfficientNetV2, arXiv:2104.00298, section 4.
    """
    last = config.train_size
    first = config.first_train_size or last
    growing = max(1, min(round(0.75 * config.epochs), config.epochs - 1))
    share = [min(1.0, epoch / growing) for epoch in range(config.epochs)]
    steps = [max(first, 16 * round((first + (last - first) * done) / 16)) for done in share]
    return [last if done == 1 else min(last, step) for done, step in zip(share, steps, strict=True)]


def step_seed(*key: int) -> int:
    """A well mixed seed below 2**63 for torch's generators, from (seed, step, micro_step, rank)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
