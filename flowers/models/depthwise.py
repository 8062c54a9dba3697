"""Gradients of depthwise convolutions on CPUs in bfloat16, several times faster than oneDNN's.

oneDNN's backward passes of depthwise convolutions in bfloat16 are slow: without this
module a training step of EfficientNet-Lite0 takes 2.1 to 2.3 times as long. oneDNN's forward pass is fast, and both
gradients can be computed by forward passes:

- with respect to the images: a convolution of the output's gradient with the mirrored kernel; with a stride, zeros
  stand between the gradient's pixels.
- with respect to the kernel: the image of each (image, channel) pair is convolved with its output's gradient as the
  kernel, the stride being a dilation; then the batch is summed up, in float32.

``tests/bench/bench_train_step.py`` measures a step with and without it.
"""

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SMALLEST_SLOW_KERNEL = 25  # pixels; for 3x3 kernels oneDNN's gradient by the kernel is the faster one


def fast_depthwise(device: torch.device) -> contextlib.AbstractContextManager:
    """Inside the block, depthwise convolutions in bfloat16 get the fast backward pass; compiled code stays as it is."""
    if device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _FastDepthwise()
    return contextlib.nullcontext()


class _FastDepthwise(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            call = _Call(*args, **(kwargs or {}))
            if call.is_slow():
                return call.run()
        return function(*args, **(kwargs or {}))


class _Call(NamedTuple):
    """The arguments of ``torch.conv2d``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    def is_slow(self) -> bool:
        """Return True if oneDNN's backward pass is the slow one."""
        is_depthwise = 1 < self.groups == self.weight.shape[0] and self.weight.shape[1] == 1
        in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return (
            is_depthwise
            and (in_bf16 or self.input.dtype == torch.bfloat16)
            and _pair(self.dilation) == (1, 1)
            and not isinstance(self.padding, str)
        )

    def run(self) -> Tensor:
        images, weight = self.input.to(torch.bfloat16), self.weight.to(torch.bfloat16)
        images = images.contiguous(memory_format=torch.channels_last)
        output = _Depthwise.apply(images, weight, _pair(self.stride), _pair(self.padding))
        return output if self.bias is None else output + self.bias.to(torch.bfloat16)[:, None, None]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, weight, stride, padding):
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(images, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, grad):
        images, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_images = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_images = images_gradient(grad, weight, ctx.stride, ctx.padding, images.shape[2:])
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(grad, images, weight, ctx.stride, ctx.padding)
        return grad_images, grad_weight, None, None


def images_gradient(grad: Tensor, weight: Tensor, stride: tuple, padding: tuple, size: tuple) -> Tensor:
    """Gradient of the loss by the images [B, C, H, W], from that by the output [B, C, h, w]; ``size`` is (H, W)."""
    channels, _, *kernel = weight.shape
    if stride != (1, 1):
        batch, _, height, width = grad.shape
        spread = grad.new_zeros(batch, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1, channels)
        spread[:, :: stride[0], :: stride[1]] = grad.permute(0, 2, 3, 1)
        grad = spread.permute(0, 3, 1, 2)
    before = [kernel[i] - 1 - padding[i] for i in (0, 1)]
    # rows and columns at the end that no step of the stride reached
    after = [size[i] + 2 * padding[i] - kernel[i] + 1 - grad.shape[2 + i] for i in (0, 1)]
    if any(after) or min(before) < 0:
        grad = F.pad(grad, (before[1], before[1] + after[1], before[0], before[0] + after[0]))
        before = [0, 0]
    return torch.conv2d(grad, weight.flip(2, 3), None, 1, before, groups=channels)


def weight_gradient(grad: Tensor, images: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:
    """Gradient of the loss by the kernels [C, 1, kernel_h, kernel_w], from that by the output [B, C, h, w]."""
    channels, _, kernel_h, kernel_w = weight.shape
    if kernel_h * kernel_w < SMALLEST_SLOW_KERNEL:
        args = (grad, images, weight, None, stride, padding, (1, 1), False, (0, 0), channels)
        return torch.ops.aten.convolution_backward(*args, (False, True, False))[1]
    images = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    batch, _, height, width = images.shape
    pairs = batch * channels
    images = images.permute(2, 3, 0, 1).reshape(1, height, width, pairs).permute(0, 3, 1, 2)
    outputs = grad.reshape(pairs, 1, *grad.shape[2:])
    of_pairs = torch.conv2d(images, outputs, None, 1, 0, dilation=stride, groups=pairs)
    of_pairs = of_pairs[..., :kernel_h, :kernel_w].reshape(batch, channels, 1, kernel_h, kernel_w)
    return of_pairs.sum(0, dtype=torch.float32).to(weight.dtype)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
