"""What `--cache ram` takes of a machine's memory: eight processes that train share one copy.

    python tests/bench/bench_cache_memory.py                        # a cache of 200 MB; needs Linux
    python tests/bench/bench_cache_memory.py --processes 2 --megabytes 50

Real processes form a group, open the cache as training does, and read every picture. Then each one looks at what the
kernel says of its memory (smaps_rollup): pages that it alone has (private), and its share of all, pages that several
processes map divided by their number (PSS). What it had before the cache is subtracted.
"""

import argparse
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
from measuring import Row, run_alone, short

SHORT_SIDE = 500


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=200, help="of the cache")


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    count = max(1, round(options.megabytes * 1e6 / (SHORT_SIDE * SHORT_SIDE * 3)))
    with tempfile.TemporaryDirectory() as temporary:
        names = draw(Path(temporary), count)
        found = grown(Path(temporary), names, options.processes)
    cache_mb = count * SHORT_SIDE * SHORT_SIDE * 3 / 1e6
    total_mb = sum(values["pss_mb"] for values in found)
    private_mb = [values["private_mb"] for values in found]
    return [
        Row(
            f"memory that --cache ram of {cache_mb:.0f} MB takes in {options.processes} processes on one machine",
            f"{total_mb:.0f} MB, private {short(min(private_mb))} to {short(max(private_mb))} MB a process",
            f"a cache for each would take {options.processes * cache_mb:.0f} MB",
        )
    ]


def draw(folder: Path, count: int) -> list[str]:
    """Pictures that are quickly drawn and decoded."""
    from PIL import Image

    for index in range(count):
        Image.new("RGB", (SHORT_SIDE, SHORT_SIDE), (index % 256, 0, 0)).save(folder / f"{index:05}.jpg")
    return [f"{index:05}.jpg" for index in range(count)]


def grown(folder: Path, names: list[str], processes: int) -> list[dict[str, float]]:
    """How much the memory of each process of a group has grown with the cache."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "accelerate", "flowers.data.image_cache"])
    results, together = context.Queue(), context.Barrier(processes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (processes, port, folder, names, together, results)
    living = [context.Process(target=open_and_read, args=(rank, *arguments)) for rank in range(processes)]
    for process in living:
        process.start()
    found = [results.get(timeout=600) for _ in living]
    for process in living:
        process.join()
    return found


def open_and_read(rank: int, processes: int, port: int, folder: Path, names: list[str], together, results) -> None:
    """In a process: open the cache, read it, and say how much memory that took."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
    from flowers import distributed
    from flowers.data.folders import Samples
    from flowers.data.image_cache import open_cache

    distributed.start("no")
    samples = Samples(folder, names, np.zeros(len(names), np.int64))
    together.wait()
    before = memory_mb()
    together.wait()
    cache = open_cache(samples, "ram", SHORT_SIDE)
    for row in range(len(names)):
        cache.read(row).max()
    together.wait()
    after = memory_mb()
    together.wait()  # while one ends, what it shared becomes the others' own
    results.put({name: after[name] - before[name] for name in after})


def memory_mb() -> dict[str, float]:
    """This process's own memory, and its share of all that it maps."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {line[0]: int(line[1]) * 1024 / 1e6 for line in lines}
    private_mb = sizes["Private_Clean:"] + sizes["Private_Dirty:"]
    return {"private_mb": private_mb, "pss_mb": sizes["Pss:"]}


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
