"""Losses and weights that are not finite: noticed before anything is kept of them, and told with what led there.

A loss says what the weights were before its step. So the weights are looked at too before they are evaluated or
saved: an update may have spoilt them though every loss so far was finite.
"""

import itertools
import math

import torch
from torch import Tensor

from flowers.distributed import rows_of_ranks
from flowers.errors import PeerError, TrainingError
from flowers.training.checkpoint import list_checkpoints
from flowers.training.state import Run

ADVICE = "try a lower --lr, --max-grad-norm 1, or --mixed-precision no, with another --output-dir"


def check_finite(run: Run, losses: list[float], weights: bool) -> None:
    """Stop where training broke down; all ranks call this at the same step.

    Args:
        run: its ``unread`` holds the micro-batches since the last look.
        losses: of these micro-batches.
        weights: whether to look at the weights too.

    Raises:
        TrainingError: on the rank whose images came first to a loss or an update that is not finite.
        PeerError: on the other ranks then.
    """
    bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
    last = run.unread[-1][0] if run.unread else run.progress.step - 1
    if bad is not None:
        step, _, indices = run.unread[bad]
        found, what = step, f"the loss is not finite at step {step + 1}{_on(run, [indices])}"
    elif weights and not weights_are_finite(run):
        indices = [indices for step, _, indices in run.unread if step == last]
        found, what = last + 0.5, f"the weights are not finite after step {last + 1}{_on(run, indices)}"
    else:
        found, what = math.inf, ""
    (first,) = min(rows_of_ranks(run.accelerator, [found]))
    if math.isfinite(first):
        raise TrainingError(f"{what}; {last_good(run)}; {ADVICE}") if found == first else PeerError


def weights_are_finite(run: Run) -> bool:
    """Whether every parameter and buffer of this rank is."""
    tensors = itertools.chain(run.network.parameters(), run.network.buffers())
    largest = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point() and t.numel()], math.inf)
    return bool(torch.stack(largest).isfinite().all())


def last_good(run: Run) -> str:
    """Where the last state lies that was sound."""
    found = list_checkpoints(run.history.path.parent)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was saved yet"


def _on(run: Run, indices: list[Tensor]) -> str:
    """The images of micro-batches, by path."""
    paths = [run.train_paths[index] for batch in indices for index in batch.tolist()]
    return f" on {', '.join(paths)}" if paths else ""
