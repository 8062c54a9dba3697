"""The fast backward pass of depthwise convolutions: the gradients that PyTorch computes in float64."""

import pytest
import torch
from torch import nn

from flowers.models.depthwise import fast_depthwise

CPU = torch.device("cpu")


def gradients(conv: nn.Conv2d, images: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = images.clone().requires_grad_()
    conv.zero_grad()
    output = conv(images)
    (output.double() * weights[..., : output.shape[2], : output.shape[3]]).sum().backward()
    return images.grad.double(), conv.weight.grad.double()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        (3, 1, 1, (11, 8)), (3, 2, 1, (7, 9)), (3, 2, 1, (12, 13)), (3, 3, 0, (11, 8)), (3, (1, 2), 4, (7, 9)),
        (5, 1, (2, 1), (12, 13)), (5, 2, 4, (11, 8)), (5, 2, 1, (12, 13)), (5, 3, 0, (7, 9)), (5, (1, 2), 1, (11, 8)),
        ((5, 3), 1, 0, (7, 9)), ((5, 3), 2, (2, 1), (12, 13)), ((5, 3), 3, 4, (11, 8)),
        (7, 1, 4, (7, 9)), (7, 2, (2, 1), (11, 8)), (7, (1, 2), 0, (12, 13)),
    ],
)  # fmt: skip
def test_gradients_are_the_true_ones(kernel, stride, padding, size) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, kernel, stride, padding, groups=8)
    images = torch.randn(3, 8, *size).to(torch.bfloat16).double()
    with torch.no_grad():
        conv.weight.copy_(conv.weight.to(torch.bfloat16))
    weights = torch.randn(3, 8, 20, 20).to(torch.bfloat16).double()
    expected = gradients(conv.double(), images, weights)
    with torch.autocast("cpu", torch.bfloat16), fast_depthwise(CPU):
        fast = gradients(conv.float(), images.float(), weights)
    for got, wanted in zip(fast, expected, strict=True):
        assert (got - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize(
    "options", [{"groups": 1}, {"groups": 4}, {"groups": 8, "dilation": 2}, {"groups": 8, "padding": "same"}]
)
def test_other_convolutions_are_left_alone(options: dict) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, **options)
    images, weights = torch.randn(2, 8, 9, 9), torch.randn(2, 8, 20, 20).double()
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(conv, images, weights)
        with fast_depthwise(CPU):
            got = gradients(conv, images, weights)
    assert all(map(torch.equal, got, expected))


def test_float32_is_left_alone() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 5, groups=8)
    images, weights = torch.randn(2, 8, 9, 9), torch.randn(2, 8, 20, 20).double()
    expected = gradients(conv, images, weights)
    with fast_depthwise(CPU):
        assert all(map(torch.equal, gradients(conv, images, weights), expected))
