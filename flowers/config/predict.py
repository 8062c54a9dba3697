"""Flags of ``jobs/predict.py``."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from flowers.config.values import check_least, check_sizes, given, read_values
from flowers.errors import UsageError
from flowers.files import MAX_NAME_BYTES
from flowers.flags import Flag

OUTPUT_KINDS = {".csv": "csv", ".csv.gz": "csv", ".jsonl": "jsonl", ".parquet": "jsonl", ".xlsx": "jsonl"}
"""What --output may end in, and the kind of lines that parts of it are kept as."""
_OF_TABLE = {
    "from_table", "input", "output", "excel", "columns", "class_names", "min_prob", "strict", "overwrite",
    "report", "copy_to", "link_to", "thumbnails",
}  # fmt: skip
"""Fields that need no network, and so go with --from."""
_KEEPS_ROWS = ("update", "retry_errors", "watch")
"""Fields with which rows of the finished table are kept."""


def suffix_of(table: Path) -> str:
    """The ending of a table's name, one of ``OUTPUT_KINDS``."""
    return next(suffix for suffix in OUTPUT_KINDS if table.name.lower().endswith(suffix))


@dataclass(frozen=True)
class PredictConfig:
    """Classify every photo of folders, lists and archives. The result has exactly one row per file.

    After a crash or a stop, run the same command again: it does only what is missing.
    """

    GROUPS: ClassVar = {
        "checkpoint": "model and photos",
        "output": "results",
        "from_table": "a finished table",
        "report": "also written",
        "shard": "array jobs",
        "engine": "machine",
    }
    """First field of each group of flags in --help, and its title."""

    checkpoint: Annotated[Path | None, Flag(takes="a model folder, a run folder or an exported file")] = None
    """Model folder, a run folder (its best model), or an exported .onnx or .xml file. It and --input are needed, but
    for --from."""
    input: Annotated[tuple[Path, ...], Flag(takes="folders, lists, archives or images")] = ()
    """Folder with all below it, list file (one path per line, or a CSV with a path column; - for the standard input),
    .tar, .zip or .tgz archive, image, pattern in quotes ('photos/*.jpg'), or the address of a folder, list or image
    (s3://BUCKET/FOLDER, https://HOST/LIST.txt; needs the extra remote), whose rows' paths are addresses; several may be
    given, and then the rows' paths start from the current folder."""
    ext: tuple[str, ...] = ()
    """File extensions to treat as photos (--ext jpg png; --ext '' accepts every file). Default: the extensions of all
    image formats."""
    exclude: tuple[str, ...] = ()
    """Leave out files and folders that fit one of these patterns, by name or by path below the input:
    --exclude '*_small.jpg' thumbs."""
    by_content: bool = False
    """Also take files with another ending, or none, that begin like a picture of a known format."""
    on_damaged: Literal["mark", "ok", "error"] = "mark"
    """Photos that decode only in part or hold wrong checksums. mark: the row has its guesses, status damaged and what
    is wrong; ok: like any other row; error: like a file that cannot be read."""
    max_pixels: int = 100_000_000
    """Photos of more pixels get status error; some formats get half or a quarter of this. Each takes up to 20 bytes of
    memory per pixel."""

    output: Path | None = None
    """File of results: .csv, .csv.gz, .jsonl, .parquet or .xlsx (Excel; needs the extra excel). A .json beside it says
    how they were made. Default: predictions.csv; with --from, none."""
    excel: bool = False
    """Begin a .csv with a byte-order mark, so that Excel reads names with accents correctly."""
    thumbnails: bool = False
    """Begin each row of an .xlsx with a small picture of the photo, which is read once more for it."""
    columns: Annotated[tuple[str, ...], Flag(takes="names of columns")] = ()
    """Columns of the table, in this order (--columns path,label,prob); path must be one of them. Default: all."""
    class_names: Annotated[Path | None, Flag(takes="a JSON file")] = None
    """JSON file that maps class folders to display names, for the label columns. Default: the names in the model."""
    topk: int = 5
    """Guesses per row, best first."""
    min_prob: float | Literal["auto"] | None = None
    """Mark a row as unsure if its best probability is below this. auto: the threshold that training stored in the
    model, at which 99% of the other answers were right on the validation images. Default: 0; with --from, the rows stay
    as they are."""
    unfamiliar: Literal["keep", "mark"] = "mark"
    """Photos that are like none of the classes. mark: the row has its guesses and status unfamiliar, which 2% of other
    photos get too; keep: like any other row. Models of earlier versions and exported files mark none."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip: average over the photo and its mirror image, which takes twice the time."""
    strict: bool = False
    """Exit with code 3 if any file failed. Without it a failed file only has status error in its row."""
    list_only: bool = False
    """Only list the files of a big input: the tasks of an array, or of srun, that start later take this list."""
    overwrite: bool = False
    """Replace an output, or unfinished work, that was made from other files, flags or another model."""

    from_table: Annotated[Path | None, Flag("--from", takes="a finished table")] = None
    """In place of --checkpoint: take the answers from this finished table, without the network. Rows are marked anew
    by --min-prob; --output, --copy-to, --link-to and --report write them. --input is needed only if the photos have
    moved since."""
    update: bool = False
    """On a finished table: classify photos that are new or have changed, drop those that are gone, and keep all other
    rows. The result is that of a fresh run."""
    retry_errors: bool = False
    """On a finished table: read the photos whose rows are errors once more, and keep all other rows."""
    watch: Annotated[tuple[float, ...] | None, Flag(bare=True)] = None
    """Update the table every so many seconds (default 60) until stopped. Photos that are still being written wait for
    the next round."""

    report: bool = False
    """Write an HTML page beside the output: counts, photos to check and correct, a gallery, errors. It saves
    corrections.csv."""
    embeddings: Path | None = None
    """Write the feature vector of every file to this .npy file: float32, in the order of the rows, NaN where a file
    failed."""
    copy_to: Path | None = None
    """Copy each photo into a folder of its class below this folder."""
    link_to: Path | None = None
    """Like --copy-to, with symbolic links."""

    shard: str | None = None
    """I/N: do every N-th shard starting at shard I (0 to N-1), as one task of an array job. The last task joins all
    shards."""
    merge: bool = False
    """Only join the shards that the tasks of an array job have done."""
    shard_size: int | None = None
    """Files per shard, the unit of restart. Default: about 64 shards, of up to 64 batches each."""

    engine: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = "auto"
    """What runs the network (onnxruntime: an exported .onnx). auto: the fastest engine that is installed."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network. auto: chosen for the engine, and printed. In bf16 the best class stays, but close
    guesses after it may change places and probabilities move by up to about 0.03; give float32 where that matters."""
    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per batch."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where photos are decoded. gpu: ordinary JPEGs on the GPU (NVIDIA's; needs the extra gpu), for machines whose CPUs
    are too few to keep it busy. Pixels differ a little from the CPU's, and damage within a JPEG goes unnoticed."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Threads per process that read and decode photos. Default: the available CPUs."""

    def __post_init__(self) -> None:
        read_values(self)
        if self.from_table is not None:
            self._check_from()
        else:
            self._fill_in()
        self.array_task()
        check_least(self, {"topk": 1, "batch_size": 1, "max_pixels": 1, "workers": 1, "shard_size": 1})
        check_sizes(self.batch_size)  # its --workers are threads
        if self.min_prob not in (None, "auto") and not 0 <= self.min_prob <= 1:
            raise UsageError(f"--min-prob: got {self.min_prob}, expected a probability from 0 to 1, or auto")
        for flag, table in (("--output", self.output), ("--from", self.from_table)):
            if table is not None and not table.name.lower().endswith(tuple(OUTPUT_KINDS)):
                raise UsageError(f"{flag}: got {table.name}, expected a name ending in {', '.join(OUTPUT_KINDS)}")
        name_bytes = len(os.fsencode(self.output.name)) if self.output is not None else 0
        most_bytes = MAX_NAME_BYTES - len(".stamps")  # the longest ending of what lies beside it
        if name_bytes > most_bytes:
            raise UsageError(
                f"--output: a name of {name_bytes} bytes, expected at most {most_bytes}; give a shorter one"
            )
        if self.embeddings is not None and self.embeddings.suffix != ".npy":
            raise UsageError(f"--embeddings: got {self.embeddings.name}, expected a name ending in .npy")
        if self.copy_to and self.link_to:
            raise UsageError("--copy-to and --link-to: choose one of the two")
        if self.merge and self.shard:
            raise UsageError("--merge joins all shards: leave --shard out")
        if self.list_only and (self.merge or self.shard):
            raise UsageError("--list-only only lists the files: leave --shard and --merge out")
        if self.excel and self.suffix() != ".csv":
            raise UsageError(f"--excel: got --output {self.output.name}, expected a name ending in .csv")
        if self.thumbnails and self.suffix() != ".xlsx":
            raise UsageError(f"--thumbnails: got --output {self.output.name}, expected a name ending in .xlsx")
        self._check_columns()
        self._check_update()

    def _fill_in(self) -> None:
        """What has to be there, and the defaults, of a job that runs the network."""
        missing = [flag for flag, value in (("--checkpoint", self.checkpoint), ("--input", self.input)) if not value]
        if missing:
            said = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            raise UsageError(f"{said}, expected --checkpoint MODEL --input PHOTOS, or --from TABLE")
        for name, value in (("output", Path("predictions.csv")), ("min_prob", 0.0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_from(self) -> None:
        if others := given(self, [field.name for field in fields(self) if field.name not in _OF_TABLE]):
            raise UsageError(f"--from takes the answers of a finished table, without the network: leave out {others}")
        if self.output is None and (of_output := given(self, ("columns", "excel", "thumbnails"))):
            raise UsageError(f"{of_output}: about the new table; add --output")
        if not (self.output or self.copy_to or self.link_to or self.report):
            raise UsageError("--from: nothing to write; add --output, --copy-to, --link-to or --report")
        if self.input and not (self.copy_to or self.link_to or self.report or self.thumbnails):
            raise UsageError(
                "--input: --from looks at photos for --copy-to, --link-to, --report and --thumbnails only; leave it out"
            )

    def _check_columns(self) -> None:
        names = self.chosen_columns()
        if self.columns and "path" not in names:
            raise UsageError(f"--columns: got {','.join(names)}, expected path among them")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"--columns: got {twice[0]} twice, expected each column once")
        for flag, columns in self.columns_needed().items() if names else ():
            if missing := [name for name in columns if name not in names]:
                raise UsageError(f"{flag} reads the finished table: add {','.join(missing)} to --columns")

    def columns_needed(self) -> dict[str, tuple[str, ...]]:
        """The columns of a finished table that each of the given flags reads."""
        sorts = ("status", "label", "class")
        needed = {("report",): (*sorts, "prob", "error"), ("copy_to", "link_to"): sorts, _KEEPS_ROWS: ("status",)}
        return {flags: columns for names, columns in needed.items() if (flags := given(self, names))}

    def _check_update(self) -> None:
        if self.watch is not None and (len(self.watch) > 1 or not all(seconds > 0 for seconds in self.watch)):
            raise UsageError(f"--watch: got {' '.join(map(str, self.watch))}, expected one number of seconds, or none")
        if self.watch is not None and Path("-") in self.input:
            raise UsageError("--watch lists the input in each round, and the standard input comes once: give a file")
        alone = given(self, ("overwrite", "merge", "list_only", *(("shard",) if self.watch is not None else ())))
        if alone and self.updates:
            raise UsageError(f"{given(self, _KEEPS_ROWS)} keeps rows of the finished table: leave {alone} out")

    @property
    def watch_s(self) -> float | None:
        """Seconds between the rounds of --watch; None without it."""
        return None if self.watch is None else (self.watch or (60.0,))[0]

    @property
    def follows(self) -> bool:
        """True if the table follows the folder: --update or --watch."""
        return self.update or self.watch is not None

    @property
    def updates(self) -> bool:
        """True if rows of a finished table are kept."""
        return self.follows or self.retry_errors

    @property
    def must_exist(self) -> tuple[str, ...]:
        """Fields of paths that are looked for before anything is imported; --merge need not see the photos."""
        return ("checkpoint",) if self.merge else ("checkpoint", "input")

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
            raise UsageError(f"--shard: got {self.shard}, expected I/N with I from 0 to N - 1, such as 0/8")
        return int(index), int(count)

    def chosen_columns(self) -> list[str]:
        """The names of --columns; none stand for all."""
        return [name.strip() for names in self.columns for name in names.split(",") if name.strip()]

    def suffix(self) -> str:
        """The ending of --output, one of ``OUTPUT_KINDS``."""
        return suffix_of(self.output)

    def extensions(self) -> frozenset[str] | None:
        """--ext in lower case and with its dot; None stands for those of all images."""
        if not self.ext:
            return None
        given = [part.strip().lstrip("*.").lower() for ext in self.ext for part in ext.split(",")]
        return frozenset(f".{ext}" if ext else "" for ext in given)
