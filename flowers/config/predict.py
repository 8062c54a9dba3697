"""Flags of ``jobs/predict.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from flowers.config.paths import accept_strings
from flowers.errors import UsageError
from flowers.flags import Flag

OUTPUT_KINDS = {".csv": "csv", ".csv.gz": "csv", ".jsonl": "jsonl", ".parquet": "jsonl"}
"""What --output may end in, and the kind of lines that parts of it are kept as."""


@dataclass(frozen=True)
class PredictConfig:
    """Classify every photo of a folder, a list or tar archives: one row each, whatever happens on the way.

    Start the same command again after a crash or a stop: it does what is missing. Once all is done it says so.
    """

    checkpoint: Path
    """Model bundle, a run folder (its best model), or what jobs/export.py wrote (.onnx or .xml)."""
    input: Path
    """Folder (with all below it), list file (one path a line, or CSV with path), .tar, or one image."""
    output: Path = Path("predictions.csv")
    """.csv, .csv.gz, .jsonl or .parquet; what was done goes beside it into a .json."""
    config: Path | None = None
    """YAML file of defaults for these flags."""

    topk: int = 5
    """Guesses a row, best first."""
    min_prob: float = 0.0
    """Below this best probability a row is called unsure."""
    tta: Literal["none", "flip"] = "none"
    """flip: mean over the photo and its mirror image; takes twice the time."""
    ext: tuple[str, ...] = ()
    """Take files with these endings for photos (--ext jpg png; --ext '' takes all); default: those of all images."""
    strict: bool = False
    """Exit with 3 when any file failed; without it a failed file is just its row."""
    report: bool = False
    """Also write a page to look at beside the output: counts, a gallery with the least certain first, errors."""
    embeddings: Path | None = None
    """Also write the features of every file: a .npy, float32, in the rows' order, NaN where a file failed."""
    copy_to: Path | None = None
    """Copy the photos into one folder a class below this one."""
    link_to: Path | None = None
    """As --copy-to, with symbolic links."""

    shard: str | None = None
    """I/N: do every N-th shard from shard I on (0 to N-1), as one task of an array; the last task joins them."""
    merge: bool = False
    """Only join the shards that the tasks of an array have done."""
    overwrite: bool = False
    """Replace an output, or unfinished work, that was made from other files, flags or model."""
    shard_size: int | None = None
    """Files a shard, the unit of restart; default: about 64 shards, of up to 64 batches."""

    engine: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = "auto"
    """What runs the network (onnxruntime: an exported .onnx); auto takes the fastest that is there and says which."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per batch."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Threads that read and decode, per process; default: the CPUs it may use."""

    def __post_init__(self) -> None:
        accept_strings(self)
        self.array_task()
        for flag, value in (("--topk", self.topk), ("--batch-size", self.batch_size)):
            if value < 1:
                raise UsageError(f"{flag}: got {value}, expected at least 1")
        for flag, value in (("--workers", self.workers), ("--shard-size", self.shard_size)):
            if value is not None and value < 1:
                raise UsageError(f"{flag}: got {value}, expected at least 1")
        if not 0 <= self.min_prob <= 1:
            raise UsageError(f"--min-prob: got {self.min_prob}, expected a probability from 0 to 1")
        if not self.output.name.lower().endswith(tuple(OUTPUT_KINDS)):
            raise UsageError(f"--output: got {self.output.name}, expected a name ending in {', '.join(OUTPUT_KINDS)}")
        if self.embeddings is not None and self.embeddings.suffix != ".npy":
            raise UsageError(f"--embeddings: got {self.embeddings.name}, expected a name ending in .npy")
        if self.copy_to and self.link_to:
            raise UsageError("--copy-to and --link-to: choose one of the two")
        if self.merge and self.shard:
            raise UsageError("--merge joins all shards: leave --shard out")

    def array_task(self) -> tuple[int, int]:
        """(I, N) of --shard; (0, 1) without it.

        Raises:
            UsageError: it is not I/N with I from 0 to N-1.
        """
        if self.shard is None:
            return 0, 1
        index, slash, count = self.shard.partition("/")
        if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise UsageError(f"--shard: got {self.shard!r}, expected I/N, such as 0/8")
        if not int(index) < int(count):
            raise UsageError(f"--shard: got {self.shard}, expected a first number from 0 to {int(count) - 1}")
        return int(index), int(count)

    def suffix(self) -> str:
        """Which of ``OUTPUT_KINDS`` --output ends in."""
        return next(suffix for suffix in OUTPUT_KINDS if self.output.name.lower().endswith(suffix))

    def extensions(self) -> frozenset[str] | None:
        """--ext in lower case and with its dot; None stands for those of all images."""
        if not self.ext:
            return None
        return frozenset(f".{ext.lower().lstrip('.')}" if ext else "" for ext in self.ext)
