"""Stochastic depth: residual branches that are left out at random while a network trains."""

import re

from torch import nn

from flowers.errors import ModelError

PLACES = re.compile(r"drop_path\d*|stochastic_depth|stochastic_dropout")


def set_stochastic_depth(network: nn.Module, rate: float) -> None:
    """Give every residual branch that knows stochastic depth its rate, growing evenly from 0 to ``rate`` with depth.

    timm marks these places with modules named ``drop_path``, its ResNets with None until one is asked for; torchvision
    with ``stochastic_depth``, in MaxViT's attention ``stochastic_dropout``. torchvision's have a rate of their own from
    the start, 0.2 in its EfficientNets, and 0 turns them off.

    Raises:
        ModelError: the network has no such branches, and the rate is above 0.

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382.
    """
    from torchvision.ops import StochasticDepth

    places = _places(network)
    if not places and rate > 0:
        raise ModelError(f"--drop-path {rate}: {type(network).__name__} has no residual branches to leave out")
    for depth, (block, name) in enumerate(places):
        branch = StochasticDepth(rate * depth / max(1, len(places) - 1), "row")
        setattr(block, name, branch.train(block.training))


def _places(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the blocks with residual branches, from first to last, and the attribute that holds their drop path."""
    return [
        (block, name)
        for block in network.modules()
        for name in {**vars(block), **dict(block.named_children())}
        if PLACES.fullmatch(name)
        and isinstance(getattr(block, name), nn.Module | None)
        and getattr(block, "residual", True)  # VovNet's others have no shortcut: all of the image would be left out
    ]
