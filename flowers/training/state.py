"""What a run is: its plan, fixed before the first step, and all that a step needs and changes."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers.data.loaders import Batch
from flowers.data.order import Order
from flowers.reports.metrics import Metrics
from flowers.stopping import StopRequest
from flowers.training.checkpoint import Progress
from flowers.training.history import History
from flowers.training.optimizer import WeightAverage, learning_rate


class TrainBatches(Protocol):
    """Where training batches come from: images or cached features."""

    def epoch(self, epoch: int, start_step: int) -> Iterable[Batch]:
        """This rank's micro-batches of an epoch, from an update on."""


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, fixed before its first step."""

    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    peak_lr: float
    num_classes: int
    schedule: str = "cosine"
    grad_accum_steps: int = 1
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_epochs: int = 0
    patience: int | None = None
    max_grad_norm: float | None = None
    eval_every: int | None = None
    log_interval: int = 10
    seed: int = 0

    def mixes(self, epoch: int) -> bool:
        """Whether images of an epoch (from 0) are blended."""
        return epoch < self.mix_epochs and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.epochs * self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Learning rate of an update."""
        return learning_rate(
            step,
            peak=self.peak_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            schedule=self.schedule,
        )


@dataclass
class Run:
    """All that a step needs. ``network`` and ``optimizer`` are what Accelerate prepared."""

    accelerator: Accelerator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Callable[[Batch], Tensor]
    order: Order
    train: TrainBatches
    train_paths: Sequence[str]
    valid: Iterable[Batch]
    valid_images: int
    plan: Plan
    history: History
    timing: History
    stop: StopRequest
    save_checkpoint: Callable[[], None]
    save_best: Callable[[Metrics], None]
    save_every_steps: int | None = None
    save_every_s: float | None = None
    average: WeightAverage | None = None
    progress: Progress = field(default_factory=Progress)
    unread: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    last_metrics: Metrics | None = None
    saved_s: float = field(default_factory=time.monotonic)
    said_s: float = field(default_factory=time.monotonic)

    def averaged(self) -> contextlib.AbstractContextManager:
        """Inside the block the network has its averaged weights, where an average is kept."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()
