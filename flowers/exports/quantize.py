"""int8 after training: ranges of values are measured on photos, weights and activations get 8 bits each.

CPUs without instructions for products of 8 bits (VNNI and the like) add up two products in 16 bits, which overflow
where a full signed weight meets a full activation. On such a CPU (AVX2), with EfficientNet-Lite0 and a weak head, 84%
(OpenVINO) and 77% (ONNX Runtime) of 818 photos' classes stayed. So weights take 7 of the bits for OpenVINO, and are
unsigned for ONNX Runtime, which then computes in wider sums.

The first quarter of the convolutions, whose errors all later ones carry on, and the head's last layer stay in float32.
With the head of train.py's default flags 98.5% of the classes stay there (the settings were chosen on these photos),
rather than 97.6%. OpenVINO still computes 1.3 times as fast as in float32; ONNX Runtime's int8 gains in size alone.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flowers.errors import ModelError


def quantize_openvino(model, images: np.ndarray):
    """Quantise an openvino.Model with NNCF: post-training, with bias correction.

    The model should come from ONNX, where batch norm is part of the convolutions: as OpenVINO's own conversion from
    PyTorch leaves it, the same settings keep fewer classes. It is simplified in place, as ``openvino.convert_model``
    would (which reports its use to its makers over the net).

    Args:
        images: what the network takes, [N, ...].

    Returns:
        An openvino.Model.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use to its makers over the net
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(model, cf=True)  # else a ReLU6 is a Minimum and a Maximum: 97.7% stayed
    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([images[index : index + 1] for index in range(len(images))])
    kinds = [(node.get_friendly_name(), node.get_type_name()) for node in model.get_ordered_ops()]
    in_float = _stay_in_float(kinds, ("Convolution", "GroupConvolution"), ("MatMul",))
    how = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE, activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
    )
    with _silent():
        return nncf.quantize(
            model, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images), fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=in_float), advanced_parameters=how,
        )  # fmt: skip


def quantize_onnx(source: Path, target: Path, images: np.ndarray) -> None:
    """Quantise an ONNX file with ONNX Runtime's own tool: QDQ form, weights by channel.

    Args:
        images: what the network takes, [N, ...].
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._images = ({"images": images[index : index + 1]} for index in range(len(images)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._images, None)

    kinds = [(node.name, node.op_type) for node in onnx.load(source).graph.node]
    first = next((index for index, (_, kind) in enumerate(kinds) if kind == "Conv"), 0)
    normalisation = [name for name, _ in kinds[:first]]
    with _silent():
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool"],
            nodes_to_exclude=normalisation + _stay_in_float(kinds, ("Conv",), ("Gemm", "MatMul")),
        )  # fmt: skip


def _stay_in_float(kinds: list[tuple[str, str]], convolutions: tuple[str, ...], products: tuple[str, ...]) -> list[str]:
    """Names of the first quarter of the convolutions and of the head's last layer.

    Args:
        kinds: name and kind of each node, in the order that they are computed.
    """
    found = [name for name, kind in kinds if kind in convolutions]
    return found[: len(found) // 4] + [name for name, kind in kinds if kind in products][-1:]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence the progress bars of the tools, and warnings about things that are as intended."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # the tools raise whatever their parts raise
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"--precision int8: {type(error).__name__} while quantising: {reason}") from error
        finally:
            logging.disable(level)
