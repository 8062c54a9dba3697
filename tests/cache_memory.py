"""How much the memory of a group's processes grows with the one copy of ``--cache ram`` that they share."""

import functools
from pathlib import Path

import numpy as np
from jobs_in_processes import answers, server
from PIL import Image

from flowers.data import image_cache
from flowers.data.folders import Samples
from flowers.data.images import read_image

SHORT_SIDE = 500
PICTURE_BYTES = SHORT_SIDE * SHORT_SIDE * 3
_TIMEOUT_S = 600


def draw(folder: Path, count: int) -> Samples:
    """Pictures that are quickly drawn and decoded, each of ``PICTURE_BYTES``."""
    names = [f"{index:05}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        Image.new("RGB", (SHORT_SIDE, SHORT_SIDE), (index % 256, 0, 0)).save(folder / name)
    return Samples(folder, names, np.zeros(count, np.int64))


def grown(samples: Samples, processes: int, folder: str = image_cache.SHARED_MEMORY) -> list[dict[str, int]]:
    """What the kernel says of each process that opens the cache as training does and reads every picture.

    Args:
        folder: where the cache is built.

    Returns:
        By rank: bytes more than before of pages that the process has alone ("private") and of its share of all, those
        that several map divided by their number ("pss"); bytes of the cache ("cache").
    """
    weigh = functools.partial(_open_and_weigh, samples, folder, server.Barrier(processes))
    return answers(weigh, range(processes), timeout_s=_TIMEOUT_S)


def _open_and_weigh(samples: Samples, folder: str, together, rank: int) -> dict[str, int]:
    image_cache.SHARED_MEMORY = folder
    read_image(samples.full_path(0))  # what is imported with the first picture is there now
    together.wait(_TIMEOUT_S)
    before = _memory_bytes()
    together.wait(_TIMEOUT_S)
    cache = image_cache.open_cache(samples, "ram", SHORT_SIDE)
    for row in range(len(samples)):
        cache.read(row).max()
    together.wait(_TIMEOUT_S)  # all have read all pages
    after = _memory_bytes()
    together.wait(_TIMEOUT_S)  # while one ends, what it shared becomes the others' own
    return {**{name: after[name] - before[name] for name in after}, "cache": cache.size_bytes}


def _memory_bytes() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {line[0]: int(line[1]) * 1024 for line in lines}
    return {"private": sizes["Private_Clean:"] + sizes["Private_Dirty:"], "pss": sizes["Pss:"]}
