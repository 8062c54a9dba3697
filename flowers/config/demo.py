"""Flags of ``jobs/demo.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowers.errors import UsageError


@dataclass(frozen=True)
class DemoConfig:
    """Open a page to play with: drop a photo, see the five best names and which pixels mattered.

    It listens on this machine only, unless --host says otherwise, and fetches and sends nothing. Ctrl-C ends it.
    """

    checkpoint: Path
    """Model bundle, a run folder (its best model), or what jobs/export.py wrote (.onnx or .xml)."""
    config: Path | None = None
    """YAML file of defaults for these flags."""
    class_names: Path | None = None
    """JSON of class folder to display name; default: the names in the model."""
    examples: Path | None = None
    """Folder of photos to offer on the page; the first eight in it."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets everyone in who can reach this machine."""
    port: int | None = None
    """Port to listen on, 0 for any free one; default: the first free one from 7860."""
    max_upload: float = 20.0
    """Largest file that is taken, in MB."""
    max_waiting: int = 32
    """Photos that may wait for their turn; more are turned away until it is less."""

    engine: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = "auto"
    """What runs the network (onnxruntime: an exported .onnx); auto takes the fastest that is there and says which."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65535:
            raise UsageError(f"--port: got {self.port}, expected a number from 0 to 65535")
        if not 0 < self.max_upload <= 1024:
            raise UsageError(f"--max-upload: got {self.max_upload}, expected megabytes, above 0 and up to 1024")
        if self.max_waiting < 1:
            raise UsageError(f"--max-waiting: got {self.max_waiting}, expected at least 1")
