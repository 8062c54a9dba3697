"""Tensors by name: wrappers' prefixes, hashes, means, and loading into a network that they must fit exactly."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flowers.errors import ModelError

WRAPPERS = {"module", "_orig_mod"}
"""Parts of names that DistributedDataParallel and torch.compile add."""
WEIGHTS_FILE = "model.safetensors"
_SHOWN = 3


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.`` and ``_orig_mod.`` out of all names, wherever and however often they stand."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): value for name, value in state.items()}


def add_tensors(digest, tensors: Mapping[str, Tensor]) -> None:
    """Feed a hash of ``hashlib`` names, kinds, shapes and bytes of tensors, sorted by name."""
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load tensors into a network whose names and shapes they must match exactly.

    Args:
        state: tensors by name.
        where: their source, for the message.

    Raises:
        ModelError: names that are missing or too many, or shapes that differ; the first few are listed.
    """
    own = network.state_dict()
    if problems := describe(misfits(own, state)):
        raise ModelError(f"{where}: the tensors do not fit the model ({len(own)} expected): {problems}")
    fill(network, state)


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names that are missing, unexpected or of another shape.

    Batch-norm step counters may be missing (old files lack them).
    """
    return {
        "missing": [name for name in own if name not in given and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {list(given[name].shape)} instead of {list(value.shape)}"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ],
    }


def describe(problems: Mapping[str, list[str]]) -> str:
    """Write ``misfits`` as part of a message: how many of each kind, and three examples."""
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in problems.items()
        if names
    )


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into a network; step counters that are missing become 0."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(tensors[name]) if name in tensors else value.zero_()


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of equally shaped tensors by name; counters, which are whole numbers, are those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point() else value
        for name, value in states[0].items()
    }  # fmt: skip
