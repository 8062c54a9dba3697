"""The optimizer, its parameter groups (weight decay, layer-wise learning-rate decay), and the EMA of the weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowers.models.heads import Classifier


def build_optimizer(name: str, groups: list[dict], device: torch.device) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD with Nesterov momentum 0.9; one fused kernel per step where the device has it.

    The trainer sets the learning rate at every step. L-BFGS takes a single step, which ``fit_linear_head`` does; what
    stands for it here has no state to save.
    """
    fused = device.type in ("cuda", "cpu") and all(p.is_floating_point() for g in groups for p in g["params"])
    kinds = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.0, fused=fused),
        "adam": lambda: torch.optim.Adam(groups, lr=0.0, fused=fused),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=fused),
        "lbfgs": lambda: torch.optim.SGD(groups, lr=0.0),
    }
    optimizer = kinds[name]()
    if name == "sgd":
        # Fused SGD starts from uninitialised momentum where fp16's loss scale skips the very first step.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Split trainable parameters by depth, and into those with and without weight decay.

    Biases and the scales of normalisation layers (all of one dimension) are not decayed. A group's ``lr_scale`` is
    its share of the learning rate: 1 for the head, ``layer_decay`` for the block below it, its square for the next.

    Args:
        model: a Classifier, or a head alone.

    Source: no decay of biases: He et al. 2019, "Bag of Tricks", arXiv:1812.01187, section 3.1; learning rates by
    depth: Howard and Ruder 2018, ULMFiT, arXiv:1801.06146, section 3.2.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for depth, block in enumerate(reversed(blocks(model))):
        for parameter in block:
            if parameter.requires_grad:
                groups.setdefault((layer_decay**depth, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def blocks(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a network by block, from the images to the head, for any architecture.

    Containers are opened, and so is a module that holds most of the network; anything else is one block (a residual
    block, an encoder layer). A module without a matrix, such as a normalisation, belongs to the block before it;
    parameters that several blocks share (as in timm's CoaT) belong to the first of them.
    """
    backbone = model.backbone if isinstance(model, Classifier) else nn.Identity()
    head = model.head if isinstance(model, Classifier) else model
    most = sum(parameter.numel() for parameter in backbone.parameters()) / 2
    found: list[list[nn.Parameter]] = []
    placed: set[nn.Parameter] = set()
    for everything in [*_opened(backbone, most), list(head.parameters())]:
        parameters = [parameter for parameter in everything if parameter not in placed]
        placed.update(parameters)
        if not parameters:
            continue
        if found and all(parameter.ndim <= 1 for parameter in parameters):
            found[-1].extend(parameters)
        else:
            found.append(parameters)
    return found


def _opened(module: nn.Module, most: float) -> Iterator[list[nn.Parameter]]:
    parameters = list(module.parameters())
    if isinstance(module, nn.Sequential | nn.ModuleList) or sum(parameter.numel() for parameter in parameters) > most:
        yield list(module.parameters(recurse=False))  # class tokens, position embeddings
        for child in module.children():
            yield from _opened(child, most)
    else:
        yield parameters


class WeightAverage:
    """Exponential moving average (EMA) of a model's weights and buffers, for evaluation and the saved models.

    The decay grows from 0.1 to its final value, so that the random first weights are soon forgotten:
    ``min(decay, (1 + step) / (10 + step))``.

    Source: Polyak averaging as in Tan and Le 2019, arXiv:1905.11946, section 5.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._model = model
        currents = model.state_dict(keep_vars=True)  # the model's own tensors, looked up once and not at each step
        self._average = {name: tensor.detach().clone() for name, tensor in currents.items()}
        self._floats, self._counts = ([], []), ([], [])  # averages and the tensors that they follow
        for name, tensor in currents.items():
            averages, followed = self._floats if tensor.is_floating_point() else self._counts
            averages.append(self._average[name])
            followed.append(tensor)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number ``step`` (the first is 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._counts[0]:
            torch._foreach_copy_(*self._counts)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors, by the model's names."""
        return self._average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averaged tensors from ``state_dict``."""
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
