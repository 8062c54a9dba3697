"""The network that is exported, and its conversion to ONNX, OpenVINO or torch.export."""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowers.config.export import ExportConfig
from flowers.data.paths import readable
from flowers.engines import openvino_engine
from flowers.engines.exported import KEY, as_input, describe
from flowers.engines.torch_engine import DTYPES, PixelNetwork, drawn_pictures
from flowers.errors import ModelError, UsageError
from flowers.exports import quantize
from flowers.made import how_made
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


def write(config: ExportConfig, bundle: Bundle, calibration: np.ndarray | None, path: Path) -> None:
    """Write a bundle as the file that the config asks for.

    Args:
        calibration: what the network takes, [N, ...], of photos to measure the ranges of int8 on.

    Raises:
        ModelError: the format or int8 cannot express the network.
    """
    size = bundle.preprocessing.crop
    # OpenVINO's fp16 is how weights are kept; the device settles how to compute
    computed = "float32" if config.format == "openvino" else config.precision
    network = ProbsNetwork(bundle, computed, config.layout).eval()
    images = example(size, config.input_type, config.layout)
    made = {**how_made(), **{name: bundle.made[name] for name in ("temperature", "min_prob") if name in bundle.made}}
    text = describe(bundle, config.precision, config.input_type, config.layout, made)
    if config.format == "torch-export":
        write_torch_export(network, images, text, path)
        return
    floating = path.with_name("float.onnx")
    write_onnx(network, images, floating)
    if config.format == "openvino":
        model = openvino_engine.read_model(floating)
        if calibration is not None:
            model = quantize.quantize_openvino(model, calibration)
        write_openvino(model, config.precision, text, path)
    elif calibration is not None:
        quantize.quantize_onnx(floating, path, calibration)
        floating.unlink()
        write_onnx_text(path, text)
    else:
        os.replace(floating, path)
        write_onnx_text(path, text)


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
