"""Draw each flower species of the sample set.

What tells species apart is form only: how many petals, their outline, how they overlap, the centre, the habit.
Every species comes in every colour of ``COLOURS``, so that a colour histogram says little.
"""

from collections.abc import Callable, Sequence

import numpy as np

from flowers.datasets.drawn_petals import (
    GOLDEN,
    GREENS,
    Canvas,
    Colour,
    Petal,
    circle,
    disc,
    draw_petal,
    pick,
    stamens,
    turn,
    whorl,
)  # fmt: skip

COLOURS: tuple[tuple[Colour, Colour], ...] = (  # rim and base of a petal, 0 to 255
    ((250, 248, 240), (226, 222, 206)),
    ((255, 222, 70), (240, 168, 26)),
    ((250, 158, 66), (226, 92, 30)),
    ((222, 54, 50), (140, 16, 34)),
    ((250, 190, 208), (224, 104, 146)),
    ((214, 66, 152), (138, 22, 100)),
    ((168, 122, 214), (98, 54, 156)),
    ((118, 158, 232), (54, 80, 178)),
)
HEARTS: tuple[Colour, ...] = ((246, 204, 60), (206, 132, 36), (108, 66, 34), (150, 176, 74), (58, 40, 48))


def _stem(canvas: Canvas, start: Sequence[float], end: Sequence[float], width: float = 0.09) -> None:
    green = pick(canvas.rng, GREENS)
    sway = np.linspace(0, 1, 8)[:, None]
    path = (1 - sway) * np.asarray(start) + sway * np.asarray(end)
    path[:, 0] += canvas.rng.normal(0, 0.12) * np.sin(np.pi * sway[:, 0])
    canvas.line(path, green * 0.7, width * 1.3)
    canvas.line(path, green, width * 0.8)


def _star(points: int, outer: float, inner: float, start: float = 0.0) -> np.ndarray:
    """The outline [2 * points, 2] of a star, its first tip at the angle ``start``."""
    angles = start + np.arange(2 * points) * np.pi / points
    return circle(angles) * np.tile([outer, inner], points)[:, None]


def daisy(canvas: Canvas, colours: np.ndarray) -> None:
    """Many narrow petals around a seeded disc."""
    count = int(canvas.rng.integers(15, 22))
    whorl(canvas, colours, count, 1.0, Petal(width=0.26, base=0.5, tip=0.3), jitter=0.04)
    disc(canvas, canvas.rng.uniform(0.28, 0.36), pick(canvas.rng, HEARTS))


def poppy(canvas: Canvas, colours: np.ndarray) -> None:
    """Four broad, crinkled petals that overlap; a ring of dark stamens."""
    start = canvas.rng.uniform(0, 6)
    shape = Petal(width=1.5, base=0.55, tip=0.3, wave=0.035)
    whorl(canvas, colours, 2, 1.0, shape, start=start)
    whorl(canvas, colours, 2, 0.92, shape, start=start + np.pi / 2)
    stamens(canvas, 26, 0.34, (60, 40, 50), pick(canvas.rng, HEARTS))
    disc(canvas, 0.15, (120, 150, 90), 12)


def tulip(canvas: Canvas, colours: np.ndarray) -> None:
    """A cup on a stem, seen from the side."""
    _stem(canvas, (0, 0.5), (0, 3.0), 0.13)
    up, shape = -np.pi / 2, {"base": 0.5, "tip": 0.6}
    for lean in (-0.30, 0.30):
        rim = Petal(width=0.5, **shape).outline(canvas.rng) * 1.75
        draw_petal(canvas, rim, up + lean * 0.6, (lean * 0.5, 0.85), colours * 0.82)
    for lean, long in ((-0.42, 1.62), (0.42, 1.62), (0.0, 1.55)):
        rim = Petal(width=0.62, bend=lean * 0.35, **shape).outline(canvas.rng) * long
        draw_petal(canvas, rim, up + lean * 0.45, (lean * 0.35, 0.9), colours * canvas.rng.uniform(0.94, 1.04))


def lily(canvas: Canvas, colours: np.ndarray) -> None:
    """Six pointed, spotted petals; six long stamens."""
    start, rng = canvas.rng.uniform(0, 6), canvas.rng
    for shift in (0.0, np.pi / 3):
        whorl(canvas, colours, 3, 1.05, Petal(width=0.42, base=0.8, tip=0.8, bend=0.05), start=start + shift)
    spots = rng.uniform(0.25, 0.62, 36)[:, None] * turn(
        np.array([1.0, 0.0]), start + np.repeat(np.arange(6), 6) * np.pi / 3
    )
    canvas.dots(spots + rng.normal(0, 0.045, (36, 2)), np.tile(colours[1] * 0.5, (36, 1)), 0.018)
    stamens(canvas, 6, 0.6, (206, 214, 150), (120, 60, 30), 0.055)


def dahlia(canvas: Canvas, colours: np.ndarray) -> None:
    """Rows and rows of pointed petals, no centre to see."""
    for row, length in enumerate((1.0, 0.84, 0.68, 0.52, 0.36, 0.2)):
        count = (16, 15, 13, 11, 8, 5)[row]
        shade = colours * (0.86 + 0.04 * row)
        whorl(canvas, shade, count, length, Petal(width=0.36, base=0.7, tip=0.75), start=row * 0.5, jitter=0.03)


def pansy(canvas: Canvas, colours: np.ndarray) -> None:
    """Five round petals with a dark face; the upper two have a colour of their own."""
    second = pick(canvas.rng, COLOURS)
    round_petal = {"base": 0.45, "tip": 0.32, "wave": 0.015}
    down, face = np.pi / 2, np.array([50.0, 24.0, 62.0])
    for side in (-1, 1):
        draw_petal(canvas, Petal(width=1.05, **round_petal).outline(canvas.rng), -down + side * 0.42, (0, 0.05), second)
    for angle, width in ((down - 1.42, 0.95), (down + 1.42, 0.95), (down, 1.3)):
        draw_petal(canvas, Petal(width=width, **round_petal).outline(canvas.rng) * 0.95, angle, (0, 0), colours)
        canvas.polygon(
            turn(Petal(width=0.8, base=0.5, tip=0.4, wave=0.05).outline(canvas.rng) * 0.5, angle), face, 0.85
        )
        rays = turn(np.array([[0.1, 0.0], [0.68, 0.0]]), angle + np.array([-0.22, 0.0, 0.22]))
        for ray in rays:
            canvas.line(ray, face, 0.018, 0.8)
    disc(canvas, 0.09, (246, 204, 60), 6)


def phlox(canvas: Canvas, colours: np.ndarray) -> None:
    """A cluster of thirteen small five-petalled flowers."""
    rng = canvas.rng
    heart = pick(rng, HEARTS)
    order = rng.permutation(13)
    for step in order:
        at = circle(step * GOLDEN) * 0.72 * np.sqrt(step / 12) + rng.normal(0, 0.04, 2)
        shade = colours * rng.uniform(0.85, 1.05)
        start = rng.uniform(0, 6)
        whorl(canvas, shade, 5, 0.34, Petal(width=0.85, base=0.8, tip=0.3, steps=8), at=at, start=start)
        canvas.dots(at[None], heart[None], 0.05)


def bluebell(canvas: Canvas, colours: np.ndarray) -> None:
    """Six bells that hang from a bent stem."""
    rng, down = canvas.rng, np.pi / 2
    _stem(canvas, (0.1, -1.0), (-0.25, 2.8), 0.07)
    for index, height in enumerate(np.linspace(-0.95, 0.75, 6)):
        side, size = 1 if index % 2 else -1, 0.42 + 0.06 * index
        at, lean = np.array([side * 0.16, height]), -side * rng.uniform(0.35, 0.7)
        canvas.line(np.stack([[0.0, height + 0.05], at]), (92, 128, 70), 0.04)
        for spread in (-0.5, 0.5, 0.0):
            rim = Petal(width=0.62, base=0.35, tip=0.55, bend=spread * 0.9, steps=10).outline(rng) * size
            draw_petal(canvas, rim, down + lean, at, colours * (0.86 if spread else 1.0))


def daffodil(canvas: Canvas, colours: np.ndarray) -> None:
    """Six petals behind a frilled trumpet of another colour."""
    cup = pick(canvas.rng, COLOURS)
    start = canvas.rng.uniform(0, 6)
    for shift in (0.0, np.pi / 3):
        whorl(canvas, colours, 3, 1.0, Petal(width=0.62, base=0.6, tip=0.55), start=start + shift)
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    frill = 1 + 0.07 * np.sin(12 * angles)
    ring = circle(angles) * frill[:, None]
    canvas.polygon(ring * 0.50, cup[1] * 0.5, 0.5)
    for scale, tone in ((0.46, 1.0), (0.40, 0.9), (0.33, 0.78), (0.26, 0.62), (0.18, 0.46)):
        canvas.polygon(ring * scale, cup[0] * tone)
    stamens(canvas, 6, 0.13, (220, 200, 120), (240, 210, 90), 0.03)


def allium(canvas: Canvas, colours: np.ndarray) -> None:
    """A ball of small stars on a stem."""
    rng = canvas.rng
    _stem(canvas, (0, 0.3), (0, 3.2), 0.07)
    depth = np.arange(46)
    reach = 0.95 * np.sqrt(1 - ((depth + 0.5) / 46) ** 2)
    for step, far in zip(depth, reach, strict=True):
        at = circle(step * GOLDEN) * far
        canvas.line(np.stack([at * 0, at]), (120, 150, 90), 0.012, 0.6)
        shade = colours * (0.62 + 0.42 * step / 46)
        canvas.polygon(_star(6, 0.19, 0.05, rng.uniform(0, 6)) + at, shade[0])
        canvas.dots(at[None], shade[1][None], 0.03)


def rose(canvas: Canvas, colours: np.ndarray) -> None:
    """Broad round petals, wrapped inwards."""
    start = canvas.rng.uniform(0, 6)
    for row, length in enumerate((1.0, 0.86, 0.72, 0.57, 0.43, 0.3, 0.18)):
        shade = colours * (0.98 - 0.05 * row)
        shape = Petal(width=1.35, base=0.4, tip=0.22, wave=0.012)
        whorl(canvas, shade, 5 if row < 4 else 3, length, shape, start=start + row * 0.83, jitter=0.05)


def cherry(canvas: Canvas, colours: np.ndarray) -> None:
    """Five notched petals, apart from each other, and loose stamens."""
    whorl(canvas, colours, 5, 1.0, Petal(width=0.78, base=1.15, tip=0.36, notch=0.14))
    stamens(canvas, 14, 0.44, colours[1], pick(canvas.rng, HEARTS))


def periwinkle(canvas: Canvas, colours: np.ndarray) -> None:
    """Five skewed petals, as of a propeller, around a pale star."""
    whorl(canvas, colours, 5, 0.98, Petal(width=0.62, base=1.3, tip=0.25, bend=0.42), jitter=0.03)
    canvas.polygon(_star(5, 0.24, 0.11), (250, 248, 236))
    canvas.dots(np.zeros((1, 2)), np.array([[226.0, 186.0, 60.0]]), 0.06)


def carnation(canvas: Canvas, colours: np.ndarray) -> None:
    """Rows of fringed petals."""
    for row, length in enumerate((1.0, 0.8, 0.6, 0.4)):
        shade = colours * (0.84 + 0.06 * row)
        shape = Petal(width=0.95, base=0.9, tip=0.18, fringe=0.07)
        whorl(canvas, shade, (9, 8, 6, 4)[row], length, shape, start=row * 0.4)


def bindweed(canvas: Canvas, colours: np.ndarray) -> None:
    """One round funnel with five pale rays."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False) + canvas.rng.uniform(0, 6)
    rim = circle(angles) * (1 + 0.035 * np.cos(5 * angles))[:, None]
    canvas.polygon(rim * 1.03, colours[1] * 0.45, 0.4)
    for scale, share in ((1.0, 0.0), (0.88, 0.25), (0.74, 0.5), (0.6, 0.75), (0.46, 1.0)):
        canvas.polygon(rim * scale, colours[0] + (colours[1] - colours[0]) * share)
    pale = np.array([252.0, 250.0, 240.0]) if colours[0].min() < 200 else colours[1] * 0.8
    for index in range(5):
        ray = turn(Petal(width=0.26, base=0.3, tip=0.9).outline(canvas.rng) * 0.97, 2 * np.pi * index / 5)
        canvas.polygon(ray, pale, 0.8)
    for scale, tone in ((0.3, 0.97), (0.2, 0.85), (0.11, 0.6)):
        canvas.polygon(rim * scale, np.array([248.0, 240.0, 176.0]) * tone)


def sunflower(canvas: Canvas, colours: np.ndarray) -> None:
    """Two rows of pointed petals around a disc that fills half of the flower."""
    for row, length in enumerate((1.0, 0.92)):
        whorl(canvas, colours * (0.85 + 0.15 * row), 17, length, Petal(width=0.24, base=0.8, tip=0.9), start=row * 0.19)
    disc(canvas, canvas.rng.uniform(0.5, 0.58), pick(canvas.rng, HEARTS), 150)


# The order is the class folders' order, 1 to 16: it only grows, so that a class keeps its pictures.
SPECIES: dict[str, Callable[[Canvas, np.ndarray], None]] = {
    drawer.__name__: drawer
    for drawer in (
        daisy, poppy, tulip, lily, dahlia, pansy, phlox, bluebell,
        daffodil, allium, rose, cherry, periwinkle, carnation, bindweed, sunflower,
    )
}  # fmt: skip
UPRIGHT = frozenset({"tulip", "bluebell", "allium", "pansy"})
