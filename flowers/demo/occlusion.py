"""Occlusion maps: the drop of a class's score when a part of the picture is covered.

It looks only at what goes in and what comes out, so it is the same for every network (convolutions, transformers) and
every engine (PyTorch, OpenVINO, ONNX Runtime), and there is no feature map that a network would have to have.

Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, section 4.2.
"""

import numpy as np

from flowers.engines.engine import Engine

STEPS = 8
"""Covers a row; each is twice as wide as the step between them, so that every inner cell is covered four times."""
_SMALLEST_PROB = 1e-6


def occlusion_map(engine: Engine, view: np.ndarray, target: int, prob: float, fill: tuple[int, int, int]) -> np.ndarray:
    """Measure the evidence for a class in each part of a picture.

    Args:
        view: uint8 [S, S, 3], as the network sees it.
        target: index of the class.
        prob: its probability for the whole picture.
        fill: colour of the covers, RGB; the mean that the network was trained with says nothing to it.

    Returns:
        float32 [STEPS, STEPS]: mean fall of the class's log-odds over the covers that lie on a cell. Above 0 speaks for
        the class, below 0 against it.
    """
    edges = np.linspace(0, len(view), STEPS + 1).round().astype(int)
    # Covers begin one cell outside, so that those at the border are looked at as often as the others.
    places = [(row, column) for row in range(-1, STEPS) for column in range(-1, STEPS)]
    falls, covers = np.zeros((STEPS, STEPS), np.float32), np.zeros((STEPS, STEPS), np.float32)
    whole = _log_odds(np.float32(prob))
    for first in range(0, len(places), engine.batch_size):
        batch = places[first : first + engine.batch_size]
        images = np.repeat(view[None], len(batch), axis=0)
        for image, (row, column) in zip(images, batch, strict=True):
            top, left = edges[max(row, 0)], edges[max(column, 0)]
            image[top : edges[min(row + 2, STEPS)], left : edges[min(column + 2, STEPS)]] = fill
        probs = engine.submit(images).result().probs[:, target]
        for (row, column), fall in zip(batch, whole - _log_odds(probs), strict=True):
            cells = slice(max(row, 0), row + 2), slice(max(column, 0), column + 2)
            falls[cells] += fall
            covers[cells] += 1
    return falls / covers


def _log_odds(probs: np.ndarray) -> np.ndarray:
    """Not the probability itself, which hardly moves while it is near 1."""
    probs = np.clip(probs.astype(np.float64), _SMALLEST_PROB, 1 - _SMALLEST_PROB)
    return np.log(probs / (1 - probs))
