"""The strokes that drawn flowers are made of: petals, whorls of petals, seeded discs, stamens.

All lengths are in units of the flower's radius; a ``Canvas`` turns them into pixels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]
GREENS: tuple[Colour, ...] = ((74, 128, 58), (104, 150, 72), (52, 104, 66), (128, 150, 78))

GOLDEN = 2.4
"""Radians from one to the next in a sunflower's spiral."""
_SHARES = {steps: np.linspace(0, 1, steps) for steps in (3, 5)}


class Canvas:
    """A picture that is drawn on in the flower's own coordinates: centre 0, radius 1, seen at an angle."""

    def __init__(self, image: Image.Image, rng: np.random.Generator):
        self.image, self.rng = image, rng
        self._solid, self._glaze = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")
        self.place((image.width / 2, image.height / 2), image.width / 3, 0.0)

    def place(self, centre: tuple[float, float], radius: float, turn: float, squash: float = 1.0) -> None:
        """Put the flower at ``centre`` (pixels), turned by ``turn`` (radians), foreshortened by ``squash``."""
        cos, sin = np.cos(turn), np.sin(turn)
        axis = self.rng.uniform(0, np.pi) if squash < 1 else 0.0
        along = circle(axis)
        view = np.eye(2) - (1 - squash) * np.outer(along, along)
        self._matrix = radius * view @ np.array([[cos, -sin], [sin, cos]])
        self._centre, self.radius = np.asarray(centre), radius

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """[..., 2] in flower units to pixels."""
        return points @ self._matrix.T + self._centre

    def polygon(self, points: np.ndarray, colour: Colour, alpha: float = 1.0) -> None:
        """Fill the outline ``points`` [N, 2]."""
        pen = self._solid if alpha == 1 else self._glaze  # blending costs six times as much
        pen.polygon(self.pixels(points).ravel().tolist(), fill=_ink(colour, alpha))

    def shells(self, points: np.ndarray, colours: np.ndarray) -> None:
        """Fill outlines [K, N, 2] one over the other, in ``colours`` [K, 3]."""
        pixels = self.pixels(points).reshape(len(points), -1)
        for outer, colour in zip(pixels.tolist(), colours.tolist(), strict=True):
            self._solid.polygon(outer, fill=_ink(colour))

    def line(self, points: np.ndarray, colour: Colour, width: float, alpha: float = 1.0) -> None:
        """A stroke through ``points`` [N, 2], ``width`` in flower units."""
        pen, pixels = self._solid if alpha == 1 else self._glaze, max(1, round(width * self.radius))
        path = self.pixels(points).ravel().tolist()
        pen.line(path, fill=_ink(colour, alpha), width=pixels, joint="curve")

    def dots(self, points: np.ndarray, colours: np.ndarray, size: float) -> None:
        """Small discs at ``points`` [N, 2] in ``colours`` [N, 3], ``size`` their radius in flower units."""
        half = max(1.0, size * self.radius)
        for (x, y), colour in zip(self.pixels(points).tolist(), colours.tolist(), strict=True):
            self._solid.ellipse((x - half, y - half, x + half, y + half), fill=_ink(colour))


@dataclass(frozen=True)
class Petal:
    """The shape of a petal that lies from its base at 0 to its tip at (1, 0).

    Attributes:
        width: full width as a share of the length.
        base: how slowly it widens from the base (0.3 wide at once, 2 a stalk).
        tip: how it ends (1 pointed, 0.5 round, 0.25 blunt).
        notch: depth of a cut in the tip, as of a heart.
        fringe: depth of teeth along the far rim.
        wave: depth of irregular waves along the rim.
        bend: how far the tip leans to one side.
        steps: points along each side.
    """

    width: float
    base: float = 1.0
    tip: float = 0.5
    notch: float = 0.0
    fringe: float = 0.0
    wave: float = 0.0
    bend: float = 0.0
    steps: int = 16

    def outline(self, rng: np.random.Generator) -> np.ndarray:
        """The rim of one petal, float [2 * steps, 2], closed by the caller; its waves are drawn from ``rng``."""
        x, y = _profile(self.width, self.base, self.tip, self.notch, self.steps)
        if self.wave:
            phase = rng.uniform(0, 2 * np.pi, 2)
            turn = np.linspace(0, 2 * np.pi, len(x))
            ripple = 1 + self.wave * (np.sin(5 * turn + phase[0]) + 0.6 * np.sin(11 * turn + phase[1])) * x
            x, y = x * ripple, y * ripple
        if self.fringe:
            teeth = 1 + self.fringe * np.where(np.arange(len(x)) % 2, 1, -1) * (x > 0.45)
            x, y = x * teeth, y * teeth
        return np.stack([x, y + self.bend * x**2], axis=1)


@functools.cache
def _profile(width: float, base: float, tip: float, notch: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of ``Petal.outline`` that is the same for every petal of a kind."""
    along = (1 - np.cos(np.linspace(0, np.pi, steps))) / 2
    half = along**base * (1 - along) ** tip
    half *= width / 2 / half.max()
    x = np.concatenate([along, along[::-1]])
    y = np.concatenate([half, -half[::-1]])
    return x - notch * np.exp(-((y / (0.22 * width)) ** 2)) * x**6, y


def draw_petal(canvas: Canvas, rim: np.ndarray, angle: float, at: Sequence[float], colours: np.ndarray) -> None:
    """Paint one petal: a shadow, a gradient from rim to base, a lit half, a midrib.

    Args:
        rim: [N, 2] from ``Petal.outline``, scaled to its length.
        angle: where it points, in radians.
        at: where its base lies.
        colours: [2, 3] of the rim and the base.
    """
    turned, half = turn(rim, angle), len(rim) // 2
    canvas.polygon(turned * 1.03 + at, colours[1] * 0.6)
    size = rim[:, 0].max() * canvas.radius
    share = _SHARES[5 if size > 60 else 3]  # a small petal hides a coarser gradient
    shells = turned * (1 - 0.62 * share[:, None, None]) + at
    canvas.shells(shells, colours[0] + (colours[1] - colours[0]) * share[:, None])
    canvas.polygon(turned[:half] * 0.97 + at, (255, 255, 255), 0.14)
    middle = (turned[1 : half - 1] + turned[-2:half:-1]) / 2
    canvas.line(middle * 0.9 + at, colours[1] * 0.75, 0.012)


def whorl(
    canvas: Canvas,
    colours: np.ndarray,
    count: int,
    length: float,
    petal: Petal,
    *,
    at: Sequence[float] = (0.0, 0.0),
    start: float = 0.0,
    jitter: float = 0.06,
) -> None:
    """``count`` petals around a point, the first one at the angle ``start``, each a little different."""
    rng = canvas.rng
    for index in range(count):
        angle = 2 * np.pi * index / count + start + rng.normal(0, jitter)
        rim = petal.outline(rng) * (length * rng.uniform(1 - 2 * jitter, 1 + jitter))
        draw_petal(canvas, rim, angle, at, colours * rng.uniform(0.92, 1.04))


def disc(canvas: Canvas, radius: float, colour: Colour, grain: int = 40) -> None:
    """A seeded centre: a dark rim, then grains in the sunflower's spiral."""
    colour = np.asarray(colour, dtype=float)
    ring = circle(np.linspace(0, 2 * np.pi, 24, endpoint=False))
    canvas.polygon(ring * radius * 1.06, colour * 0.5)
    canvas.polygon(ring * radius, colour * 0.8)
    order = np.arange(grain)
    reach = radius * 0.95 * np.sqrt((order + 0.5) / grain)
    points = circle(order * GOLDEN) * reach[:, None]
    shades = colour * (0.75 + 0.5 * canvas.rng.random((grain, 1)))
    canvas.dots(points, shades.clip(0, 255), radius * 0.8 / np.sqrt(grain))


def stamens(canvas: Canvas, count: int, length: float, colour: Colour, head: Colour, size: float = 0.035) -> None:
    """Threads from the centre, each with a head."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + canvas.rng.uniform(0, 6)
    ends = circle(angles) * canvas.rng.uniform(0.75, 1, (count, 1)) * length
    for end in ends:
        canvas.line(np.stack([end * 0, end]), colour, 0.018)
    canvas.dots(ends, np.tile(np.asarray(head, dtype=float), (count, 1)), size)


def pick(rng: np.random.Generator, colours: Sequence) -> np.ndarray:
    """One of some colours, or pairs of them, as floats."""
    return np.asarray(colours[rng.integers(len(colours))], dtype=float)


def circle(angles: float | np.ndarray) -> np.ndarray:
    """Points [..., 2] at distance 1 from 0."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def turn(points: np.ndarray, angle: float | np.ndarray) -> np.ndarray:
    """Rotate points [..., 2] about 0; an array of angles gives one copy each, in front."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    return points @ (matrix if matrix.ndim == 2 else matrix.transpose(2, 0, 1))


def _ink(colour: Colour, alpha: float = 1.0) -> tuple[int, int, int, int]:
    red, green, blue = colour
    return _byte(red), _byte(green), _byte(blue), round(255 * alpha)


def _byte(value: float) -> int:
    return min(255, max(0, int(value + 0.5)))
