"""Flags of ``jobs/benchmark.py``."""

from dataclasses import dataclass
from pathlib import Path

from flowers.errors import UsageError


@dataclass(frozen=True)
class BenchmarkConfig:
    """Find out how this machine predicts fastest: which engine, precision, batch size and number of workers.

    Every engine that can run here is tried on photos of the input; then the best ones in the whole pipeline, from
    files to rows. Nothing is kept but the figures. It takes about a minute; start it while nothing else runs.
    """

    checkpoint: Path
    """Model bundle, or a run folder (its best model)."""
    input: Path
    """Photos such as those to be predicted: folder, list file or .tar."""
    output: Path | None = None
    """All figures as JSON."""
    config: Path | None = None
    """YAML file of defaults for these flags."""

    images: int = 256
    """Photos to take from the input, the first ones; they are used again and again."""
    engines: tuple[str, ...] = ()
    """Engines to try, as in jobs/predict.py; default: all but compile, which takes a minute to start."""
    precisions: tuple[str, ...] = ()
    """Precisions to try; default: all that an engine has here."""
    batch_sizes: tuple[int, ...] = (8, 32, 128)
    """Batch sizes to try."""
    workers: tuple[int, ...] = ()
    """Numbers of reading and decoding threads to try; default: half the CPUs, as many, and twice as many."""
    seconds: float = 2.0
    """Time for each measurement."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds: got {self.seconds}, expected a number above 0")
        for flag, values in (("images", [self.images]), ("batch-sizes", self.batch_sizes), ("workers", self.workers)):
            if any(value < 1 for value in values):
                raise UsageError(f"--{flag}: got {min(values)}, expected at least 1")
        if not self.batch_sizes:
            raise UsageError("--batch-sizes: got none, expected some, such as 8 32")
