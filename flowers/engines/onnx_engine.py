"""An ONNX file in ONNX Runtime, on the CPU: one thread an inference, as in the other engines."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowers.data.paths import readable
from flowers.engines.torch_engine import Infer
from flowers.errors import ModelError


def onnx_worker(path: Path) -> Callable[[], Infer]:
    """Return a factory that each thread of a pool calls once for its own function from inputs to outputs.

    Raises:
        ModelError: ONNX Runtime cannot run it.
    """
    session = open_session(path)
    name = session.get_inputs()[0].name

    def infer(images: np.ndarray) -> list[np.ndarray]:  # a session may be used by many threads
        try:
            return session.run(None, {name: images})
        except Exception as error:
            raise _refusal(path, "run", error) from None

    return lambda: infer


def open_session(path: Path, *, optimize: bool = True):
    """An onnxruntime.InferenceSession that computes on the thread that calls it.

    Args:
        optimize: False: quickly, to look at it only.

    Raises:
        ModelError: the file is none of ONNX, or damaged.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refusal(path, "read", error) from None


def _refusal(path: Path, what: str, error: Exception) -> ModelError:
    """The line for an exception of ONNX Runtime, which has a class a kind of failure, without a base of their own."""
    return ModelError(f"{readable(path)}: ONNX Runtime cannot {what} it ({' '.join(str(error).split())[:300]})")
