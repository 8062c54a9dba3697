"""Flags of ``jobs/demo.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from flowers.config.values import check_least
from flowers.errors import UsageError
from flowers.flags import Flag


@dataclass(frozen=True)
class DemoConfig:
    """Serve a page in the browser: drop a photo, see the five best classes and which pixels mattered.

    It listens on this machine only unless --host says otherwise, and loads nothing from the network. Ctrl-C ends it.
    """

    GROUPS: ClassVar = {
        "checkpoint": "model",
        "examples": "page",
    }
    """First field of each group of flags in --help, and its title."""
    must_exist: ClassVar = ("checkpoint",)
    """Fields of paths that are looked for before anything is imported."""

    checkpoint: Annotated[Path, Flag(takes="a model folder, a run folder or an exported file")]
    """Model folder, a run folder (its best model), or an exported .onnx or .xml file."""
    class_names: Path | None = None
    """JSON file that maps class folders to display names. Default: the names in the model."""
    engine: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = "auto"
    """What runs the network (onnxruntime: an exported .onnx). auto: the fastest engine that is installed."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""

    examples: Path | None = None
    """Folder of photos to offer on the page; the first eight are shown. Default: none."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets in everyone who can reach this machine."""
    port: int | None = None
    """Port to listen on, 0 for any free one. Default: the first free one from 7860."""
    max_upload: float = 20.0
    """Largest upload, in MB."""
    max_waiting: int = 32
    """Photos that may wait in the queue; further ones are refused until it is shorter."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65535:
            raise UsageError(f"--port: got {self.port}, expected a number from 0 to 65535")
        if not 0 < self.max_upload <= 1024:
            raise UsageError(f"--max-upload: got {self.max_upload}, expected megabytes, above 0 and up to 1024")
        check_least(self, {"max_waiting": 1})
