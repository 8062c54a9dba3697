"""Pictures that tests make, and how far two are apart."""

import numpy as np
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise of all scales, as photos have: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    cells = 4
    while cells < min(512, 2 * max(height, width)):
        noise = (rng.random((cells, cells, 3)) * 255).astype(np.uint8)
        layers += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / cells**0.7
        cells *= 2
    layers -= layers.min()
    return (layers * (255 / max(layers.max(), 1e-9))).astype(np.uint8)


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int))
