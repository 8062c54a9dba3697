"""A network in OpenVINO: converted from PyTorch once, kept beside its bundle, run one thread a stream."""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from flowers import console
from flowers.data.paths import readable
from flowers.engines.torch_engine import Infer, PixelNetwork, drawn_pictures
from flowers.errors import FlowersError, ModelError, UsageError
from flowers.files import file_digest, folder_beside, remove, sync_file
from flowers.made import versions
from flowers.parsing import read_json

RECIPE = 2  # part of the cache's key: count up whenever conversion changes
KEPT_BYTES = 2**30  # of converted models in a folder
_MODEL_FILE = "model.xml"
_FILES = (_MODEL_FILE, "model.bin")
_DIGESTS_FILE = "digests.json"
_TOLERANCE = 1e-3  # of float32 against float32; seen: 2e-6 and less
_one_converts = threading.Lock()  # torch.jit.trace in two threads at once may mix up their graphs (2.14)


def openvino_worker(model, shape: tuple[int, ...], precision: str, threads: int) -> Callable[[], Infer]:
    """Return a factory that each thread of a pool calls once for its own function from images to outputs.

    Every inference runs on one thread, so that results do not depend on how many there are.

    Args:
        model: openvino.Model of any batch size.
        shape: of the input of each call.
        precision: "float32" or "bf16".

    Raises:
        ModelError: OpenVINO cannot run it.
    """
    model = model.clone()
    model.reshape(list(shape))
    config = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bf16": "bf16"}[precision],
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",  # it would pin the threads of every process to the same first CPUs
    }
    try:
        compiled = _core().compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise _refusal(error) from error

    def start() -> Infer:
        request = compiled.create_infer_request()

        def infer(images: np.ndarray) -> list[np.ndarray]:
            try:
                outputs = request.infer([images], share_inputs=True)
            except RuntimeError as error:
                raise _refusal(error) from error
            return [np.array(outputs[output]) for output in compiled.outputs]

        return infer

    return start


def read_model(path: Path):
    """An openvino.Model from OpenVINO's or an ONNX file.

    Raises:
        ModelError: it is neither, or damaged.
    """
    try:
        return _core().read_model(path)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{readable(path)}: OpenVINO cannot read it ({reason})") from None


def why_not() -> str | None:
    """Why OpenVINO cannot be used on this machine; None where it can."""
    if importlib.util.find_spec("openvino") is None:
        return "is not installed"
    try:
        _core()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # made for another system, or half removed
        return f"cannot be loaded ({' '.join(str(error).split())[:200]})"
    return None


def has_bf16() -> bool:
    """Return True if OpenVINO computes bf16 natively on this CPU."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def settled_precision(precision: str) -> str:
    """The precision that is asked for; for "auto" the fastest one here.

    Raises:
        UsageError: bf16, which OpenVINO does not compute on this CPU.
    """
    if precision == "auto":
        return "bf16" if has_bf16() else "float32"
    if precision == "bf16" and not has_bf16():
        raise UsageError("--precision bf16: OpenVINO does not compute it on this CPU: use float32 or auto")
    return precision


@functools.cache
def _core():
    """OpenVINO's runtime, loaded once and kept until the process ends.

    It gives the thread that loads it a stack for signal handlers, and takes the memory back when its last user goes,
    on whatever thread that happens (2026.4): the next signal to the main thread would crash the process.
    """
    import openvino

    return openvino.Core()


def convert(network: PixelNetwork, size: int):
    """Convert a float32 network to an openvino.Model of any batch size, and see that it computes the same.

    By OpenVINO's PyTorch frontend itself: ``openvino.convert_model`` does the same, but reports each use to
    its makers over the net unless told not to.

    Raises:
        ModelError: the network has an operation that OpenVINO lacks, or gives other numbers there.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    images = drawn_pictures(2, size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing is deprecated, and says much about constants
            with _one_converts:
                traced = torch.jit.trace(network, torch.from_numpy(images[:1]), check_trace=False)
                frontend = FrontEndManager().load_by_framework("pytorch")
                decoder = TorchScriptPythonDecoder(traced)  # held here: the frontend holds no reference
                model = frontend.convert(frontend.load(decoder))
            expected = network(torch.from_numpy(images))
        model.reshape([-1, size, size, 3])
        compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = compiled([images])
    except ModelError:
        raise
    except Exception as error:  # the frontend raises kinds of its own, tracing whatever the network raises
        raise _refusal(error) from error
    for output, wanted in zip(compiled.outputs, expected, strict=True):
        difference = np.abs(outputs[output] - wanted.numpy()).max() / np.abs(wanted.numpy()).max()
        if not difference < _TOLERANCE:
            raise _refusal(f"its numbers differ from PyTorch's by {difference:.1e} of the largest")
    return model


def _refusal(reason: object) -> ModelError:
    return ModelError(f"OpenVINO cannot run this network ({' '.join(str(reason).split())[:300]}): use --engine torch")


def load_or_convert(key: str, folders: Iterable[Path], build: Callable[[], PixelNetwork], size: int):
    """A converted model from the first folder that has it; else convert, and keep it in the first that takes it.

    Several processes and threads may do so at once. Where nothing can be written the model lives in memory only. A
    folder keeps the models that were used last, ``KEPT_BYTES`` in all.

    Args:
        key: all that the network depends on; versions and the size are added here.
        folders: where converted models may be kept, the best place first.
        build: gives the network when it is needed.
    """
    import openvino

    content = f"{key} {size} {RECIPE} {openvino.__version__} {versions()}"
    name = f"openvino-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    folders = list(folders)
    for folder in folders:
        try:
            if not (folder / name).exists():
                continue
            written = read_json(folder / name / _DIGESTS_FILE)
            if all(file_digest(folder / name / file) == written[file] for file in _FILES):
                with contextlib.suppress(OSError):
                    os.utime(folder / name)
                return _core().read_model(folder / name / _MODEL_FILE)
        except PermissionError:  # not for us to read
            continue
        except (OSError, ValueError, LookupError, TypeError, RuntimeError):
            pass
        console.warn(f"{readable(folder / name)} is damaged, and is made anew")
        with contextlib.suppress(FlowersError):  # in another's folder, or another process does it too
            remove(folder / name)
    model = convert(build(), size)
    for folder in folders:
        if _keep(model, folder / name):
            _forget_oldest(folder)
            break
    return model


def _forget_oldest(folder: Path) -> None:
    """Keep the models that were used last, at least one; a process that has another one mapped goes on with it."""
    with contextlib.suppress(OSError):  # another process removes, too
        models = sorted(folder.glob("openvino-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        sizes = itertools.accumulate(sum(file.stat().st_size for file in path.iterdir()) for path in models)
        for path, size in list(zip(models, sizes, strict=True))[1:]:
            if size > KEPT_BYTES:
                shutil.rmtree(path, ignore_errors=True)


def _keep(model, target: Path) -> bool:
    """Write a model's folder, which gets its name only when whole; whoever comes first wins."""
    import openvino

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_beside(target) as temporary:
            openvino.save_model(model, temporary / _MODEL_FILE, compress_to_fp16=False)
            digests = {name: file_digest(temporary / name) for name in _FILES}
            (temporary / _DIGESTS_FILE).write_text(json.dumps(digests))
            for file in temporary.iterdir():
                sync_file(file)
            os.rename(temporary, target)
    except (OSError, RuntimeError):
        return target.exists()
    return True
