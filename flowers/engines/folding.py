"""Batch norms folded into the convolutions before them: in evaluation both are one linear map.

Eager PyTorch would read and write every activation once more for each of them. (Compilers do the same by themselves.)

Source: Jacob et al. 2018, "Quantization and training of neural networks", arXiv:1712.05877, section 3.2.
"""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

TOLERANCE = 1e-3  # of the outputs' own size; rounding gives less than a hundredth of it


@torch.no_grad()
def fold_batch_norms(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy with as few batch norms as can be, or the network itself where that would change what it says.

    Which convolution stands before which batch norm is seen in a pass; what else looks at a convolution's output is
    not, so the copy has to give the same outputs.

    Args:
        network: float32, in evaluation mode.
        images: [B, 3, S, S] normalised, float32, to try it with.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    folded = copy.deepcopy(network)
    pairs, outputs = _pairs(folded, images)
    names = {module: name for name, module in folded.named_modules()}
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        parent, _, own = names[norm].rpartition(".")
        setattr(folded.get_submodule(parent), own, _rest_of(norm))
    difference = (folded(images) - outputs).abs().max()
    return folded if difference <= TOLERANCE * outputs.abs().max() else network


def _pairs(network: nn.Module, images: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Convolutions and the batch norms that take their outputs, each used once; and the network's outputs."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor too, so that its id is not given to another one
    uses: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(conv: nn.Conv2d, _: tuple, output: Tensor) -> None:
        uses[conv] += 1
        made[id(output)] = conv, output

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple) -> None:
        uses[norm] += 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not is_parametrized(module):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and _rest_of(module) is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    outputs = network(images)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if uses[conv] == uses[norm] == 1], outputs


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module | None:
    """Return the rest of a batch norm once it is folded, in timm's the activation; None if it cannot be folded."""
    if norm.running_var is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if hasattr(norm, "drop") and hasattr(norm, "act"):
        return nn.Sequential(norm.drop, norm.act)
    return None
