"""Compare runs: flags that differ, figures, durations and training curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers import console
from flowers.config.compare import CompareConfig
from flowers.data.paths import readable
from flowers.errors import UsageError, system_reason
from flowers.flags import spelled
from flowers.parsing import read_yaml
from flowers.reports.calibration import wilson_interval
from flowers.reports.page import percent, write_page
from flowers.reports.plots import Line, Plot, lay_out
from flowers.reports.run_record import RunRecord

COLORS = ("blue", "vermillion", "green", "orange", "purple")
"""The colours of the curves; further runs use them again, dashed."""
OWN = {"output_dir", "resume", "log_with", "project", "run_name", "report"}
"""Flags that decide where and how a run is recorded, not its result."""


@dataclass(frozen=True)
class Run:
    """A run folder as read.

    Attributes:
        name: short, unlike those of the runs beside it.
        config: its resolved flags.
        record: its history.
    """

    name: str
    config: dict
    record: RunRecord


def compare(config: CompareConfig) -> int:
    """Print the tables and write the page.

    Returns:
        0.

    Raises:
        UsageError: some folders are no runs, or have not been validated yet; all of them are named.
        FlowersError: the page cannot be written.
    """
    runs = read_runs(config.runs)
    columns = ["run", "valid top1", "95% interval", "loss", "best epoch", "epochs", "time", "images/s"]
    results = [_result(run) for run in runs]
    flags = differences(runs)
    console.table("results", columns, results)
    if flags:
        console.table("what differs", ["flag", *(run.name for run in runs)], flags)
    else:
        console.say("The runs have the same flags.")
    write_page(
        config.output,
        "compare.html",
        title=f"{len(runs)} runs compared",
        columns=columns,
        results=results,
        runs=runs,
        flags=flags,
        curves=[plot for plot in _curves(runs) if plot],
    )
    console.done("compared", [("page", config.output)])
    return 0


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises:
        UsageError: some are no runs, or have not been validated yet; all of them are named.
    """
    names = [folder.resolve().name for folder in folders]
    runs, bad = [], []
    for folder, name in zip(folders, names, strict=True):
        try:
            config = read_yaml(folder / "config.yaml")
            record = RunRecord.read(folder)
            run = Run(readable(name if names.count(name) == 1 else str(folder)), config, record)
            if not isinstance(config, dict):
                raise ValueError("config.yaml holds no flags")
            if not record.of("valid"):
                raise ValueError("no validation in history.jsonl yet")
            _check_lines(run)
        except FileNotFoundError as error:
            what = "no such folder" if not folder.exists() else f"no {Path(error.filename).name} in it"
            bad.append(f"{readable(str(folder))}: {what}")
        except OSError as error:
            bad.append(f"{readable(str(folder))}: {system_reason(error)}")
        except ValueError as error:
            bad.append(f"{readable(str(folder))}: {' '.join(str(error).split())[:200]}")
        else:
            runs.append(run)
    if bad:
        raise UsageError(f"{'; '.join(bad)}; expected run folders, which jobs/train.py writes")
    return runs


def _check_lines(run: Run) -> None:
    """Do once what the lines of its history have to be good for.

    Raises:
        ValueError: one is damaged.
    """
    try:
        _result(run)
        _curves([run])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise ValueError("a line of its history is damaged") from None


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Return rows of a flag and its value in each run, of the flags that are not the same in all of them."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in OWN)
    rows = [[spelled(str(name)), *(_text(run.config.get(name)) for run in runs)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "–" if value is None else str(value)


def _result(run: Run) -> list[object]:
    """One run's row of figures."""
    record = run.record
    # chosen as training chooses
    best = max(record.of("valid"), key=lambda line: (line["top1"], -line["loss"]))
    low, high = wilson_interval(round(best["top1"] * best["images"]), best["images"])
    [(epoch, _)] = record.points("top1", [best])
    planned, done = run.config.get("epochs"), len(record.epochs)
    return [
        run.name, percent(best["top1"], 2), f"{percent(low)} to {percent(high)}", f"{best['loss']:.4f}",
        f"{epoch:.4g}", f"{done} of {planned}" if planned and done < planned else f"{done}",
        duration(record.seconds), f"{record.images_per_s:,.1f}",
    ]  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds for reading: 45 s, 12 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _curves(runs: Sequence[Run]) -> list[Plot | None]:
    """Validation loss and top1, training loss, rate and speed by epoch, a line for each run."""

    def line(number: int, points: list[tuple[float, float]]) -> Line:
        marks = len(points) <= 40
        return Line(runs[number].name, points, COLORS[number % len(COLORS)], number >= len(COLORS), marks)

    def of(event: str, name: str) -> list[Line]:
        return [line(number, run.record.points(name, run.record.of(event))) for number, run in enumerate(runs)]

    speeds = [
        line(number, [(entry["epoch"], entry["images_per_s"]) for entry in run.record.epochs])
        for number, run in enumerate(runs)
    ]
    return [
        lay_out("Top1 on valid", of("valid", "top1"), x_label="epoch", percent=True),
        lay_out("Loss on valid", of("valid", "loss"), x_label="epoch"),
        lay_out("Loss in training", of("train", "loss"), x_label="epoch"),
        lay_out("Learning rate", of("train", "lr"), x_label="epoch"),
        lay_out("Images a second", speeds, x_label="epoch"),
    ]
