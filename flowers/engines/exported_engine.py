"""Run an exported file as the engines run a bundle: same interface, chunks, threads and rules for doubtful labels."""

import numpy as np

from flowers.engines import openvino_engine
from flowers.engines.engine import CPU_CHUNK, Engine, build_engine
from flowers.engines.exported import ExportedModel, reader
from flowers.engines.onnx_engine import onnx_worker
from flowers.engines.pool import Pool
from flowers.errors import ModelError, UsageError
from flowers.machine import cpus_per_process
from flowers.models.bundle import Bundle


def build_exported_engine(
    model: ExportedModel, *, engine: str = "auto", precision: str = "auto", batch_size: int = 32,
    threads: int | None = None,
) -> Engine:  # fmt: skip
    """Build an engine for an exported model, on the CPU.

    ONNX Runtime computes an ONNX file as it is. OpenVINO computes float32 and fp16 files in bf16 where the CPU does
    so natively, and what is doubtful again in float32; int8 files as they are.

    Args:
        engine: "auto", "onnxruntime" (ONNX files) or "openvino" (both kinds).
        precision: "auto", that of the file, or for OpenVINO "float32" and "bf16".
        batch_size: the most images at a time.
        threads: CPU threads; default: this process's share.

    Raises:
        UsageError: a precision that the file does not have here.
        ModelError: an engine that does not run such files, or the file cannot be run.
    """
    name = reader(model.format, engine, model.precision)
    threads = threads or cpus_per_process()
    if name == "onnxruntime":
        chosen = _own_precision(model, precision)
        fast, precise = Pool(_adapt(model, onnx_worker(model.path)), CPU_CHUNK, threads, model.preprocessing.crop), None
    else:
        chosen = _openvino_precision(model, precision)
        graph = openvino_engine.read_model(model.path)

        def pool(chunk: int, precision: str) -> Pool:
            shape = model.input_of(np.zeros((chunk, *[model.preprocessing.crop] * 2, 3), np.uint8)).shape
            worker = openvino_engine.openvino_worker(graph, shape, precision, threads)
            return Pool(_adapt(model, worker), chunk, threads, model.preprocessing.crop)

        fast = pool(CPU_CHUNK, "bf16" if chosen == "bf16" else "float32")
        precise = pool(1, "float32") if chosen == "bf16" else None
    description = f"{name} {chosen} on {threads} CPU threads (an exported {model.format} file)"
    return Engine(name, chosen, batch_size, description, fast, precise, features=False, on_cpu=True)


def open_engine(
    model: Bundle | ExportedModel, *, engine: str, precision: str, batch_size: int,
    device: str | None = None, features: bool = False,
) -> Engine:  # fmt: skip
    """Get whatever ``open_model`` has read ready to run; see ``build_engine`` and ``build_exported_engine``.

    Args:
        device: where PyTorch computes a bundle's network; an exported file runs on the CPU.
        features: also give the features before the head, which an exported file does not have.
    """
    options = {"engine": engine, "precision": precision, "batch_size": batch_size}
    if isinstance(model, ExportedModel):
        return build_exported_engine(model, **options)
    return build_engine(model, **options, device=device, features=features)


def _own_precision(model: ExportedModel, precision: str) -> str:
    if precision not in ("auto", model.precision):
        raise UsageError(f"--precision {precision}: this file is {model.precision}; leave it out, or export another")
    return model.precision


def _openvino_precision(model: ExportedModel, precision: str) -> str:
    if model.precision == "int8":
        return _own_precision(model, precision)
    if precision not in ("auto", "float32", "bf16"):
        raise UsageError(f"--precision {precision}: OpenVINO computes this file in float32 or bf16")
    return openvino_engine.settled_precision(precision)


def _adapt(model: ExportedModel, worker):
    """From pictures to its input, and from its output to [features, probs]: it has no features, so none wide."""

    def start():
        infer = worker()

        def run(images: np.ndarray) -> list[np.ndarray]:
            probs = infer(model.input_of(images))[0]
            if probs.shape != (len(images), len(model.classes)):
                raise ModelError(f"exported model: {len(images)} images gave {list(probs.shape)} probs")
            return [np.empty((len(images), 0), np.float32), probs]

        return run

    return start
