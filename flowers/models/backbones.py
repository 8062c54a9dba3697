"""Names to networks: the built-in EfficientNet-Lite, any torchvision classifier, any timm model as timm/NAME.

``NAME+2`` adds the averaged maps of its last two stages to its features (see ``flowers.models.stages``). A network
of timm has two variants: ``timm/NAME+avg`` is built with timm's ``global_pool="avg"``, which in a vision transformer
moves the last norm behind the mean of all patches (``fc_norm``); ``timm/NAME+dist`` gives the features of both heads of
a distilled network, side by side and halved.

Each comes without its ImageNet classifier, as images [B, 3, H, W] to features [B, D], together with the
preprocessing that its weights were trained for. The architecture follows from the name (and, for transformers
of one fixed size, the image size) alone, never from the weights: a bundle is rebuilt without looking for them.
"""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flowers.data.paths import readable
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ModelError
from flowers.models import pretrained
from flowers.models.stages import split_name, with_stages
from flowers.models.weight_files import read_states
from flowers.models.weight_match import Match, find_match
from flowers.models.weights import fill


class Backbone(NamedTuple):
    """A network without its classifier.

    Attributes:
        num_features: width of its features.
        preprocessing: the view of an image that it expects.
        head_names: how the names begin of the tensors that belong to the classifier it had.
    """

    network: nn.Module
    num_features: int
    preprocessing: Preprocessing
    head_names: tuple[str, ...]


def build_backbone(name: str, weights: str = "default", image_size: int | None = None) -> Backbone:
    """Build a network without its classifier.

    Args:
        name: ``efficientnet_lite0`` (or 1, 2), a torchvision classifier, or ``timm/NAME``, maybe with ``+avg`` or
            ``+dist``; with ``+2`` or another number of stages behind it where they are wanted.
        weights: ``default``, ``none`` (random), or the path of a .safetensors or .pth file or of a bundle; for
            torchvision also the name of one of its sets, such as IMAGENET1K_V1.
        image_size: side of the images in pixels; default: what the weights were trained for.

    Raises:
        ModelError: an unknown model, weights that do not fit or cannot be had.
    """
    check_name(name)
    base, _ = split_name(name)
    if weights == "none":
        backbone = _build(base, weights, image_size)
    else:
        with skip_random_init():
            backbone = _build(base, weights, image_size)
        path, where = pretrained.find(base, weights, backbone.network)
        match = find_match(backbone.network, read_states(path), where, (*backbone.head_names, "pre_logits."))
        fill(backbone.network, match.tensors)
    return _with_stages(backbone, name)


def build_from_file(name: str, file: Path, image_size: int | None = None) -> tuple[str, Backbone, Match]:
    """Build a network with the weights of a file, for one who also wants the classifier that is in it.

    Returns:
        The name, with the variant that the file's tensors are of; the network without its classifier, filled; and the
        match, whose other tensors are the classifier's.

    Raises:
        ModelError: as ``build_backbone``.
    """
    check_name(name)
    states = read_states(file)
    with skip_random_init():
        backbone = _build(split_name(name)[0], "none", image_size)
        if name.startswith("timm/") and "+" not in name:
            variant = _variant(backbone.network, set().union(*states.values()))
            if variant:
                name += variant
                backbone = _build(name, "none", image_size)
    match = find_match(backbone.network, states, readable(file), None)
    fill(backbone.network, match.tensors)
    return name, _with_stages(backbone, name), match


def _variant(network: nn.Module, names: Collection[str]) -> str:
    """Tell a variant of a network of timm by the names of a file's tensors."""
    if hasattr(network, "head_dist"):
        return "+dist" if any(name.endswith("head_dist.weight") for name in names) else ""
    own = network.state_dict()
    is_token = "norm.weight" in own and "fc_norm.weight" not in own
    return "+avg" if is_token and any(name.endswith("fc_norm.weight") for name in names) else ""


def _with_stages(backbone: Backbone, name: str) -> Backbone:
    """Add the last stages where the name asks for them."""
    _, stages = split_name(name)
    if not stages:
        return backbone
    network, num_features = with_stages(backbone.network, stages, backbone.preprocessing.crop, name)
    return backbone._replace(network=network, num_features=num_features)


def model_names(timm: bool = False) -> list[str]:
    """Return all names that ``build_backbone`` knows; timm's thousand only on request."""
    from torchvision import models

    names = [*pretrained.LITE_MODELS, *models.list_models(module=models)]
    if timm:
        from timm import list_models

        names += [f"timm/{name}" for name in list_models()]
    return names


@contextlib.contextmanager
def skip_random_init() -> Iterator[None]:
    """Build networks whose weights are about to be replaced without drawing millions of random numbers first."""
    with _OneNumberATensor():
        yield


class _OneNumberATensor(TorchFunctionMode):
    """Fills a tensor with one random number, another one each time: initialisers that redraw come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.uniform_ or function is torch.Tensor.normal_:
            kwargs.pop("generator", None)
            one = function(torch.empty(1), *args[1:], **kwargs, generator=self._generator)
            return args[0].fill_(one.item())
        return function(*args, **kwargs)


def check_name(name: object) -> None:
    """Check that a name is that of a model; nothing is built.

    Raises:
        ModelError: it is not; the nearest names are listed.
    """
    if isinstance(name, str):
        base, stages = split_name(name)
        if base in pretrained.LITE_MODELS or base in model_names():
            return
        # names only: timm also takes hub addresses and folders; the stages come with one vector of features
        if re.fullmatch(r"timm/[\w.]+" + (r"(\+avg)?" if stages else r"(\+avg|\+dist)?"), base):
            from timm import is_model

            if is_model(split_variant(base)[0]):
                return
    near = difflib.get_close_matches(str(name), model_names(timm=True), n=3, cutoff=0.5)
    raise ModelError(f"unknown model {name!r}; nearest names: {', '.join(near or pretrained.LITE_MODELS)}")


def split_variant(name: str) -> tuple[str, str]:
    """``timm/NAME+avg`` to timm's NAME and ``avg``; without a plus the variant is empty."""
    timm_name, _, variant = name.removeprefix("timm/").partition("+")
    return timm_name, variant


def _build(name: str, weights: str, image_size: int | None) -> Backbone:
    if name in pretrained.LITE_MODELS:
        return _build_lite(name, image_size)
    if name.startswith("timm/"):
        return _build_timm(name, image_size)
    return _build_torchvision(name, weights, image_size)


def _build_lite(name: str, image_size: int | None) -> Backbone:
    from timm import create_model

    lite = pretrained.LITE_MODELS[name]
    network = create_model(lite.timm_name, pretrained=False, num_classes=0)
    # its inputs are (x - 127) / 128 for x in 0..255
    preprocessing = _preprocessing(lite.crop, lite.resize, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic", image_size)
    return Backbone(network, network.num_features, preprocessing, ("classifier.", "_fc."))


def _build_timm(name: str, image_size: int | None) -> Backbone:
    timm_name, variant = split_variant(name)
    try:
        network, _ = timm_network(timm_name, variant, 0, image_size)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{name}: timm cannot build it: {' '.join(str(error).split())[:200]}") from None
    config = network.pretrained_cfg
    size = config["input_size"][-1]
    heads = config.get("classifier") or ()
    preprocessing = _preprocessing(
        size,
        int(size / config["crop_pct"]),
        config["mean"],
        config["std"],
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        image_size,
    )
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    num_features = getattr(network, "head_hidden_size", None) or network.num_features
    if variant == "dist":
        if not hasattr(network, "head_dist"):
            raise ModelError(f"{name}: {timm_name} has no second head (head_dist); take it without +dist")
        # the network gives the mean of its two heads: of features and zeros, and of zeros and features
        network.head, network.head_dist = nn.ConstantPad1d((0, num_features), 0), nn.ConstantPad1d((num_features, 0), 0)
        num_features *= 2
    return Backbone(network, num_features, preprocessing, tuple(f"{head}." for head in heads))


def _build_torchvision(name: str, weights: str, image_size: int | None) -> Backbone:
    from torchvision import models

    transforms = pretrained.torchvision_entry(name, weights).transforms()
    preprocessing = _preprocessing(
        transforms.crop_size[0],
        transforms.resize_size[0],
        transforms.mean,
        transforms.std,
        transforms.interpolation.value,
        image_size,
    )
    options = torchvision_options(name, preprocessing.crop)
    try:
        network = models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise ModelError(f"{name} at {preprocessing.crop} pixels: {' '.join(str(error).split())}") from None
    head = list(network.named_children())[-1][0]
    aux = ("AuxLogits.", "aux1.", "aux2.") if "aux_logits" in options else ()
    return Backbone(network, cut_head(network), preprocessing, (f"{head}.", *aux))


def timm_network(
    timm_name: str, variant: str, num_classes: int, image_size: int | None
) -> tuple[nn.Module, dict[str, object]]:
    """Build a variant of one of timm's networks, with random weights.

    Returns:
        The network; the arguments that timm builds it with, beside the number of classes.
    """
    from timm import create_model

    arguments = {"global_pool": "avg"} if variant == "avg" else {}
    network = create_model(timm_name, pretrained=False, num_classes=num_classes, **arguments)
    config = network.pretrained_cfg
    if config.get("fixed_input_size") and image_size not in (None, config["input_size"][-1]):
        arguments["img_size"] = image_size
        network = create_model(timm_name, pretrained=False, num_classes=num_classes, **arguments)
    return network, arguments


def torchvision_options(name: str, crop: int) -> dict[str, object]:
    """Arguments with which torchvision builds one of its networks for views of that side."""
    if name.startswith("vit_"):
        return {"image_size": crop}
    if name.startswith("maxvit"):
        return {"input_size": (crop, crop)}
    if name in ("inception_v3", "googlenet"):
        # aux classifiers only serve the original training; the inputs of the weights are in TensorFlow's range
        return {"aux_logits": False, "transform_input": True, "init_weights": True}
    return {}


def last_linear(network: nn.Module) -> str | None:
    """Return the name of a network's last linear layer, its classifier; None if it has no linear layer."""
    return next((name for name, module in reversed([*network.named_modules()]) if isinstance(module, nn.Linear)), None)


def cut_head(network: nn.Module) -> int:
    """Take the classifier off a torchvision network, in place, with the dropout that belongs to it.

    Of a classifier of several layers only the last one goes (the projection of MobileNetV3 and the norm of
    ConvNeXt are part of the features), but VGG's and AlexNet's goes as a whole, as in the 2018 blog.

    Returns:
        Width of the features.
    """
    from torchvision import models

    head_name, head = list(network.named_children())[-1]
    if isinstance(network, models.VGG | models.AlexNet):
        num_features = head[1 if isinstance(head[0], nn.Dropout) else 0].in_features
        network.classifier = nn.Identity()
        return num_features
    if isinstance(network, models.SqueezeNet):
        num_features = head[1].in_channels
        network.classifier = nn.AdaptiveAvgPool2d(1)
        return num_features
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout) and (name == "dropout" or name.startswith(f"{head_name}.")):
            network.set_submodule(name, nn.Identity())
    linear_name = last_linear(network)
    num_features = network.get_submodule(linear_name).in_features
    network.set_submodule(linear_name, nn.Identity())
    return num_features


def _preprocessing(
    crop: int, resize: int, mean: tuple, std: tuple, interpolation: str, image_size: int | None
) -> Preprocessing:
    """Return the view that the weights expect, or the same share of the picture at another size."""
    if image_size is not None:
        crop, resize = image_size, round(resize * image_size / crop)
    return Preprocessing(
        resize=max(resize, crop), crop=crop, mean=tuple(mean), std=tuple(std), interpolation=interpolation
    )
