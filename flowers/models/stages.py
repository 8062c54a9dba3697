"""A network's last stages beside its features: NAME+2 is NAME with the averaged maps of its last two stages.

The last layer of an ImageNet network has lost details (a petal's texture, a leaf's edge) that the stages before it
still hold; they come with the same forward pass.

Source: Evci et al. 2022, "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning",
arXiv:2201.03529.
"""

import copy

import torch
from torch import nn

from flowers.errors import ModelError


class Stages(nn.Module):
    """Images [B, 3, H, W] to features [B, D]: the network's own, then each stage's map averaged over its places.

    Args:
        network: of timm, without its classifier.
        count: stages from the last one, 1 or more.

    Attributes:
        widths: of the network's own features and of each stage's, in the order in which they come.
    """

    def __init__(self, network: nn.Module, count: int):
        super().__init__()
        self.network = network
        self.count = count
        self.widths: tuple[int, ...] = ()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images to features."""
        return torch.cat(self.blocks(images), dim=1)

    def blocks(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The network's own features [B, D], then those of each stage."""
        last, maps = self.network.forward_intermediates(images, indices=self.count)
        features = self.network.forward_head(last, pre_logits=True)
        return [features, *(stage.mean((2, 3)) for stage in maps)]


def split_name(name: str) -> tuple[str, int]:
    """``NAME+2`` to ``("NAME", 2)``; without a plus the count is 0."""
    base, plus, count = name.rpartition("+")
    return (base, int(count)) if plus and count.isascii() and count.isdigit() and count[0] != "0" else (name, 0)


def with_stages(network: nn.Module, count: int, size: int, name: str) -> tuple[Stages, int]:
    """Return the network with its last stages, and the width of its features.

    Args:
        size: side of the images in pixels.
        name: for the message.

    Raises:
        ModelError: the network does not give its stages, or has fewer.
    """
    stages = Stages(network, count)
    tensors = [*network.parameters(), *network.buffers()]
    try:
        # A copy without numbers, on which nothing is computed: the first real convolutions take a second.
        shapes = copy.deepcopy(stages, {id(tensor): tensor.detach().to("meta") for tensor in tensors}).eval()
        with torch.inference_mode():
            blocks = shapes.blocks(torch.zeros(1, 3, size, size, device="meta"))
            stages.widths, width = tuple(block.shape[1] for block in blocks), torch.cat(blocks, dim=1).shape[1]
    except (
        AttributeError,
        AssertionError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: no features of {count} stages from this network ({reason}); "
            "efficientnet_lite0+2 has them, as have most of timm/NAME; fewer may do"
        ) from None
    stages.train(network.training)
    return stages, width
