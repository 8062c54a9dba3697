"""Flags of ``jobs/info.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flowers.flags import Flag


@dataclass(frozen=True)
class InfoConfig:
    """Describe a model: network, classes, accuracy, how it was made, size, hash.

    The model is loaded as every other job loads it, so one that is described here is whole.
    """

    path: Annotated[Path, Flag(positional=True, takes="a model folder or an exported file")]
    """Model folder, checkpoint, run folder (its best model), or exported file (.onnx or .xml)."""
    json: bool = False
    """Print one JSON object, for other programs."""
