"""Import from other trainers: a state dict and a list of classes become a bundle.

The file is any that ``--weights`` of training takes (see ``flowers.models.weight_files`` and ``weight_match``); here
its head counts too: one linear layer, or two, which are taken to have a ReLU between them, since tensors do not say. A
batch norm right behind a linear layer is folded into it, and the two heads of a distilled network, whose logits are
averaged, are one on the features of both. Other heads are refused.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flowers import console
from flowers.cli import to_plain
from flowers.config.export import ExportConfig
from flowers.data.classes import ClassIndex
from flowers.data.paths import readable, some
from flowers.errors import DataError, ModelError, system_reason
from flowers.made import how_made
from flowers.models.backbones import build_from_file
from flowers.models.bundle import Bundle, refuse_other_files, save_bundle
from flowers.models.heads import HeadSpec
from flowers.models.trained_view import TrainedView, read_view
from flowers.models.weight_match import TRAINING_ONLY, Match, check_finite
from flowers.parsing import parse_json

BATCH_NORM_EPS = 1e-5
"""Default of torch.nn.BatchNorm1d; files do not hold it."""


def import_state_dict(config: ExportConfig) -> int:
    """Make a bundle of a state dict, as ``--from-state-dict`` says, write it, and describe it.

    Returns:
        0.

    Raises:
        OutputError: there is a folder of that name which is no bundle; it is left alone.
        FlowersError: as ``bundle_from_state_dict``, and a place that cannot be written.
    """
    refuse_other_files(config.output)
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainedView)}
    file, view = config.from_state_dict, TrainedView(**given)
    bundle = bundle_from_state_dict(file, config.model, config.classes, view, to_plain(config))
    save_bundle(bundle, config.output)
    seen = bundle.preprocessing
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (seen.mean, seen.std))
    console.facts(
        f"{bundle.model}: {readable(file)}",
        [
            ("head", "linear" if bundle.head.hidden is None else f"hidden layer of {bundle.head.hidden}"),
            ("classes", f"{len(bundle.classes)}: {some(list(bundle.classes.labels))}"),
            ("images", f"short side to {seen.resize}, centre {seen.crop} x {seen.crop}, {seen.interpolation}"),
            ("scaled by", f"mean {mean}; std {std}"),
            ("if it was trained otherwise", "--image-size, --mean, --std, --resize or --crop-pct, --interpolation"),
        ],
    )  # fmt: skip
    data = ("--data-dir", "DATA", "--split", "valid")
    console.done(
        "imported", [("model", config.output)], [console.job_command("evaluate", "--checkpoint", config.output, *data)]
    )
    return 0


def bundle_from_state_dict(
    file: Path, model: str, classes: Path, view: TrainedView | None = None, config: Mapping | None = None
) -> Bundle:
    """Make a bundle of a state dict; nothing of the file is run.

    Args:
        file: the state dict, or a folder with one.
        model: the network's name, as ``--model`` of training takes it.
        classes: the meaning of its outputs; see ``read_class_list``.
        view: how it saw its images; what that leaves open is read from a config.json beside the weights, else it is
            that of the model's ImageNet weights.
        config: kept in the bundle as how it was made.

    Raises:
        ModelError: an unknown model; tensors that are missing, too many, of another shape or not finite; a head of
            another kind or for another number of classes.
        DataError: the file of classes cannot be read or is no list of different names.
    """
    index = read_class_list(classes)
    where = readable(file)
    view = (view or TrainedView()).over(read_view(file))
    model, backbone, match = build_from_file(model, file, view.image_size)
    network, num_features, preprocessing, _ = backbone
    if match.resampled:
        raise ModelError(f"{where}: {_why_resampled(network, match, preprocessing.crop)}")
    layers, rest = _layers(match, num_features)
    if layers is None:
        raise ModelError(f"{where}: {_why_no_head(rest, num_features, model)}")
    num_classes = len(layers[-1][0])
    if num_classes != len(index):
        raise ModelError(f"{where}: its head gives {num_classes} classes, {readable(classes)} names {len(index)}")
    hidden = len(layers[0][0]) if len(layers) == 2 else None
    if hidden is not None:
        console.warn(f"the head has two layers, {num_features} to {hidden} to {num_classes}: ReLU is taken in between")
    tensors = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    for name, (weight, bias) in zip(("head.hidden", "head.output")[-len(layers) :], layers, strict=True):
        tensors |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
    check_finite(rest, where)
    made = {**how_made(config), "from": f"state dict {file.name}"}
    head = HeadSpec(num_classes, num_features, hidden)
    return Bundle(model, head, index, view.preprocessing(preprocessing), {}, made, tensors)


def _layers(match: Match, num_features: int) -> tuple[list[tuple[Tensor, Tensor]] | None, dict[str, Tensor]]:
    """The head's linear layers, and the tensors that they were looked for among.

    Under the backbone's prefix it makes a whole classifier with it, and other parts of the file do not matter. Without
    one there, everything outside the prefix must be the head.
    """
    inside, outside = (
        {name: value for name, value in tensors.items() if not name.startswith(TRAINING_ONLY)}
        for tensors in (match.inside, match.outside)
    )
    rest = join_heads(fold_norms(inside or outside))
    return find_head(rest, num_features), rest


def fold_norms(rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold each batch norm of a head into the linear layer before it; the outputs stay the same.

    Only in a Sequential, whose numbers tell that nothing stands between the two: "fc.1." behind "fc.0.".
    """
    rest = dict(rest)
    for name in [name.removesuffix("running_mean") for name in rest if name.endswith("running_mean")]:
        place = re.fullmatch(r"(.*\.|)(\d+)\.", name)
        before = f"{place[1]}{int(place[2]) - 1}." if place else ""
        parts = [rest.get(name + part) for part in ("running_mean", "running_var", "weight", "bias")]
        weight = rest.get(f"{before}weight")
        if weight is None or weight.ndim != 2 or any(part is None or part.shape != weight.shape[:1] for part in parts):
            continue
        mean, variance, scale, shift = (part.float() for part in parts)
        factor = scale / (variance + BATCH_NORM_EPS).sqrt()
        bias = rest.get(f"{before}bias", torch.zeros(len(weight)))
        for part in ("running_mean", "running_var", "weight", "bias", "num_batches_tracked"):
            rest.pop(name + part, None)
        rest |= {f"{before}weight": weight.float() * factor[:, None], f"{before}bias": (bias - mean) * factor + shift}
    return rest


def join_heads(rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make one head of a distilled network's two.

    The mean of their logits is that of one linear layer on half of both features, as the network's variant ``+dist``
    gives them.
    """
    pairs = [[rest.get(f"{head}.{part}") for head in ("head", "head_dist")] for part in ("weight", "bias")]
    if any(value is None for pair in pairs for value in pair) or any(a.shape != b.shape for a, b in pairs):
        return rest
    if pairs[0][0].ndim != 2:
        return rest
    weight, bias = torch.cat(pairs[0], dim=1), (pairs[1][0] + pairs[1][1]) / 2
    others = {name: value for name, value in rest.items() if not name.startswith(("head.", "head_dist."))}
    return {**others, "head.weight": weight, "head.bias": bias}


def _why_resampled(network: nn.Module, match: Match, crop: int) -> str:
    """Name the image size that the position embeddings are for, where it follows from their number."""
    name, theirs = next(iter(match.resampled.items()))
    message = f"{name} is for images of another size than {crop} x {crop} pixels"
    ours = list(network.state_dict()[name].shape)
    for extra in (0, 1, 2):  # tokens that are no part of the image
        sides = [math.isqrt(shape[1] - extra) for shape in (theirs, ours) if len(shape) == 3 and shape[1] > extra]
        if len(sides) == 2 and [side**2 + extra for side in sides] == [theirs[1], ours[1]]:
            return f"{message}: give --image-size {crop * sides[0] // sides[1]}"
    return f"{message}: give the --image-size that it was trained at"


def find_head(rest: Mapping[str, Tensor], num_features: int) -> list[tuple[Tensor, Tensor]] | None:
    """Find the linear layers of a head, first to last.

    Args:
        rest: the tensors that are not the backbone's.

    Returns:
        weight [out, in] and bias [out] of one or two layers; None if the tensors are no such head.
    """
    weights = {name.removesuffix("weight"): value for name, value in rest.items() if name.endswith("weight")}
    biases = {name.removesuffix("bias"): value for name, value in rest.items() if name.endswith("bias")}
    if len(weights) + len(biases) != len(rest) or not biases.keys() <= weights.keys() or not 1 <= len(weights) <= 2:
        return None
    if any(name.startswith("pre_logits") for name in rest):  # the original ViT's, with tanh behind it
        return None
    if any(value.ndim != 2 or not value.is_floating_point() for value in weights.values()):
        return None
    for order in (list(weights), list(weights)[::-1]):
        width, layers = num_features, []
        for prefix in order:
            weight = weights[prefix]
            bias = biases.get(prefix, torch.zeros(len(weight)))
            if weight.shape[1] != width or bias.shape != weight.shape[:1] or not len(weight):
                break
            layers.append((weight, bias))
            width = len(weight)
        else:
            return layers
    return None


def _why_no_head(rest: Mapping[str, Tensor], num_features: int, model: str) -> str:
    if not rest:
        return (
            f"has no head, so only training takes it (--weights); expected a last layer from {num_features} features "
            f"to the classes beside {model}'s own"
        )
    shapes = some([f"{name} {list(value.shape)}" for name, value in rest.items()])
    if any(name.endswith("running_mean") for name in rest):
        shapes += ", a batch norm among them"
    return (
        f"the head is of another kind: got {shapes}; expected weight and bias of one linear layer, or of two, from "
        f"the {num_features} features of {model}"
    )


def read_class_list(path: Path) -> ClassIndex:
    """Read the classes of an imported model, in the order of its outputs.

    They are a text file with one a line (a tab and a display name may follow), or JSON: a list of names, ``{"name":
    index}``, ``{"0": "name", ...}`` (id2label), a config.json with such values as ``id2label`` or ``label_names``, or
    ``{"folder": "display name"}`` sorted by folder, as torchvision's ImageFolder does.

    Raises:
        DataError: the file cannot be read, or is no list of different names.
    """
    where = readable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = parse_json(text) if path.suffix.lower() == ".json" else None
    except OSError as error:
        raise DataError(f"--classes {where}: cannot be read: {system_reason(error)}") from None
    except ValueError as error:
        raise DataError(f"--classes {where}: {' '.join(str(error).split())}") from None
    if values is None:
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        pairs = [(line[0].strip(), line[-1].strip() or line[0].strip()) for line in lines]
    else:
        pairs = _class_pairs(values, where)
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not pairs or twice:
        raise DataError(f"--classes {where}: " + (f"{some(twice)} stands there twice" if twice else "names no class"))
    for name in names:
        if not name or name in (".", "..") or any(character in name for character in {"/", "\0", os.sep}):
            raise DataError(f"--classes {where}: class {name!r} cannot be the name of a folder")
    return ClassIndex(tuple(names), tuple(label for _, label in pairs))


def _class_pairs(values: object, where: str) -> list[tuple[str, str]]:
    """Class and display name in index order, from JSON.

    Raises:
        DataError: it is none of the forms that are known, or its order is not clear.
    """
    if isinstance(values, dict) and isinstance(values.get("id2label", values.get("label_names")), dict | list):
        values = values.get("id2label", values.get("label_names"))  # the config.json of Hugging Face or of timm
        if isinstance(values, dict):
            by_number = sorted(values, key=_number)
            if by_number != [str(index) for index in range(len(values))]:
                raise DataError(f"--classes {where}: the keys of id2label are not 0 to {len(values) - 1}, each once")
            values = [values[key] for key in by_number]
    if isinstance(values, list) and all(isinstance(name, str) for name in values):
        return [(name, name) for name in values]
    if isinstance(values, dict) and all(type(index) is int for index in values.values()):
        if sorted(values.values()) == list(range(len(values))):
            return [(name, name) for name in sorted(values, key=values.get)]
        raise DataError(f"--classes {where}: the indices are not 0 to {len(values) - 1}, each once")
    if isinstance(values, dict) and all(isinstance(label, str) and label for label in values.values()):
        by_number = sorted(values, key=_number)
        is_numbered = by_number == [str(index) for index in range(len(values))]
        if is_numbered and by_number == sorted(values):
            return [(values[name], values[name]) for name in by_number]
        if is_numbered:
            raise DataError(
                f"--classes {where}: are 0 to {len(values) - 1} indices, or folders in the order of their names (0, 1, "
                "10, ...)? Write a list of the names in index order instead"
            )
        return [(name, values[name]) for name in sorted(values)]
    raise DataError(f'--classes {where}: expected a list of names, {{"name": index}} or {{"folder": "display name"}}')


def _number(text: str) -> tuple[int, str]:
    """Sort key of numbers that are text; other text comes by its length."""
    return (int(text), text) if text.isdecimal() else (len(text), text)
