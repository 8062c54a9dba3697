"""The classifier to train: built or loaded, with its head, its preprocessing and the sizes of its training views.

Two flags change the network itself: ``--drop-path`` leaves residual branches out at random while it trains, and
``--grad-checkpointing`` computes the activations of a block again in the backward pass instead of keeping them.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.folders import ClassIndex
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ModelError, UsageError
from flowers.models.backbones import Backbone, build_backbone
from flowers.models.bundle import load_bundle
from flowers.models.depthwise import fast_depthwise
from flowers.models.heads import BATCH_NORM, Classifier, HeadSpec, build_head, freeze_backbone, freeze_batch_norm
from flowers.training.checkpoint import Checkpoint
from flowers.training.continued import continue_model
from flowers.training.run_stages import HEAD_STAGE
from flowers.training.schedule import view_sizes


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier, the description of its head, and what its images go through at evaluation."""

    classifier: Classifier
    head: HeadSpec
    preprocessing: Preprocessing


def build_model(config: TrainConfig, classes: ClassIndex, resumed: Checkpoint | None) -> Model:
    """Build the classifier, with the weights of the checkpoint or of the earlier stage if there is one.

    Raises:
        ModelError: an unknown model, or weights that do not fit.
    """
    if resumed is not None or config.finetune == "staged":
        start = resumed.bundle if resumed is not None else load_bundle(config.output_dir / HEAD_STAGE)
        classifier, head, preprocessing = start.build(), start.head, start.preprocessing
    elif config.continue_from is not None:
        classifier, start = continue_model(config, classes)
        head, preprocessing = start.head, start.preprocessing
    else:
        torch.manual_seed(config.seed)  # --weights none
        backbone = build_backbone(config.model, config.weights, config.image_size)
        if Path(config.weights).is_dir():
            console.say(f"a new head is trained; --continue-from {console.plain(config.weights)} would keep its own")
        head, module = new_head(config, len(classes), backbone)
        classifier, preprocessing = Classifier(backbone.network, module), backbone.preprocessing
    if resumed is None:
        preprocessing = with_flags(preprocessing, config)
    if config.finetune == "head":
        freeze_backbone(classifier)
    elif config.freeze_bn:
        freeze_batch_norm(classifier)
    if config.finetune != "head":
        set_stochastic_depth(classifier.backbone, config.drop_path)
    if config.grad_checkpointing:
        set_grad_checkpointing(classifier.backbone)
    return Model(classifier, head, preprocessing)


def new_head(config: TrainConfig, num_classes: int, backbone: Backbone) -> tuple[HeadSpec, nn.Module]:
    """The head that the flags describe, initialised from the seed.

    One that is fitted at once to the features of several stages sees each stage at length 1, so that none drowns
    another; tests/bench/README.md says what it brings.
    """
    torch.manual_seed(config.seed)
    stages = getattr(backbone.network, "widths", ()) if config.fits_at_once else ()
    spec = HeadSpec(num_classes, backbone.num_features, config.hidden, config.dropout, tuple(stages))
    return spec, build_head(spec)


def with_flags(preprocessing: Preprocessing, config: TrainConfig) -> Preprocessing:
    """The preprocessing of a model that training begins with, as the flags ask for it."""
    given = {name: getattr(config, name) for name in ("mean", "std", "interpolation")}
    given = {name: value for name, value in given.items() if value is not None}
    is_continued = config.continue_from is not None
    if not is_continued:
        given["resize"] = evaluation_resize(config, preprocessing)
    if config.color_profiles is not None or not (is_continued or config.finetune == "staged"):
        given["to_srgb"] = config.color_profiles != "ignore"
    return dataclasses.replace(preprocessing, **given)


def evaluation_resize(config: TrainConfig, preprocessing: Preprocessing) -> int:
    """Short side before the centre crop: --resize; else the model's own, for a whole network halfway to the crop.

    Training crops at random and so shows objects larger than evaluation does; a network trained on such views does
    better when evaluation shows them larger too. (Lite0 on Oxford 102: 0.944 at 240, 0.921 at its own 256.)

    Source: Touvron et al. 2019, "Fixing the train-test resolution discrepancy", arXiv:1906.06423.
    """
    if config.resize is not None:
        return max(config.resize, preprocessing.crop)
    if config.finetune == "head":
        return preprocessing.resize
    return (preprocessing.resize + preprocessing.crop) // 2


def train_sizes(config: TrainConfig, backbone: nn.Module, crop: int) -> tuple[int, int | None]:
    """Sides of the training views: a head sees the size of evaluation, a whole network smaller, growing views.

    ``--train-size`` alone is the size of all views. Networks of one fixed size (most transformers) get that size.

    Args:
        crop: side at evaluation.

    Returns:
        The final size; the size in the first epoch, None if it does not grow.

    Raises:
        UsageError: the network does not take a size given, views would shrink, or they are cached in another size.
    """
    if config.image_size is not None and not _accepts(backbone, crop):
        raise UsageError(f"--image-size: got {crop}, but {config.model} does not take images of {crop} pixels")
    asked = {size for size in (config.train_size, config.first_train_size) if size is not None}
    if config.uses_features and asked - {crop}:
        raise UsageError(
            f"--train-size, --first-train-size: got {max(asked - {crop})}, but cached features are all of views of "
            f"{crop} pixels: leave them out, give --image-size, or add --no-feature-cache"
        )
    for size in asked:
        if not _accepts(backbone, size):
            raise UsageError(f"{config.model} does not take images of {size} pixels, only of {crop}: see --train-size")
    if config.finetune == "head" or config.train_size is not None:
        first, last = None, config.train_size or crop
    else:
        first, last = (16 * max(2, round(share * crop / 16)) for share in (0.5, 0.8))
        if crop < 64 or not (_accepts(backbone, first) and _accepts(backbone, last)):
            first = last = crop
    first = config.first_train_size or first
    if first is not None and first > last:
        raise UsageError(f"--first-train-size: got {first}, expected at most --train-size, here {last}")
    return last, first


def _accepts(backbone: nn.Module, size: int) -> bool:
    """True if a network runs on images of a size."""
    was_training = backbone.training
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        backbone.train(was_training)
    return True


DROP_PATHS = re.compile(r"drop_path\d*|stochastic_depth|stochastic_dropout")


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

    places = _drop_paths(network)
    if not places and rate > 0:
        raise ModelError(f"--drop-path {rate}: {type(network).__name__} has no residual branches to leave out")
    for depth, (block, name) in enumerate(places):
        branch = StochasticDepth(rate * depth / max(1, len(places) - 1), "row")
        setattr(block, name, branch.train(block.training))


def _drop_paths(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the blocks with residual branches, from first to last, and the attribute that holds their drop path."""
    return [
        (block, name)
        for block in network.modules()
        for name in {**vars(block), **dict(block.named_children())}
        if DROP_PATHS.fullmatch(name)
        and isinstance(getattr(block, name), nn.Module | None)
        and getattr(block, "residual", True)  # VovNet's others have no shortcut: all of the image would be left out
    ]


def set_grad_checkpointing(network: nn.Module) -> None:
    """Make every block of the network's sequences of blocks forget its activations in training, in place.

    A block is a member of a Sequential or ModuleList that is itself made of several modules: a residual block, an
    encoder layer. Blocks inside of blocks belong to the outer one. Neither weights, names nor results change: random
    numbers are drawn the same again, and batch norm's statistics are updated once.

    Raises:
        ModelError: the network has fewer than two blocks.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """
    found = list(_checkpointed_blocks(network))
    if len(found) < 2:
        raise ModelError(
            f"--grad-checkpointing: {type(network).__name__} has no sequence of blocks to compute again; leave it out "
            "and lower --batch-size, with more of --grad-accum-steps"
        )
    for block in found:
        block.forward = functools.partial(_checkpointed_forward, block, block.forward)


def _checkpointed_blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        in_sequence = isinstance(module, nn.Sequential | nn.ModuleList)
        if in_sequence and not isinstance(child, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
            yield child
        else:
            yield from _checkpointed_blocks(child)


def _checkpointed_forward(block: nn.Module, forward, *args, **kwargs):
    if not block.training:
        return forward(*args, **kwargs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """The context managers of the first and the second pass through a block."""
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


def compile_network(module: nn.Module, config: TrainConfig) -> nn.Module:
    """Compile the network for one size of images at a time.

    Training views grow. From the second size on torch.compile would compile for all sizes at once, which its CPU
    backend cannot do for every network (shufflenet: InductorError), and such a program is slower where it can.
    """
    programs = 2 * len(set(view_sizes(config))) + 4  # training; whole and last batches of validation
    limit = torch._dynamo.config.recompile_limit  # beyond it torch runs the network uncompiled, with one warning
    torch._dynamo.config.recompile_limit = max(limit, programs)
    return torch.compile(module, dynamic=False)
