"""All that a user reads on the screen: lines, tables, progress. The main process speaks, the others are silent.

Every job takes ``--log MODE``:

- ``rich``: colours, and bars that move. NO_COLOR leaves the bars and takes the colours.
- ``plain``: lines of text, no control characters; how far a job has come every half minute.
- ``json``: one JSON object a line on stdout, warnings and errors too.
- ``quiet``: warnings and errors only.
- ``auto``, the default: rich on a terminal, plain anywhere else (a Slurm log, ``srun`` without ``--pty``, a pipe).

Results and progress go to stdout, warnings and errors to stderr (but for ``json``). ``--verbose`` adds details. The
screen is not the job: what is written to a stream that is closed or full is lost, and the job runs on.

Every JSON object has ``time`` (ISO 8601, UTC) and ``event``, which settles the other fields::

    message   text
    warning   text
    error     text, rank
    facts     title, values {name: value}
    table     title, columns [name], rows [[value]]
    progress  task, done, total (or null), unit, per_s, left_s (or null), figures {loss: ..., top1: ..., wait: ...}
    done      title, written {what: path}, next [command]

Among the figures ``wait`` is the share of the time that a job waited for data. Numbers that are not finite are null.
"""

import contextlib
import datetime
import hashlib
import json
import math
import os
import shlex
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from flowers import streams
from flowers.files import lock

LOG_MODES = ("auto", "rich", "plain", "json", "quiet")
LINE_INTERVAL_S = 30.0
_LOG_FILE_WIDTH = 160
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, bidirectional and other formats, lone surrogates, line ends
_FORMATS = {"wait": "{:.0%}", "lr": "{:.2g}"}
_FIRST = ("loss", "top1", "wait")  # a narrow terminal cuts off what comes last

_mode = "auto"
_verbose = False
_log_path: Path | None = None


def _console(stderr: bool) -> Console:
    """A stream as the mode wants it; rich itself would also colour a pipe where FORCE_COLOR is set."""
    stream = sys.stderr if stderr else sys.stdout
    on_terminal = stream is not None and stream.isatty() and not _is_dumb_terminal()
    draws = (on_terminal and _mode != "plain") or (_mode == "rich" and not stderr)
    color_system = "auto" if draws else None
    console = Console(
        stderr=stderr, highlight=False, soft_wrap=True, force_terminal=draws, color_system=color_system,
        emoji=False,  # a:b: is a path
    )  # fmt: skip
    if not draws:  # a log file has no width of its own
        console.width = _LOG_FILE_WIDTH
    return console


def _is_dumb_terminal() -> bool:
    """True for a terminal that cannot draw, and for the one that ``srun --unbuffered`` puts between a task and a log.

    ``srun --pty``, which has a person before it, sets SLURM_PTY_PORT.
    """
    in_step, has_person = "SLURM_STEP_ID" in os.environ, "SLURM_PTY_PORT" in os.environ
    return os.environ.get("TERM") in ("dumb", "unknown") or (in_step and not has_person)


_out, _err = _console(stderr=False), _console(stderr=True)


def open_streams(essential: bool = False) -> None:
    """Make stdout and stderr safe to write to for the whole job; see ``streams.make_safe``."""
    streams.make_safe(essential)
    show_as(_mode, verbose=_verbose)


def show_as(mode: str, verbose: bool = False) -> None:
    """Choose one of ``LOG_MODES``, with or without details, for all that is said from now on."""
    global _mode, _verbose, _out, _err
    _mode, _verbose = mode, verbose
    _out, _err = _console(stderr=False), _console(stderr=True)


def is_main_process() -> bool:
    """True on rank 0, by the environment that launchers set."""
    return int(os.environ.get("RANK", "0")) == 0


def log_to(path: Path | None) -> None:
    """Also append every line that the main process says to this file."""
    global _log_path
    _log_path = path


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2,345 files"; a plural other than with an s is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def say(text: str = "") -> None:
    """One line to the user. Markup such as ``[bold]`` works; pass foreign text through ``plain``."""
    _tell("message", [text], text=Text.from_markup(text).plain)


def _tell(event: str, lines: Sequence[str], **fields: object) -> None:
    """Lines of markup for people, or a JSON object; the lines for the log file in any case."""
    if not is_main_process():
        return
    if _mode == "json":
        _emit(event, **fields)
    for line in lines:
        if _mode not in ("json", "quiet"):
            _out.print(line)
        _log(Text.from_markup(line).plain)


def is_verbose() -> bool:
    """True if details are shown."""
    return _verbose


def verbose(text: str) -> None:
    """A detail that few want to see: shown with ``--verbose`` and as JSON, and always in the log file."""
    if _verbose or _mode == "json":
        say(text)
    elif is_main_process():
        _log(Text.from_markup(text).plain)


def warn(text: str) -> None:
    """One line about something that the user should know but that does not stop the job."""
    if not is_main_process():
        return
    if _mode == "json":
        _emit("warning", text=text)
    else:
        _err.print(f"[yellow]warning:[/] {plain(text)}")
    _log(f"warning: {text}")


def error(text: str) -> None:
    """The one line that a failed job ends with; other ranks than the main one say who they are.

    Several processes often find the same thing wrong: under ``flowers-launch`` one of them says so.
    """
    rank = "" if is_main_process() else f"rank {os.environ.get('RANK')}: "
    with _turn_to_say(text) as is_first:
        if is_first and _mode == "json":
            _emit("error", text=text, rank=int(os.environ.get("RANK", "0")))
        elif is_first:
            _err.print(f"[red]error:[/] {plain(rank + text)}")
    if is_main_process():
        _log(f"error: {text}")


@contextlib.contextmanager
def _turn_to_say(text: str) -> Iterator[bool]:
    """Give True to the first process of this launch that says this; the others wait until it has been said.

    The launcher ends all processes when one has ended: one that did not wait could silence the first.
    """
    with contextlib.ExitStack() as stack:
        said, is_first = None, True
        with contextlib.suppress(OSError, KeyError):  # another launcher; a full disk: better twice than never
            name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
            said = stack.enter_context(open(Path(os.environ["FLOWERS_SAID_DIR"], name), "ab", buffering=0))
            lock(said.fileno(), wait=True)
            is_first = not os.fstat(said.fileno()).st_size
        yield is_first
        if said is not None:
            with contextlib.suppress(OSError):
                said.write(b"said")


def plain(text: object) -> str:
    """Foreign text (a file name, a class name), made safe to stand inside ``say``: no markup, no control character."""
    return escape(_visible(str(text)))


def _visible(text: str) -> str:
    """Characters that are not shown, or that change how others are, as \\x1b or \\u202e."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def page(sections: Iterable[tuple[str, str]]) -> None:
    """Print sections of (heading, text) and nothing else, in any mode, a blank line between them."""
    for index, (heading, text) in enumerate(sections):
        lines = [f"[bold]{escape(heading)}[/]"] if heading else []
        _out.print("\n".join([*([""] if index else []), *lines, escape(text)]))


def width() -> int:
    """Columns to fill with text: those of the terminal, but no more than can be read well."""
    return max(40, min(_out.width, 100))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A small table; cells are shown as plain text, numbers aligned to the right."""
    if not is_main_process():
        return
    values = [list(row) for row in rows]
    cells = [[plain(value) for value in row] for row in values]
    if _mode == "json":
        _emit("table", title=title, columns=list(columns), rows=values)
    elif _mode != "quiet":
        drawn = Table(title=plain(title), title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        for index, column in enumerate(columns):
            numeric = bool(cells) and all(_is_number(row[index]) for row in cells)
            drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*row)
        _out.print(drawn)
    for row in [columns, *values]:
        _log("  ".join(map(str, row)))


def facts(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Names and what they are, one a line."""
    rows = list(rows)
    _tell("facts", [f"[bold]{plain(title)}[/]", *_aligned(rows)], title=title, values=dict(rows))


def done(title: str, written: Sequence[tuple[str, object]], commands: Sequence[Sequence[object]] = ()) -> None:
    """End a job: list the written files, and the commands to run next.

    Args:
        title: what is done, in a few words.
        written: what and where.
        commands: each as its words; they are quoted for the shell. See ``job_command``.
    """
    then = [shlex.join(map(str, words)) for words in commands]
    lines = _aligned(written)
    if then:  # never inside a frame: they are there to be copied
        lines += ["next:", *(f"  [cyan]{plain(line)}[/]" for line in then)]
    framed = is_main_process() and _draws()
    if framed:
        _out.rule(f"[bold]{plain(title)}[/]", align="left", style="dim")
    else:
        lines.insert(0, plain(title))
    _tell("done", lines, title=title, written=dict(written), next=then)
    if framed:
        _out.rule(style="dim")


def _aligned(rows: Sequence[tuple[str, object]]) -> list[str]:
    """Lines of a name and a value, the values below one another."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {plain(value)}" for name, value in rows]


def job_command(job: str, *words: object) -> list[str]:
    """The words that start another job the way this one was started: its file in jobs/, or its console command."""
    program = Path(sys.argv[0])
    if program.suffix == ".py":
        return ["python", str(program.with_name(f"{job}.py")), *map(str, words)]
    return [f"flowers-{job.replace('_', '-')}", *map(str, words)]


class Meter:
    """Takes the progress of a job: images done, and figures to show beside them."""

    def __init__(self, description: str, total: int | None, unit: str, bar: Progress | None):
        self._description, self._total, self._unit, self._bar = description, total, unit, bar
        self._start_s = self._said_s = time.monotonic()
        self._done, self._figures = 0, {}
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
        self._figures |= figures
        if self._bar is not None:
            rate = f"{self.per_s:.0f} {self._unit}/s"
            self._bar.update(self._task, advance=count, rate=rate, figures=self._shown())
        elif is_main_process() and time.monotonic() - self._said_s > LINE_INTERVAL_S:
            self.tell()

    def tell(self) -> None:
        """One line, or one JSON object, about how far it has come."""
        self._said_s = time.monotonic()
        left_s = (self._total - self._done) / max(self.per_s, 1e-9) if self._total else None
        of, left = (f"/{self._total}", f"  {left_s:.0f} s left") if self._total else ("", "")
        line = f"{self._description}: {self._done}{of}  {self.per_s:.0f} {self._unit}/s{left}  {self._shown()}"
        _tell(
            "progress", [plain(line.rstrip())], task=self._description, done=self._done, total=self._total,
            unit=self._unit, per_s=round(self.per_s, 2), left_s=None if left_s is None else round(left_s, 1),
            figures=self._figures,
        )  # fmt: skip

    def _shown(self) -> str:
        names = sorted(self._figures, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
        return "  ".join(f"{name} {_figure(name, self._figures[name])}" for name in names)


class _Figures(ProgressColumn):
    """The one column that gives way where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str = "images") -> Iterator[Meter]:
    """Show how far a long step has come: a bar on a terminal, a line now and then elsewhere."""
    if not (is_main_process() and _draws()):
        meter = Meter(description, total, unit, None)
        yield meter
        if _mode == "json":
            meter.tell()
        return
    whole = Column(no_wrap=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=12, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.fields[rate]}", markup=False, table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        _Figures(),
        console=_out,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),  # else warnings would leave the file that stderr was sent to
    )
    with bar:
        yield Meter(description, total, unit, bar)


def _draws() -> bool:
    return _mode in ("auto", "rich") and _out.is_terminal


def _figure(name: str, value: object) -> str:
    return _FORMATS.get(name, "{:.4f}").format(value) if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%").replace(",", ""))
    except ValueError:
        return False
    return True


def _emit(event: str, **fields: object) -> None:
    """One JSON object as one line, in one write: processes that share a stream do not cut each other's lines."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **_finite(fields)}, default=str)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _finite(value: object) -> object:
    """The same with null for each number that JSON cannot say."""
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _log(text: str) -> None:
    if _log_path is None:
        return
    with (  # a full disk must not keep the screen from telling about it
        contextlib.suppress(OSError),
        open(_log_path, "a", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {_visible(text)}\n")
