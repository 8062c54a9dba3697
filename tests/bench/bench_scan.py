"""Listing a large tree: seconds, and memory above what the process had before.

    python tests/bench/bench_scan.py                        # 50,000 empty files, made for it and removed again
    python tests/bench/bench_scan.py --files 1000000        # a million
    python tests/bench/bench_scan.py --tree DIR             # a tree that is there, nothing is made

Each figure is of a process of its own.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from measuring import Row, duration, run_alone, times_faster

from flowers.data.folders import load_image_folders
from flowers.data.scan import scan_images

CLASSES = 100


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--rounds", type=int, default=3)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    if options.tree:
        return [_row(f"listing {options.tree}", _scan, options.tree, options.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), options.files)
        classes, flat, rounds = Path(folder, "classes"), Path(folder, "flat"), options.rounds
        return [
            _row(f"listing {options.files:,} files in {CLASSES} folders", _scan, classes, rounds, _plain),
            _row(f"listing {options.files:,} files in one folder", _scan, flat, rounds, _plain),
            _row(f"class folders of {options.files:,} files as a training set", _load, classes, rounds, _plain),
        ]


def _make(folder: Path, count: int) -> None:
    """Class folders of empty files, and one folder with a link to each of them."""
    (folder / "flat").mkdir()
    for index in range(CLASSES):
        (folder / f"classes/{index}").mkdir(parents=True)
    for index in range(count):
        name = f"image_{index:08}.jpg"
        path = f"{folder}/classes/{index % CLASSES}/{name}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.link(path, f"{folder}/flat/{name}")


def _scan(tree: Path) -> int:
    return sum(1 for _ in scan_images(tree))


def _plain(tree: Path) -> int:
    """What people write."""
    return len(sorted(path for path in tree.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")))


def _load(tree: Path) -> int:
    return len(load_image_folders(tree).train)


def _row(
    name: str, work: Callable[[Path], int], tree: Path, rounds: int, plain: Callable[[Path], int] | None = None
) -> Row:
    """Each figure is of a process of its own."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_alone(work, tree))
        if plain is not None:
            theirs.append(_alone(plain, tree))
    assert not theirs or theirs[0][0] == ours[0][0]
    figure = f"{duration([seconds for _, seconds, _ in ours])}, {max(mib for *_, mib in ours):.0f} MiB"
    if not theirs:
        return Row(name, figure)
    faster = times_faster([seconds for _, seconds, _ in theirs], [seconds for _, seconds, _ in ours])
    return Row(name, figure, f"{faster} a sorted rglob, which takes {max(mib for *_, mib in theirs):.0f} MiB")


def _alone(work: Callable[[Path], int], tree: Path) -> tuple[int, float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_run, work, tree).result()


def _run(work: Callable[[Path], int], tree: Path) -> tuple[int, float, float]:
    before, start_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    count = work(tree)
    seconds = time.perf_counter() - start_s
    return count, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
