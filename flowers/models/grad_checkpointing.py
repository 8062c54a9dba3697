"""Gradient checkpointing: a block's activations are computed again in the backward pass instead of being kept."""

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from flowers.errors import ModelError
from flowers.models.depthwise import fast_depthwise
from flowers.models.heads import BATCH_NORM


def set_grad_checkpointing(network: nn.Module) -> None:
    """Make every block of the network's sequences of blocks forget its activations in training, in place.

    A block is a member of a Sequential or ModuleList that is itself made of several modules: a residual block, an
    encoder layer. Blocks inside of blocks belong to the outer one. Neither weights, names nor results change: random
    numbers are drawn the same again, and batch norm's statistics are updated once.

    Raises:
        ModelError: the network has fewer than two blocks.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """
    found = list(_blocks(network))
    if len(found) < 2:
        raise ModelError(
            f"--grad-checkpointing: {type(network).__name__} has no sequence of blocks to compute again; leave it out "
            "and lower --batch-size, with more of --grad-accum-steps"
        )
    for block in found:
        block.forward = functools.partial(_forward, block, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        in_sequence = isinstance(module, nn.Sequential | nn.ModuleList)
        if in_sequence and not isinstance(child, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)


def _forward(block: nn.Module, forward, *args, **kwargs):
    if not block.training:
        return forward(*args, **kwargs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """What the first pass through a block runs in, and the second."""
    device = next(block.parameters()).device
    return contextlib.nullcontext(), _second_pass(block, fast_depthwise(device))


@contextlib.contextmanager
def _second_pass(block: nn.Module, convolutions: contextlib.AbstractContextManager) -> Iterator[None]:
    """Keep batch norm's running statistics as the first pass left them, and compute ``convolutions`` as it did."""
    layers = [module for module in block.modules() if isinstance(module, BATCH_NORM) and module.training]
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        layer.num_batches_tracked = None  # not counted
    try:
        with convolutions:
            yield
    finally:
        for layer, momentum, count in zip(layers, momenta, counts, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
