"""The network that is exported, and its conversion to ONNX, OpenVINO or torch.export."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowers.data.paths import readable
from flowers.engines.exported import KEY, as_input
from flowers.engines.torch_engine import DTYPES, PixelNetwork, drawn_pictures
from flowers.errors import ModelError, UsageError
from flowers.models.bundle import Bundle

OPSET = 18  # of ONNX: what the exporter makes itself, and what runtimes of 2023 and later read
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch-export": (),
    "openvino int8": ("nncf",),
}


class ProbsNetwork(nn.Module):
    """From pixels 0 to 255 to probs; normalisation and softmax are those of every engine here, PixelNetwork's.

    Args:
        layout: of the input, "NHWC" or "NCHW".
    """

    def __init__(self, bundle: Bundle, precision: str, layout: str):
        super().__init__()
        dtype = DTYPES["float32" if precision == "int8" else precision]
        pixels = PixelNetwork(bundle.build(), bundle.preprocessing, dtype)
        self.pixels = pixels.to(memory_format=torch.contiguous_format)
        self.layout = layout

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Images uint8 or float32 [B, S, S, 3] (NCHW: [B, 3, S, S]) to probs float32 [B, num_classes]."""
        if self.layout == "NCHW":
            images = images.permute(0, 2, 3, 1)
        return self.pixels(images)[-1:]


def require(format: str, precision: str) -> None:
    """Check that the packages that an export needs are installed.

    Raises:
        UsageError: it is not.
    """
    needed = [*PACKAGES[format], *PACKAGES.get(f"{format} {precision}", ())]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--format {format} --precision {precision}: pip install {' '.join(missing)}")


def example(size: int, input_type: str, layout: str) -> np.ndarray:
    """Two pictures, as the network takes them."""
    return as_input(drawn_pictures(2, size), input_type, layout)


def write_torch_export(network: ProbsNetwork, images: np.ndarray, text: str, path: Path) -> None:
    """Write a torch.export file; the text goes with it as flowers.json.

    Raises:
        ModelError: torch.export cannot capture the network.
    """
    torch.export.save(_capture(network, images), path, extra_files={f"{KEY}.json": text})


def write_onnx(network: ProbsNetwork, images: np.ndarray, path: Path) -> None:
    """Write an ONNX file with the input ``images`` and the output ``probs``.

    Raises:
        ModelError: it cannot be expressed in ONNX.
    """
    program = _capture(network, images)
    with _quietly("ONNX", network):
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["probs"], verbose=False
        )
        exported.save(path, external_data=False)


def write_onnx_text(path: Path, text: str) -> None:
    """Put the text that travels inside into a written ONNX file."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)


def write_openvino(model, precision: str, text: str, path: Path) -> None:
    """Write OpenVINO's two files; fp16 is how the weights are kept, the device settles how to compute."""
    import openvino

    model.set_rt_info(text, [KEY])
    try:
        openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:  # a full disk, too
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"OpenVINO cannot write {readable(path)}: {reason}") from error


def _capture(network: ProbsNetwork, images: np.ndarray) -> torch.export.ExportedProgram:
    with _quietly("torch.export", network), torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=65535)
        return torch.export.export(network, (torch.from_numpy(images),), dynamic_shapes=({0: batch},))


@contextlib.contextmanager
def _quietly(what: str, network: ProbsNetwork) -> Iterator[None]:
    """Exporters explain themselves at length, and raise whatever their parts raise."""
    level = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:
        name = type(network.pixels.backbone).__name__
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{what} cannot express this network ({name}): {type(error).__name__}: {reason}") from error
    finally:
        logging.disable(level)
