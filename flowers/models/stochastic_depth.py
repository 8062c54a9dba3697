"""Stochastic depth: residual branches that are left out at random while a network trains."""

import re

from torch import nn

from flowers.errors import ModelError


def set_stochastic_depth(network: nn.Module, rate: float) -> None:
    """Give every residual branch that knows stochastic depth its rate, growing evenly from 0 to ``rate`` with depth.

    timm marks these places with modules named ``drop_path``, torchvision with ``stochastic_depth``; torchvision's
    have a rate of their own from the start, 0.2 in its EfficientNets, and 0 turns them off.

    Raises:
        ModelError: the network has no such branches, and the rate is above 0.

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382.
    """
    from torchvision.ops import StochasticDepth

    names = [name for name, _ in network.named_modules() if re.search(r"(^|\.)(drop_path\d*|stochastic_depth)$", name)]
    if not names and rate > 0:
        raise ModelError(f"--drop-path {rate}: {type(network).__name__} has no residual branches to leave out")
    for depth, name in enumerate(names):
        branch = StochasticDepth(rate * depth / max(1, len(names) - 1), "row")
        network.set_submodule(name, branch.train(network.get_submodule(name).training))
