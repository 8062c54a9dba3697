"""A GPU that is the CPU: code for GPUs runs, in this thread, and what it did in which stream is written down."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch.overrides import TorchFunctionMode


class PretendGpu(TorchFunctionMode):
    """Use as a context manager.

    Attributes:
        log: ("copy" of a tensor to the device, stream), ("use" of one, the stream it is said to be used in),
            ("wait", who waits, for whom), and whatever a test adds.
        device: what ``torch.cuda.set_device`` said.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self.log: list[tuple[str, ...]] = []
        self.device: torch.device | None = None
        self._stream = "main"
        patch.setattr(torch.cuda, "Stream", lambda device: _Stream(self, "side"))
        patch.setattr(torch.cuda, "current_stream", lambda device: _Stream(self, self._stream))
        patch.setattr(torch.cuda, "stream", self._within)
        patch.setattr(torch.cuda, "synchronize", lambda device: self.log.append(("wait", "host", "device")))
        patch.setattr(torch.cuda, "set_device", self._set_device)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.log.append(("use", stream.name)))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.to and any(map(_is_gpu, args)):
            self.log.append(("copy", self._stream))
        args = [torch.device("cpu") if _is_gpu(value) else value for value in args]
        return function(*args, **{name: "cpu" if _is_gpu(value) else value for name, value in kwargs.items()})

    @contextlib.contextmanager
    def _within(self, stream: "_Stream") -> Iterator[None]:
        before, self._stream = self._stream, stream.name
        yield
        self._stream = before

    def _set_device(self, device: torch.device) -> None:
        self.device = device


class _Stream:
    def __init__(self, gpu: PretendGpu, name: str):
        self._gpu, self.name = gpu, name

    def wait_stream(self, other: "_Stream") -> None:
        self._gpu.log.append(("wait", self.name, other.name))


def _is_gpu(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"
