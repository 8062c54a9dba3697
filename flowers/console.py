"""All that a user reads on the screen: lines, tables, progress. The main process speaks, the others are silent.

On a terminal rich draws progress bars; anywhere else (a Slurm log, a pipe) the same facts come as plain lines,
every half minute. Results and progress go to stdout, warnings and errors to stderr.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)
if not _out.is_terminal:  # a log file has no width of its own
    _out.width = 160
_log_path: Path | None = None

PLAIN_INTERVAL_S = 30.0


def is_main_process() -> bool:
    """Whether this process is rank 0, by the environment that launchers set."""
    return int(os.environ.get("RANK", "0")) == 0


def log_to(path: Path | None) -> None:
    """Also append every line that the main process says to this file."""
    global _log_path
    _log_path = path


def say(text: str = "") -> None:
    """One line to the user. Markup such as ``[bold]`` works; pass foreign text through ``plain``."""
    if is_main_process():
        _out.print(text)
        _log(Text.from_markup(text).plain)


def warn(text: str) -> None:
    """One line about something that the user should know but that does not stop the job."""
    if is_main_process():
        _err.print(f"[yellow]warning:[/] {escape(text)}")
        _log(f"warning: {text}")


def error(text: str) -> None:
    """The one line that a failed job ends with; other ranks than the main one say who they are.

    Several processes often find the same thing wrong: under ``flowers-launch`` one of them says so.
    """
    rank = "" if is_main_process() else f"rank {os.environ.get('RANK')}: "
    if _is_first_to_say(text):
        _err.print(f"[red]error:[/] {escape(rank + text)}")
    if is_main_process():
        _log(f"error: {text}")


def _is_first_to_say(text: str) -> bool:
    """Whether no process of this launch has said the same; a file that must not be there yet settles who was first."""
    folder = os.environ.get("FLOWERS_SAID_DIR")
    try:
        if folder is not None:
            Path(folder, hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # better twice than never
        return True
    return True


def plain(text: object) -> str:
    """Foreign text (a file name, a class name), made safe to stand inside ``say``."""
    return escape(str(text).encode("utf-8", "backslashreplace").decode("utf-8"))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A small table; cells are shown as plain text, numbers aligned to the right."""
    if not is_main_process():
        return
    drawn = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    rows = [[plain(cell) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    _out.print(drawn)
    for row in [columns, *rows]:
        _log("  ".join(row))


def facts(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Names and what they are, one a line."""
    if not is_main_process():
        return
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    say(f"[bold]{plain(title)}[/]")
    for name, value in rows:
        say(f"  {name:{width}}  {plain(value)}")


class Meter:
    """What a running ``progress`` is told: images done, and figures to show beside them."""

    def __init__(self, description: str, total: int | None, unit: str, bar: Progress | None):
        self._description, self._total, self._unit, self._bar = description, total, unit, bar
        self._start_s = self._said_s = time.monotonic()
        self._done, self._figures = 0, ""
        self._task = bar.add_task(description, total=total, rate="", figures="") if bar else None

    @property
    def per_s(self) -> float:
        """Units a second since the start."""
        return self._done / max(time.monotonic() - self._start_s, 1e-9)

    def describe(self, description: str) -> None:
        """Say what is being done now."""
        self._description = description
        if self._bar is not None:
            self._bar.update(self._task, description=description)

    def advance(self, count: int, **figures: object) -> None:
        """Count some more units; ``figures`` (loss=0.31, ...) stand until replaced."""
        self._done += count
        if figures:
            self._figures = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items())
        if self._bar is not None:
            rate = f"{self.per_s:.0f} {self._unit}/s"
            self._bar.update(self._task, advance=count, rate=rate, figures=self._figures)
        elif is_main_process() and time.monotonic() - self._said_s > PLAIN_INTERVAL_S:
            self._said_s = time.monotonic()
            of, left = "", ""
            if self._total:
                of, left = (
                    f"/{self._total}",
                    f"  {(self._total - self._done) / max(self.per_s, 1e-9):.0f} s left",
                )
            rate = f"{self.per_s:.0f} {self._unit}/s{left}"
            say(f"{self._description}: {self._done}{of}  {rate}  {self._figures}".rstrip())


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str = "images") -> Iterator[Meter]:
    """Show how far a long step has come: a bar on a terminal, a line now and then elsewhere."""
    if not (is_main_process() and _out.is_terminal):
        yield Meter(description, total, unit, None)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=_out,
        transient=True,
    )
    with bar:
        yield Meter(description, total, unit, bar)


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%").replace(",", ""))
    except ValueError:
        return False
    return True


def _log(text: str) -> None:
    if _log_path is not None:
        with open(_log_path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
