"""Line plots: for pages as data of ``plot.html``, which draws them as inline SVG in the page's colours; one as a PNG.

matplotlib draws only the PNG of the learning-rate range test; pages need neither it nor a network.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers.errors import UsageError
from flowers.files import write_atomically

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 28, 12, 40
CHARACTER = 7
"""Width of a digit of an axis label in pixels, at the size that style.css gives it."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: for the legend and for readers who hear the page.
        points: (x, y); what is not finite is left out.
        color: a variable of style.css, "blue" say.
        dashed: drawn dashed, so that lines differ by more than colour.
        marks: draw a dot at each point.
    """

    name: str
    points: Points
    color: str = "blue"
    dashed: bool = False
    marks: bool = True


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its position in pixels from the edge of the drawing, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A line, laid out: SVG path data, and a dot with its figures for each point."""

    name: str
    color: str
    dashed: bool
    data: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Plot:
    """A plot, laid out in a box of WIDTH x HEIGHT pixels."""

    title: str
    x_label: str
    paths: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    mark: Tick | None = None
    left: int = LEFT
    width: int = WIDTH
    height: int = HEIGHT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def lay_out(
    title: str, lines: Sequence[Line], *, x_label: str, y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None, percent: bool = False, percent_x: bool = False,
    mark: tuple[float, str] | None = None,
) -> Plot | None:  # fmt: skip
    """Place lines and ticks.

    Args:
        y_range, x_range: limits of the axes; default: the range of the points, rounded outwards.
        percent, percent_x: write the ticks of y or x, which are fractions, as percent.
        mark: an x to draw a vertical line at, and what it is.

    Returns:
        None where there is no point to draw.
    """
    lines = [Line(line.name, _finite(line.points), line.color, line.dashed, line.marks) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if percent and y_range is None and min(ys) == max(ys):  # room around a flat line of 100% would reach 150%
        y_range = (0, 1)
    x_values, (x_low, x_high) = ticks(*(x_range or (min(xs), max(xs))), tight=True)
    if all(x == int(x) for x in xs):  # there is no epoch 1.5
        x_values = [value for value in x_values if value == int(value)]
    y_values, (y_low, y_high) = ticks(*(y_range or (min(ys), max(ys))), tight=y_range is not None)

    y_texts = _texts(y_values, percent)
    left = max(LEFT, 12 + CHARACTER * max(map(len, y_texts)))

    def x_at(value: float) -> float:
        return round(left + (value - x_low) / (x_high - x_low) * (WIDTH - left - RIGHT), 1)

    def y_at(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    paths = []
    for line in lines:
        places = [(x_at(x), y_at(y)) for x, y in line.points]
        data = "M" + "L".join(f"{x} {y}" for x, y in places)
        texts = [f"{line.name}: {_text(y, percent)} at {x_label} {_text(x, percent_x)}" for x, y in line.points]
        dots = [(x, y, text) for (x, y), text in zip(places, texts, strict=True)] if line.marks else []
        paths.append(Curve(line.name, line.color, line.dashed, data, dots))
    x_ticks = [Tick(x_at(value), text) for value, text in zip(x_values, _texts(x_values, percent_x), strict=True)]
    y_ticks = [Tick(y_at(value), text) for value, text in zip(y_values, y_texts, strict=True)]
    marked = Tick(x_at(mark[0]), mark[1]) if mark is not None and x_low <= mark[0] <= x_high else None
    return Plot(title, x_label, paths, x_ticks, y_ticks, marked, left)


def ticks(low: float, high: float, *, tight: bool) -> tuple[list[float], tuple[float, float]]:
    """Round values for an axis, four to eight of them, and the axis's ends: those given if ``tight``, else ticks."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-9):
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.99)
    if tight:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(place * step, 12 - exponent) for place in range(first, last + 1)]
    return values, (low, high) if tight else (values[0], values[-1])


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def _text(value: float, percent: bool) -> str:
    """A point's figure: four digits, and all of a large number's."""
    if percent:
        return f"{100 * value:.4g}%"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _texts(values: Sequence[float], percent: bool) -> list[str]:
    """Labels of an axis: as many decimals as tell its ticks apart, thousands separated; powers of ten beyond that."""
    values = [100 * value for value in values] if percent else list(values)
    step = min((abs(b - a) for a, b in itertools.pairwise(values)), default=1.0)
    decimals = next((places for places in range(7) if abs(round(step, places) - step) < step / 100), None)
    if decimals is None or max(map(abs, values), default=0.0) >= 1e9:
        texts = [f"{value:.4g}" for value in values]
    else:
        texts = [f"{value:,.{decimals}f}" for value in values]
    return [f"{text}%" for text in texts] if percent else texts


def draw_lr_curve(
    path: Path, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], *,
    suggestion: float | None, title: str,
) -> None:  # fmt: skip
    """Write a PNG: loss over the logarithm of the rate, as measured and smoothed, with the suggestion marked.

    Args:
        rates: [N] learning rates.
        losses: [N]; what is not finite is left out.
        smoothed: [N].
        suggestion: the rate to mark, if any.

    Raises:
        UsageError: matplotlib is not installed.
        FlowersError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"{path.name} needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    points = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    line = [(rate, loss) for rate, loss in zip(rates, smoothed, strict=True) if math.isfinite(loss)]
    if points:
        axes.plot(*zip(*points, strict=True), ".", color="0.7", label="loss of each step")
        axes.plot(*zip(*line, strict=True), color="tab:blue", label="smoothed")
        values = [loss for _, loss in line]
        low, start = min(values), values[0]
        axes.set_ylim(low - 0.1 * abs(low), max(start, low) * 1.5)
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", linestyle="--", label=f"suggestion {suggestion:g}")
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1] if len(rates) > 1 else 10 * rates[0])
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with write_atomically(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100)
