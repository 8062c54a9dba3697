"""What all measurements share: things take turns round by round, and a ratio is of two things in one round.

A shared machine is slow for a while and then fast again; whatever it is, it is so for all things in a round. Every
figure comes with its spread over the rounds, and every run says on which machine and with which versions it was.
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FLOWERS102 = Path(os.environ.get("FLOWERS102", ROOT.parent / "shared" / "flowers102"))
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "openvino", "onnxruntime", "numpy", "pillow")


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: was measured.
        figure: with its unit and spread.
        against: the plain way in the same run, or empty.
    """

    what: str
    figure: str
    against: str = ""


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: bool | None = None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time all ways once a round.

    A way that returns a float has measured itself: seconds.

    Args:
        ways: by name, what to do.
        rounds: how often each way's turn comes.
        warm_up: begin with a round that does not count; by default unless there is one round only, which is for seeing
            that a measurement still runs.
        clock_s: what time is read from.

    Returns:
        Seconds by name and round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    warm_up = rounds > 1 if warm_up is None else warm_up
    for number in range(rounds + warm_up):
        for name, way in ways.items():
            start_s = clock_s()
            own_s = way()
            spent_s = own_s if isinstance(own_s, float) else clock_s() - start_s
            if number or not warm_up:
                seconds[name].append(spent_s)
    return seconds


def rate(count: float, seconds: Sequence[float], unit: str = "images/s") -> str:
    """`count` things in each of these times: the median per second and from the slowest to the fastest."""
    rates = [count / spent_s for spent_s in seconds]
    return f"{short(statistics.median(rates))} {unit}".rstrip() + f" ({spread(rates)})"


def duration(seconds: Sequence[float]) -> str:
    """The median of some times, and from the shortest to the longest."""
    return f"{short(statistics.median(seconds))} s ({spread(seconds)})"


def times_faster(plain: Sequence[float], ours: Sequence[float]) -> str:
    """How often as fast we are, round by round: the median ratio and the spread, such as 2.1x (2.0 to 2.3)."""
    ratios = [plain_s / our_s for plain_s, our_s in zip(plain, ours, strict=True)]
    return f"{short(statistics.median(ratios))}x ({spread(ratios)})"


def spread(values: Sequence[float]) -> str:
    """From the lowest to the highest."""
    return f"{short(min(values))} to {short(max(values))}"


def short(value: float) -> str:
    """A figure with as many digits as it deserves, about two."""
    digits = 0 if abs(value) >= 20 else 1 if abs(value) >= 2 else 2 if abs(value) >= 0.1 else 3
    return f"{value:.{digits}f}"


def machine() -> str:
    """Where and with what this was measured, for a sentence."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = f"; GPU {gpu}" if (gpu := _gpu()) else ""
    python = f"Python {platform.python_version()}"
    return f"{cpus} CPU cores ({_cpu()}){gpus}; {python}, {', '.join(versions)}; {date.today():%B %Y}"


def _cpu() -> str:
    name, extras = platform.machine(), []
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
            if line.startswith("flags"):
                extras = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in line.split()]
                break
    except OSError:  # not Linux
        pass
    return ", ".join([name, *extras[-2:]])


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def start_method() -> BaseContext:
    """How contestants start: as forks of a process that has imported torch and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "timm"])
    return context


class Contestant:
    """A way that lives in a process of its own: its settings and memory disturb no other, and it waits idle.

    Args:
        prepare: called there with the arguments after it; returns what one turn does. Must be a module's function.
    """

    def __init__(self, prepare: Callable[..., Callable[[], object]], *arguments: object):
        context = start_method()
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_live, args=(other, prepare, arguments))
        self._process.start()
        other.close()

    def __call__(self) -> float:
        """One turn; its seconds, as measured there."""
        self._pipe.send("go")
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send("end")
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _live(pipe, prepare: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    turn = prepare(*arguments)
    while True:
        try:
            if pipe.recv() == "end":
                return
        except EOFError:
            return
        start_s = time.perf_counter()
        own_s = turn()
        pipe.send(own_s if isinstance(own_s, float) else time.perf_counter() - start_s)


@contextlib.contextmanager
def contestants(ways: Mapping[str, tuple]) -> Iterator[dict[str, Contestant]]:
    """Processes by name, from ``(prepare, *arguments)``; ended with the block."""
    living = {name: Contestant(*way) for name, way in ways.items()}
    try:
        yield living
    finally:
        for contestant in living.values():
            contestant.close()


def show(rows: Sequence[Row]) -> None:
    """Print rows for a reader of the terminal."""
    width = max(len(row.what) for row in rows)
    figure = max(len(row.figure) for row in rows)
    for row in rows:
        print(f"{row.what:{width}}  {row.figure:{figure}}  {row.against}".rstrip())


def photos_in(folder: Path) -> list[Path]:
    """The photos in a folder, in order; ends the script if there are none."""
    from flowers.data.scan import scan_images

    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder of photos; give one, or set FLOWERS102")
    return [folder / path for path in scan_images(folder)]


def run_alone(
    measure: Callable[[argparse.Namespace], list[Row]], add_flags: Callable[[argparse.ArgumentParser], None], text: str
) -> None:
    """What every script here does: read its flags, say where it runs, measure, print rows (``run.py`` wants JSON)."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(machine(), flush=True)
    rows = measure(options)
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows))
