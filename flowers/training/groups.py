"""The optimizer's groups: which parameters decay, and how fast each learns."""

from collections.abc import Iterator

from torch import nn

from flowers.models.heads import Classifier


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Split trainable parameters by depth, and into those that decay and those that do not.

    Biases and the scales of normalisation layers (all of one dimension) are not decayed. A group's ``lr_scale`` is
    its share of the learning rate: 1 for the head, ``layer_decay`` for the block below it, its square for the next.

    Args:
        model: a Classifier, or a head alone.

    Source: no decay of biases: He et al. 2019, "Bag of Tricks", arXiv:1812.01187, section 3.1; learning rates by
    depth: Howard and Ruder 2018, ULMFiT, arXiv:1801.06146, section 3.2.
    """
    by_place: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for depth, block in enumerate(reversed(blocks(model))):
        for parameter in block:
            if parameter.requires_grad:
                by_place.setdefault((layer_decay**depth, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (scale, decays), parameters in sorted(by_place.items(), key=lambda item: item[0], reverse=True)
    ]


def blocks(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a network by block, from the images to the head, whatever its architecture.

    Containers are opened, and so is whatever holds most of the network; anything else is one block (a residual block,
    an encoder layer). What has no matrix of its own, such as a normalisation, belongs to the block before it; what
    several blocks share (timm's CoaT does), to the first of them.
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
