"""Fast inference: one small interface over PyTorch, compiled PyTorch and OpenVINO.

Three things make the answers the same whatever runs beside:

- An image is computed in a chunk of fixed size, on one thread (a CPU's), whatever the size of the batch, its
  place in it and the number of threads: the same machine, engine and precision give the same bits.
- Normalisation, head and softmax are in float32 whatever the backbone's precision.
- bf16 and fp16 move the scores a little, which matters where two classes are nearly equal. How much they move is
  measured when the engine is built, on drawn pictures; an image whose two best classes are closer than twice
  that is computed again in float32. So the label is float32's, at nearly the speed of bf16. (Measured with
  EfficientNet-Lite0 and a linear head on 1,118 flower photos: bf16 alone changed 13 labels.)
"""

import copy
import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from flowers.data.preprocessing import Preprocessing
from flowers.engines import openvino_engine
from flowers.engines.pool import Pool, cut, joined, run_all
from flowers.engines.torch_engine import DTYPES, PixelNetwork, drawn_pictures, torch_worker
from flowers.errors import ModelError, UsageError
from flowers.files import user_cache
from flowers.machine import cpu_has_bf16, cpus_per_process
from flowers.models.bundle import Bundle
from flowers.models.heads import Classifier
from flowers.models.weights import add_tensors

ENGINES = ("auto", "torch", "compile", "openvino")
PRECISIONS = ("auto", *DTYPES)
DOUBT = 2.0  # standard deviations
CPU_CHUNK = 4  # measured: what stays in a core's cache is fastest, in every engine
_CUDA_THREADS = 2  # one batch is copied while another one is computed
_GPU_PRECISE_CHUNK = 8
_PROBE_IMAGES = 8


class Outputs(NamedTuple):
    """Outputs of an engine for B images.

    Attributes:
        probs: float32 [B, num_classes]; None of a backbone without a head.
        features: float32 [B, D]; None unless asked for.
    """

    probs: np.ndarray | None
    features: np.ndarray | None


class Handle:
    """A batch that is being computed."""

    def __init__(self, engine: "Engine", chunks: list[np.ndarray], count: int):
        self._engine, self._chunks, self._count = engine, chunks, count
        self._futures = [engine.fast.submit(chunk) for chunk in chunks]

    def result(self) -> Outputs:
        """Wait for it, once: one row an image, in the order that they came."""
        features, *probs = joined(self._futures, self._count)
        if probs and self._engine.precise is not None:
            self._engine.settle_doubts(self._chunks, features, probs[0])
        return Outputs(probs[0] if probs else None, features if self._engine.gives_features else None)


class Engine:
    """A network that takes uint8 images and gives probabilities (and features).

    Attributes:
        name: "torch", "compile" or "openvino".
        precision: of the backbone: "float32", "bf16" or "fp16".
        batch_size: the most images that a ``submit`` takes.
        description: what it is and why, for the user.
        on_cpu: it computes on this machine's CPUs, beside the threads that decode.
        doubt: two classes whose log-probabilities are closer than this are told apart in float32; 0 never.
        settled: images computed again in float32 so far.
    """

    def __init__(
        self, name: str, precision: str, batch_size: int, description: str, fast: Pool, precise: Pool | None, *,
        features: bool, on_cpu: bool,
    ):  # fmt: skip
        self.name, self.precision, self.batch_size, self.description = name, precision, batch_size, description
        self.fast, self.precise, self.gives_features, self.on_cpu = fast, precise, features, on_cpu
        self.settled = 0
        self.doubt = 0.0
        if precise is not None:
            self.doubt = DOUBT * self._measure_noise()
            self.description += f"; scores closer than {self.doubt:.2g} settled in float32"

    def submit(self, images: np.ndarray, *, lent: bool = False) -> Handle:
        """Start to compute a batch; several may be in flight.

        Args:
            images: uint8 [n, S, S, 3], n from 1 to batch_size, contiguous.
            lent: the array stays as it is until the result is there; else it is copied and may be used again at once.
        """
        if not 1 <= len(images) <= self.batch_size:
            raise ValueError(f"got {len(images)} images, expected 1 to {self.batch_size}")
        return Handle(self, cut(images, self.fast.chunk, lent), len(images))

    def close(self) -> None:
        """Stop the threads and let go of the network."""
        for pool in (self.fast, self.precise):
            if pool is not None:
                pool.close()

    def settle_doubts(self, chunks: list[np.ndarray], features: np.ndarray, probs: np.ndarray) -> None:
        """Compute rows with two nearly equal best classes again in float32, in place."""
        if probs.shape[1] == 1:
            return
        best_two = np.partition(_log(probs), -2, axis=1)[:, -2:]
        rows = np.flatnonzero(~(best_two[:, 1] - best_two[:, 0] >= self.doubt))  # NaN is in doubt too
        images = [chunks[row // self.fast.chunk][row % self.fast.chunk] for row in rows]
        for row, image_features, image_probs in zip(rows, *run_all(self.precise, images), strict=True):
            features[row], probs[row] = image_features, image_probs
        self.settled += len(rows)

    def _measure_noise(self) -> float:
        """Standard deviation of the difference of two classes' scores, between this precision and float32."""
        images = drawn_pictures(_PROBE_IMAGES, self.fast.size)
        error = _log(run_all(self.fast, images)[1]) - _log(run_all(self.precise, images)[1])
        error = error[np.isfinite(error).all(axis=1)]
        num_classes = error.shape[1]
        if not error.size or num_classes == 1:
            return 0.0
        return math.sqrt(2 * error.var(axis=1, ddof=1).mean())


def _log(probs: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs, 1e-30))


@dataclass(frozen=True, eq=False)
class KeyedNetwork:
    """A network that is converted once for all runs that use it: one of that name with these tensors."""

    name: str
    network: nn.Module

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 (hex) of all that decides its features, whatever file or seed the tensors came from."""
        digest = hashlib.sha256(self.name.encode())
        add_tensors(digest, self.network.state_dict())
        return digest.hexdigest()


def build_engine(
    model: Bundle | KeyedNetwork | nn.Module,
    preprocessing: Preprocessing | None = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    threads: int | None = None,
    device: str | torch.device | None = None,
    features: bool = False,
) -> Engine:
    """Build an engine for a trained network.

    ``auto`` takes a GPU where there is one, else OpenVINO where it is installed, else PyTorch; and bf16 where the
    hardware multiplies it natively (fp16 on older NVIDIA GPUs), else float32. Compilation is never chosen by
    itself: it takes a while at first, and on CPUs it was seen to help in float32 only.

    Args:
        model: a bundle; a Classifier; or a backbone alone, whose features are all that comes out. Not changed. What is
            converted is kept for the next time, unless it is a module without a key.
        preprocessing: how images become numbers; of a bundle its own is the default.
        engine: "auto", "torch", "compile" or "openvino".
        precision: of the backbone: "auto", "float32", "bf16" or "fp16".
        batch_size: the most images at a time.
        threads: CPU threads; default: this process's share.
        device: where PyTorch computes; default: the best one.
        features: also give the features before the head.

    Raises:
        UsageError: an engine or precision that this machine does not have.
        ModelError: the bundle or the network is broken, or cannot be converted.
    """
    source = _Source(model, preprocessing)
    choice = _choose(engine, precision, device)
    threads = threads or cpus_per_process()
    try:
        build_pools = _openvino_pools if choice.engine == "openvino" else _torch_pools
        fast, precise = build_pools(source, choice, batch_size, threads)
    except ModelError as error:
        if engine != "auto" or choice.engine != "openvino":
            raise
        choice = choice._replace(engine="torch", reason=str(error))
        fast, precise = _torch_pools(source, choice, batch_size, threads)
    on_cpu = choice.device.type == "cpu"
    where = f"{threads} CPU threads" if on_cpu else str(choice.device)
    return Engine(
        choice.engine, choice.precision, batch_size, f"{choice.engine} {choice.precision} on {where} ({choice.reason})",
        fast, precise, features=features or not source.has_head, on_cpu=on_cpu,
    )  # fmt: skip


class _Choice(NamedTuple):
    engine: str
    precision: str
    device: torch.device
    reason: str


def _choose(engine: str, precision: str, device: str | torch.device | None) -> _Choice:
    """Settle what was left open, and refuse what this machine does not have."""
    if engine not in ENGINES or precision not in PRECISIONS:
        raise UsageError(
            f"engine {engine!r}, precision {precision!r}: expected one of {', '.join(ENGINES)} and one of "
            f"{', '.join(PRECISIONS)}"
        )
    if engine == "openvino":
        if why_not := openvino_engine.why_not():
            raise UsageError(f"--engine openvino: it {why_not}: pip install openvino, or use --engine auto")
        if device is not None and torch.device(device).type != "cpu":
            raise UsageError(f"--engine openvino computes on the CPU, not on {device}: use --engine torch")
        device = "cpu"
    device = torch.device(device) if device is not None else _best_device()
    reason = "as asked"
    if engine == "auto":
        why_not = openvino_engine.why_not() if device.type == "cpu" else None
        engine = "openvino" if device.type == "cpu" and not why_not else "torch"
        reason = f"OpenVINO {why_not}" if why_not else "the fastest here"
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; a CPU takes bf16 or float32")
    if engine == "openvino":
        precision = openvino_engine.settled_precision(precision)
    elif precision == "auto":
        precision = _best_precision(device)
    return _Choice(engine, precision, device, reason)


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "float32"


class _Source:
    """A network and its preprocessing, copied only when it is needed; a converted model in the cache saves that."""

    def __init__(self, model: Bundle | KeyedNetwork | nn.Module, preprocessing: Preprocessing | None):
        self._given = model
        self._model = model.network if isinstance(model, KeyedNetwork) else model
        self._preprocessing = preprocessing or model.preprocessing
        self.has_head = isinstance(self._model, Bundle | Classifier)
        self.size = self._preprocessing.crop

    def network(self, precision: str, fold: bool = False) -> PixelNetwork:
        network = self._model.build() if isinstance(self._model, Bundle) else copy.deepcopy(self._model)
        return PixelNetwork(network, self._preprocessing, DTYPES[precision], fold)

    def key(self) -> str | None:
        """Return a key of everything that the network depends on; None for one that is not kept."""
        if isinstance(self._given, Bundle):
            return f"{self._given.hash} {self._preprocessing}"
        return f"{self._given.key} {self._preprocessing}" if isinstance(self._given, KeyedNetwork) else None

    def cache_folders(self) -> list[Path]:
        """Return the folders that may hold converted models, the preferred one first."""
        folder = self._given.folder if isinstance(self._given, Bundle) else None
        beside = folder / "converted" if folder is not None else None
        return [folder for folder in (beside, user_cache()) if folder is not None]


def _torch_pools(source: _Source, choice: _Choice, batch_size: int, threads: int) -> tuple[Pool, Pool | None]:
    on_cpu = choice.device.type == "cpu"
    if not on_cpu:
        threads = _CUDA_THREADS if choice.device.type == "cuda" else 1
    is_compiled, settles = choice.engine == "compile", choice.precision != "float32" and source.has_head
    if is_compiled:
        network = source.network(choice.precision)
        precise = source.network("float32", fold=True) if settles else None
    else:  # folded once: that takes passes
        precise = source.network("float32", fold=True)
        network = precise if choice.precision == "float32" else precise.in_precision(DTYPES[choice.precision])
    worker = torch_worker(network, choice.device, is_compiled)
    try:
        fast = Pool(worker, CPU_CHUNK if on_cpu else batch_size, threads, source.size)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200]  # no Python.h, a broken compiler
        raise ModelError(f"torch.compile does not work here ({reason}): use --engine torch") from error
    if not settles:
        return fast, None
    worker = torch_worker(precise, choice.device, compiled=False)
    return fast, Pool(worker, 1 if on_cpu else _GPU_PRECISE_CHUNK, threads, source.size)


def _openvino_pools(source: _Source, choice: _Choice, batch_size: int, threads: int) -> tuple[Pool, Pool | None]:
    key = source.key()
    if key is None:
        model = openvino_engine.convert(source.network("float32"), source.size)
    else:
        folders = source.cache_folders()
        model = openvino_engine.load_or_convert(key, folders, lambda: source.network("float32"), source.size)

    def pool(chunk: int, precision: str) -> Pool:
        worker = openvino_engine.openvino_worker(model, (chunk, source.size, source.size, 3), precision, threads)
        return Pool(worker, chunk, threads, source.size)

    fast = pool(CPU_CHUNK, choice.precision)
    return fast, None if choice.precision == "float32" or not source.has_head else pool(1, "float32")
