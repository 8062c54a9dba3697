"""Losses and weights that are not finite: detected before anything is saved, and reported with the step and images.

A loss only shows the weights before its own step. So the weights are checked too before they are evaluated or saved:
the last update may have broken them though every loss so far was finite.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowers.training.checkpoint import list_checkpoints

ADVICE = "try a lower --lr, --max-grad-norm 1, or --mixed-precision no, with another --output-dir"


class MicroStep(NamedTuple):
    """A micro-batch whose loss still lies on the device.

    Attributes:
        step: its update, from 0.
        sums: [3] loss, hits and images of this rank.
        indices: [B] of its images in the training set.
    """

    step: int
    sums: Tensor
    indices: Tensor


class Breakdown(NamedTuple):
    """The first loss or update of a rank that is not finite; ``step`` is infinite where all are."""

    step: float = math.inf
    what: str = ""
    images: Sequence[Tensor] = ()


def find_breakdown(
    micro_steps: Sequence[MicroStep], losses: Sequence[float], network: nn.Module | None, last_step: int
) -> Breakdown:
    """Look for the first loss that is not finite, then at the weights.

    Args:
        losses: of the micro-steps.
        network: whose weights to check; None checks losses only.
        last_step: the last update, from 0.
    """
    for micro_step, loss in zip(micro_steps, losses, strict=True):
        if not math.isfinite(loss):
            what = f"the loss is not finite at step {micro_step.step + 1}"
            return Breakdown(micro_step.step, what, [micro_step.indices])
    if network is None or weights_are_finite(network):
        return Breakdown()
    images = [micro_step.indices for micro_step in micro_steps if micro_step.step == last_step]
    return Breakdown(last_step + 0.5, f"the weights are not finite after step {last_step + 1}", images)


def weights_are_finite(network: nn.Module) -> bool:
    """True if every parameter and buffer of this rank is finite."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    largest = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point() and t.numel()], math.inf)
    return bool(torch.stack(largest).isfinite().all())


def last_good(run_dir: Path) -> str:
    """Name the newest checkpoint, for an error message: every saved one is sound."""
    found = list_checkpoints(run_dir)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was saved yet"
