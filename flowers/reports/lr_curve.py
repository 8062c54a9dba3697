"""The curve of a learning-rate range test as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from flowers.errors import UsageError
from flowers.files import write_atomically


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
