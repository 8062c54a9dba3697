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

from flowers.data.folders import load_image_folders, scan_images

CLASSES = 100


def main() -> None:
    """Make the trees, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--tree", type=Path)
    options = parser.parse_args()
    if options.tree:
        _measure("scan_images", _scan, options.tree)
        return
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        _make(Path(folder), options.files)
        print(f"made {options.files} files in {CLASSES} folders in {time.perf_counter() - start_s:.0f} s")
        _measure("scan_images, in folders", _scan, Path(folder, "classes"))
        _measure("scan_images, all in one folder", _scan, Path(folder, "flat"))
        _measure("list(scan_images), for comparison", _keep, Path(folder, "flat"))
        _measure("load_image_folders, kept as Samples", _load, Path(folder, "classes"))


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


def _keep(tree: Path) -> int:
    return len(list(scan_images(tree)))


def _load(tree: Path) -> int:
    return len(load_image_folders(tree, class_names=None, val_fraction=0, seed=0).train)


def _measure(name: str, work: Callable[[Path], int], tree: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        count, seconds, mib = pool.submit(_run, work, tree).result()
    print(f"{name:36} {count} files  {seconds:6.2f} s  {mib:6.1f} MiB")


def _run(work: Callable[[Path], int], tree: Path) -> tuple[int, float, float]:
    before, start_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    count = work(tree)
    seconds = time.perf_counter() - start_s
    return count, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
