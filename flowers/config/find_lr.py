"""Flags of ``jobs/find_lr.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flowers.config.train import TrainConfig
from flowers.config.values import check_least
from flowers.errors import UsageError


@dataclass(frozen=True)
class FindLrConfig(TrainConfig):
    """Learning-rate range test: train some steps at growing rates and watch the loss. No model is kept.

    Takes all flags of jobs/train.py, so that it tests what will be trained; `--lr auto` there runs the same test.
    """

    GROUPS: ClassVar = TrainConfig.GROUPS | {"steps": "range test"}

    steps: int = 100
    """Steps of the test; more give a smoother curve."""
    min_lr: float | None = None
    """Learning rate of the first step. Default: a three-hundredth of --lr or of its default."""
    max_lr: float | None = None
    """Learning rate of the last step. Default: three hundred times --lr or its default."""
    output: Path | None = None
    """PNG file of the curve; a .json beside it holds the figures. Default: lr_finder.png in the run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, {"steps": 10})
        for flag, rate in (("--min-lr", self.min_lr), ("--max-lr", self.max_lr)):
            if rate is not None and not 0 < rate < float("inf"):
                raise UsageError(f"{flag}: got {rate}, expected a number above 0")
        if self.min_lr is not None and self.max_lr is not None and self.min_lr >= self.max_lr:
            raise UsageError(f"--min-lr {self.min_lr:g}: expected less than --max-lr {self.max_lr:g}")
        if self.output is not None and self.output.suffix.lower() != ".png":
            raise UsageError(f"--output: got {self.output.name}, expected a name ending in .png")
