"""The head that is trained, and the classifier that a backbone and a head make together."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from flowers.errors import ModelError
from flowers.models.depthwise import fast_depthwise

MAX_WIDTH = 2**24
BATCH_NORM = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@dataclass(frozen=True)
class HeadSpec:
    """Shape of a head: one linear layer, or one hidden layer before it.

    Attributes:
        unit_blocks: widths of the blocks of features that are scaled to length 1 each, the features of one stage of the
            network say; empty if features are taken as they are.

    Raises:
        ModelError: a size below 1 or above ``MAX_WIDTH``, a dropout outside [0, 1), or blocks that are not all of the
            features.
    """

    num_classes: int
    in_features: int
    hidden: int | None = None
    dropout: float = 0.0
    unit_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit_blocks", _as_tuple(self.unit_blocks))
        for name in ("num_classes", "in_features", "hidden"):
            value = getattr(self, name)
            if name == "hidden" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_WIDTH:
                raise ModelError(f"head: {name} is {value!r}, expected a whole number from 1 to {MAX_WIDTH}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ModelError(f"head: dropout is {self.dropout!r}, expected a share from 0 to below 1")
        blocks = self.unit_blocks
        if blocks and (min(blocks) < 1 or sum(blocks) != self.in_features):
            raise ModelError(f"head: unit_blocks is {list(blocks)}, expected widths of together {self.in_features}")

    def to_dict(self) -> dict:
        """Plain values for JSON; without blocks they are those of earlier versions."""
        values = asdict(self)
        blocks = values.pop("unit_blocks")
        return {**values, "unit_blocks": list(blocks)} if blocks else values

    @classmethod
    def from_dict(cls, values: object) -> "HeadSpec":
        """Read what ``to_dict`` wrote.

        Raises:
            ModelError: no mapping, a field too many or too few, or a value that cannot be.
        """
        fields = set(cls.__dataclass_fields__) - {"unit_blocks"}
        if not isinstance(values, dict) or set(values) - {"unit_blocks"} != fields:
            got = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise ModelError(f"head: got {got}, expected exactly the fields {sorted(fields)}")
        return cls(**values)


def _as_tuple(blocks: object) -> tuple[int, ...]:
    """Widths as JSON has them.

    Raises:
        ModelError: anything but whole numbers.
    """
    if not isinstance(blocks, list | tuple) or not all(type(width) is int for width in blocks):
        raise ModelError(f"head: unit_blocks is {blocks!r}, expected whole numbers")
    return tuple(blocks)


def build_head(spec: HeadSpec) -> nn.Sequential:
    """A head with PyTorch's own random start: features [B, in_features] to logits [B, num_classes].

    With a hidden layer it is the one of the 2018 blog: linear, ReLU, dropout, linear.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = spec.in_features
    if spec.unit_blocks:
        layers["unit_blocks"] = UnitBlocks(spec.unit_blocks)
    if spec.hidden is not None:
        layers["hidden"] = nn.Linear(width, spec.hidden)
        layers["activation"] = nn.ReLU()
        width = spec.hidden
    if spec.dropout:
        layers["dropout"] = nn.Dropout(spec.dropout)
    layers["output"] = nn.Linear(width, spec.num_classes)
    return nn.Sequential(layers)


class UnitBlocks(nn.Module):
    """Features [B, D] with each block scaled to length 1, so that no stage of the network drowns another."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.widths = list(widths)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """In two steps, since squares of large features are beyond float16."""
        blocks = [block / block.abs().amax(1, keepdim=True).clamp_min(1e-6) for block in features.split(self.widths, 1)]
        return torch.cat([F.normalize(block, dim=1, eps=1e-6) for block in blocks], dim=1)


class Classifier(nn.Module):
    """Backbone and head in one network; its parameters are named ``backbone.*`` and ``head.*``."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._frozen = False
        self._still_batch_norm = False

    def train(self, mode: bool = True) -> "Classifier":
        """Switch to training mode, all but a frozen backbone and batch norm that is held still."""
        super().train(mode)
        if self._frozen:
            self.backbone.eval()
        if self._still_batch_norm:  # looked for each time: modules may have been replaced since
            for module in self.backbone.modules():
                if isinstance(module, BATCH_NORM):
                    module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, H, W] to logits [B, num_classes]."""
        return self.head(self.features(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, H, W] to what the head sees, [B, in_features]."""
        if not self._frozen:
            with fast_depthwise(images.device):
                return pooled(self.backbone(images))
        if self.backbone.training:  # someone called backbone.train() behind our back
            self.backbone.eval()
        with torch.no_grad():
            return pooled(self.backbone(images))


def pooled(features: torch.Tensor) -> torch.Tensor:
    """Return the features if they are [B, D].

    Raises:
        ModelError: the backbone gives a map or a sequence; a few encoders of timm do.
    """
    if features.ndim != 2:
        raise ModelError(f"the backbone gives {list(features.shape)}, expected [images, features]: it is no classifier")
    return features


def freeze_backbone(classifier: Classifier) -> None:
    """Hold every tensor of the backbone still, batch-norm statistics included.

    Its parameters get no gradient and it stays in evaluation mode whatever ``classifier.train()`` says, so
    that batch norm uses (and keeps) the statistics it has, and dropout and stochastic depth stay off.
    """
    classifier._frozen = True
    classifier.backbone.requires_grad_(False)
    classifier.backbone.eval()


def freeze_batch_norm(classifier: Classifier) -> None:
    """Freeze the statistics of batch norm while all its weights are trained.

    Those of a large data set are better than those of small batches, and steps are faster.
    """
    classifier._still_batch_norm = True
    classifier.train(classifier.training)


def synchronize_batch_norm(classifier: Classifier) -> Classifier:
    """Make batch norm take its statistics from the images of all ranks; on GPUs only.

    By timm's conversion: torch's own also replaces timm's layers that are batch norm and activation in one
    (EfficientNet-Lite is made of them), and drops the activation.
    """
    from timm.layers import convert_sync_batchnorm

    modes = {name: module.training for name, module in classifier.named_modules()}
    converted = convert_sync_batchnorm(classifier)
    for name, module in converted.named_modules():  # of earlier versions of timm, new modules are in training mode
        module.training = modes[name]
    return converted
