"""Flags of ``jobs/benchmark.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from flowers.config.values import check_least
from flowers.errors import UsageError
from flowers.flags import Flag
from flowers.machine import MAX_BATCH_SIZE


@dataclass(frozen=True)
class BenchmarkConfig:
    """Find the fastest engine, precision, batch size and number of workers for prediction on this machine.

    Times every engine that can run here on photos of the input, then the best ones in the whole pipeline from files to
    rows. It takes about a minute; run it while the machine is otherwise idle.
    """

    GROUPS: ClassVar = {
        "checkpoint": "model and photos",
        "engines": "what is tried",
    }
    """First field of each group of flags in --help, and its title."""
    must_exist: ClassVar = ("checkpoint", "input")
    """Fields of paths that are looked for before anything is imported."""

    checkpoint: Annotated[Path, Flag(takes="a model folder or run folder")]
    """Model folder, or a run folder (its best model)."""
    input: Annotated[Path, Flag(takes="a folder, list or archive")]
    """Photos like those to predict: folder, list file or archive."""
    images: int = 256
    """Photos to take from the input, the first ones; they are used repeatedly."""
    output: Path | None = None
    """JSON file of all figures. Default: none."""

    engines: tuple[str, ...] = ()
    """Engines to try, as in jobs/predict.py. Default: all but compile, which takes a minute to start."""
    precisions: tuple[str, ...] = ()
    """Precisions to try. Default: all that each engine has here."""
    batch_sizes: tuple[int, ...] = (8, 32, 128)
    """Batch sizes to try."""
    workers: tuple[int, ...] = ()
    """Numbers of reading and decoding threads to try. Default: half the available CPUs, all, and twice as many."""
    seconds: float = 2.0
    """Seconds per measurement."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds: got {self.seconds}, expected a number above 0")
        check_least(self, {"images": 1, "batch_sizes": 1, "workers": 1})
        if max(self.batch_sizes, default=1) > MAX_BATCH_SIZE:
            raise UsageError(f"--batch-sizes: got {max(self.batch_sizes)}, expected at most {MAX_BATCH_SIZE}")
        if not self.batch_sizes:
            raise UsageError("--batch-sizes: got none, expected some, such as 8 32")
