"""Draw a small flower set, so that the quickstart and the tests need no download.

Sixteen drawn species, told apart by form and not by colour (see ``species``), photographed badly on purpose:
any place, size, turn and tilt, soft or noisy, half hidden behind a blade of grass, in JPEG of any quality.
The same seed gives the same bytes under the same numpy and Pillow; a picture depends on the seed, its split,
its class and its number only, so a larger set contains the smaller one.
"""

import concurrent.futures
import io
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from flowers import console
from flowers.datasets.drawn_petals import GREENS, Canvas, Petal, pick, turn
from flowers.datasets.drawn_species import COLOURS, SPECIES, UPRIGHT
from flowers.datasets.set_folder import SPLITS, new_set, read_marker
from flowers.errors import UsageError

MARKER = "garden.json"  # says with which settings a set was drawn
SUPERSAMPLING = 2
GROUNDS = ((62, 104, 52), (96, 124, 66), (40, 66, 44), (116, 96, 70), (142, 164, 182), (64, 72, 88), (166, 158, 132))


def draw_garden(
    output_dir: Path,
    *,
    species: int = 12,
    train: int = 40,
    valid: int = 10,
    test: int = 20,
    image_size: int = 256,
    seed: int = 0,
    processes: int = 1,
) -> None:
    """Draw an image-folder set: train/, valid/, test/ with a folder a class, and cat_to_name.json.

    The folder appears only when the set is whole. A set that is already there with the same settings is kept.

    Args:
        output_dir: where the set goes; must not hold anything else.
        species: number of classes, at most ``len(SPECIES)``; the folders are named 1, 2, 3, ...
        train: images a class in train/; ``valid`` and ``test`` likewise, 0 leaves the split out.
        image_size: side of the square pictures, in pixels.
        seed: another seed, other pictures of the same species.
        processes: how many draw; the pictures are the same for any number.

    Raises:
        UsageError: a count or size out of range.
        DataError: the folder holds something else.
        FlowersError: the place cannot be written.
    """
    counts = dict(zip(SPLITS, (train, valid, test), strict=True))
    _check_settings(species, counts, image_size, seed)
    output_dir = Path(output_dir).resolve()
    settings = {"species": species, **counts, "image_size": image_size, "seed": seed}
    if read_marker(output_dir, MARKER, settings) is not None:
        return
    names = list(SPECIES)[:species]
    tasks = [
        _Task(split, name, number, [seed, split_index, class_index, number], image_size)
        for split_index, split in enumerate(SPLITS)
        for class_index, name in enumerate(names)
        for number in range(counts[split])
    ]
    with new_set(output_dir, MARKER, settings, names) as folder:
        for task in tasks:
            (folder / task.path).parent.mkdir(parents=True, exist_ok=True)
        with console.progress("drawing", len(tasks)) as meter:
            for task, jpeg in zip(tasks, _draw_all(tasks, processes), strict=True):
                (folder / task.path).write_bytes(jpeg)
                meter.advance(1)


class _Task(NamedTuple):
    """One picture to draw."""

    split: str
    name: str
    number: int
    seed: list[int]
    image_size: int

    @property
    def path(self) -> str:
        """Relative to the set's folder."""
        return f"{self.split}/{self.seed[2] + 1}/{self.name}_{self.number + 1:04d}.jpg"


def _draw_all(tasks: Sequence[_Task], processes: int) -> Iterator[bytes]:
    if processes == 1:
        yield from map(_draw, tasks)
        return
    # Spawned, not forked: the caller may have threads running.
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw, tasks, chunksize=16)


def _draw(task: _Task) -> bytes:
    return draw_photo(task.name, np.random.default_rng(task.seed), task.image_size)


def draw_photo(name: str, rng: np.random.Generator, image_size: int = 256) -> bytes:
    """One photo of one species, as the bytes of a JPEG file.

    Args:
        name: a key of ``SPECIES``.
        rng: all that varies is drawn from it.
        image_size: side in pixels.
    """
    side = image_size * SUPERSAMPLING
    colours = pick(rng, COLOURS)
    colours = (colours + rng.normal(0, 9, 3)).clip(0, 255)
    canvas = Canvas(_ground(rng, side), rng)
    _leaves(canvas, int(rng.integers(2, 6)), side)
    radius = side * rng.uniform(0.26, 0.42)
    centre = side / 2 + rng.uniform(-0.14, 0.14, 2) * side
    tilt = rng.uniform(-0.45, 0.45) if name in UPRIGHT else rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.3:  # another one of its kind, farther off
        behind = centre + side * rng.uniform(0.3, 0.45) * turn(np.array([1.0, 0.0]), rng.uniform(0, 2 * np.pi))
        canvas.place(tuple(behind), radius * rng.uniform(0.45, 0.7), tilt + rng.normal(0, 0.2), 0.9)
        SPECIES[name](canvas, colours * 0.9)
    canvas.place(tuple(centre), radius, tilt, rng.uniform(0.68, 1.0))
    SPECIES[name](canvas, colours)
    if rng.random() < 0.25:
        _blade(canvas, side)
    return _photograph(canvas.image.reduce(SUPERSAMPLING), rng)


def _ground(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw the background, out of focus: soft patches, and in half of the pictures discs of light."""
    base = pick(rng, GROUNDS)
    cells = int(rng.integers(3, 9))
    patches = base + rng.normal(0, 26, (cells, cells, 1)) + rng.normal(0, 10, (cells, cells, 3))
    small = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(small, "RGBA")
    for _ in range(int(rng.integers(4, 14)) if rng.random() < 0.5 else 0):
        (x, y), half = rng.uniform(0, 96, 2), rng.uniform(3, 11)
        light = tuple(int(value) for value in (base + rng.uniform(20, 110)).clip(0, 255))
        draw.ellipse((x - half, y - half, x + half, y + half), fill=(*light, int(rng.integers(40, 120))))
    small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.5)))
    return small.resize((side, side), Image.Resampling.BILINEAR)


def _leaves(canvas: Canvas, count: int, side: int) -> None:
    rng = canvas.rng
    for _ in range(count):
        green = pick(rng, GREENS) * rng.uniform(0.6, 1.1)
        canvas.place(tuple(rng.uniform(0.1, 0.9, 2) * side), side * rng.uniform(0.35, 0.65), rng.uniform(0, 2 * np.pi))
        leaf = Petal(rng.uniform(0.12, 0.5), base=0.7, tip=rng.uniform(0.6, 1.0), bend=rng.normal(0, 0.2))
        rim = leaf.outline(rng)
        canvas.polygon(rim, green)
        half = len(rim) // 2
        canvas.polygon(rim[:half], green * 1.18, 0.6)
        canvas.line((rim[:half] + rim[: half - 1 : -1]) / 2, green * 1.3, 0.012)


def _blade(canvas: Canvas, side: int) -> None:
    """A blade of grass before the flower."""
    rng = canvas.rng
    green = pick(rng, GREENS) * rng.uniform(0.7, 1.2)
    canvas.place(
        (rng.uniform(0.2, 0.8) * side, side * 1.02), side * rng.uniform(0.7, 1.2), -np.pi / 2 + rng.normal(0, 0.35)
    )
    rim = Petal(rng.uniform(0.05, 0.09), base=0.3, tip=0.8, bend=rng.normal(0, 0.25)).outline(rng)
    canvas.polygon(rim, green)
    canvas.polygon(rim[: len(rim) // 2], green * 1.2)


def _photograph(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Add the effects of a camera: focus, light, colour cast, vignette, noise, JPEG."""
    focus = float(rng.choice([0.3, 0.6, 1.2, 2.0], p=[0.4, 0.3, 0.2, 0.1]))
    image = image.filter(ImageFilter.BoxBlur(focus))
    across = np.linspace(-1, 1, image.width, dtype=np.float32) ** 2
    light = rng.uniform(0.75, 1.2) * (1 - rng.uniform(0, 0.22) * (across[:, None] + across))
    cast = rng.normal(1, 0.04, 3).astype(np.float32)
    noise = rng.standard_normal(light.shape, dtype=np.float32) * np.float32(rng.choice([1.5, 4.0, 9.0]))
    pixels = np.array(image, dtype=np.float32)
    pixels *= light[..., None]
    pixels *= cast
    pixels += noise[..., None]
    pixels.clip(0, 255, out=pixels)
    buffer = io.BytesIO()
    quality = int(rng.integers(45, 96))
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _check_settings(species: int, counts: dict[str, int], image_size: int, seed: int) -> None:
    if not 2 <= species <= len(SPECIES):
        raise UsageError(f"--species: got {species}, expected 2 to {len(SPECIES)}, the species that can be drawn")
    for split, count in counts.items():
        least = 1 if split == "train" else 0
        if not least <= count <= 9999:
            raise UsageError(f"--{split}: got {count} images a class, expected {least} to 9999")
    if not 32 <= image_size <= 2048:
        raise UsageError(f"--image-size: got {image_size}, expected 32 to 2048 pixels")
    if seed < 0:
        raise UsageError(f"--seed: got {seed}, expected 0 or more")
