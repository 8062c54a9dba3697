"""Weights files: tensors by name out of .safetensors, .pth and their kin, folders and sharded files.

Nothing in a file is run. Objects of other classes beside the tensors (a numpy scalar, a path, a trainer's flags) become
inert placeholders, and the keys that held them are named.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from flowers import console
from flowers.data.paths import readable, some
from flowers.errors import ModelError
from flowers.models.weights import WEIGHTS_FILE, strip_wrappers
from flowers.parsing import read_json

AVERAGED = re.compile(r"(^|[._])(ema|teacher|swa|avg|averaged?)([._]|$)")
"""In a key or prefix: an average of the trained weights, which is what its authors evaluate."""
INDEX = ".index.json"
IN_A_FOLDER = (
    WEIGHTS_FILE, f"best/{WEIGHTS_FILE}", f"last/{WEIGHTS_FILE}", WEIGHTS_FILE + INDEX, "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)  # fmt: skip
_NOT_WEIGHTS = re.compile(r"optim|opt$|lr_sched|sched|scaler|amp|loops|callbacks")
_USUAL = {"model", "state_dict", "student", "net", "network", "module", "weights", "backbone"}
"""Keys under which trainers put a network; a message names them first."""
_DEPTH = 4
_FLAGS = "argparse.Namespace"
_SLACK_BYTES = 2**20


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read every mapping of names to tensors in a weights file, averages first.

    Args:
        path: a .safetensors file; a .pth, .pt, .ckpt or .bin file; an ``.index.json`` of a sharded one; or a folder
            with one of them: a bundle, a run folder, a model downloaded from the hub.

    Returns:
        Tensors by name, without the prefixes of DistributedDataParallel and torch.compile, by the keys under which the
        mapping stands in the file, joined by dots; "" for the file itself.

    Raises:
        ModelError: no such file, no tensors in it, a pickle that asks to run code, or sizes beyond the file's.
    """
    path = _weights_file(path)
    if path.name.endswith(INDEX):
        return {"": strip_wrappers(_read_shards(path))}
    content = _read(path)
    states = dict(_find_states(content))
    kept_out = [f"{key} ({name})" for key, name in _placeholders(content)]
    where = readable(path)
    if not states:
        if kept_out:
            raise _asks_for_code(path, some(kept_out))
        got = type(content).__name__
        if isinstance(content, Mapping):
            keys = sorted(map(str, content), key=lambda key: (AVERAGED.search(key) is None, key not in _USUAL, key))
            got = f"{len(keys)} keys, {some(keys)}"
        raise ModelError(f"weights: {where} holds no tensors by name: got {got}, expected a state_dict")
    if kept_out:
        console.say(f"{where}: only tensors are read; left out: {some(kept_out)}")
    _check_sizes(states, path)
    order = sorted(states, key=lambda key: AVERAGED.search(key) is None)
    return {key: strip_wrappers(states[key]) for key in order}


def _weights_file(path: Path) -> Path:
    """The file itself, or the one that a folder holds."""
    if not path.is_dir():
        if path.is_file():
            return path
        raise ModelError(f"weights: no such file: {readable(path)}")
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            return path / name
    others = sorted(file for suffix in (".safetensors", ".pth", ".pt", ".ckpt") for file in path.glob(f"*{suffix}"))
    if len(others) == 1:
        return others[0]
    got = f"it has {some([file.name for file in others])}" if others else "it has none"
    raise ModelError(
        f"weights: {readable(path)} is a folder, expected one weights file in it, model.safetensors say; {got}"
    )


def _read(path: Path) -> object:
    """All that a file holds.

    Raises:
        ModelError: it cannot be read, or asks to run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and deprecated storages, over several lines
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                return _read_with_placeholders(path)
    except pickle.UnpicklingError:
        raise _asks_for_code(path, "") from None
    except ModelError:
        raise
    # for damaged bytes torch raises IndexError, struct.error, AssertionError and a dozen others
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"weights: {readable(path)} cannot be read: {reason}; expected .safetensors or .pth") from None


def _asks_for_code(path: Path, held: str) -> ModelError:
    return ModelError(
        f"weights: {readable(path)} is not a plain file of tensors (it asks to run code, or is broken"
        + (f": {held}" if held else "")
        + ") and is not opened: save the model's state_dict() alone, or as .safetensors"
    )


class _Placeholder:
    """Stands for an object of a class that is not loaded; takes any arguments and keeps none."""

    name = ""

    def __new__(cls, *args: object, **kwargs: object) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def _read_with_placeholders(path: Path) -> object:
    """Read a pickle in which every class that torch does not allow is a placeholder.

    Raises:
        pickle.UnpicklingError: it uses such a class as more than a value.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError as error:  # not a zip file of torch.save
        raise pickle.UnpicklingError(str(error)) from None
    inert = [(type("_Placeholder", (_Placeholder,), {"name": name}), name) for name in names]
    with torch.serialization.safe_globals(inert):
        return torch.load(path, map_location="cpu", weights_only=True)


def _placeholders(content: object) -> Iterator[tuple[str, str]]:
    """Keys in a file that hold something other than plain values and tensors, with the name of its class."""
    if isinstance(content, _Placeholder):
        yield "the whole file", content.name
    for key, mapping in _mappings(content):
        for name, value in mapping.items():
            if isinstance(value, _Placeholder) and value.name != _FLAGS:
                yield f"{key}.{name}" if key else str(name), value.name


def _find_states(content: object) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Mappings of names to tensors, by where they stand; an epoch beside the tensors does no harm."""
    for key, mapping in _mappings(content):
        if not any(_NOT_WEIGHTS.match(part) for part in key.lower().split(".")):
            tensors = {
                name: value.detach() for name, value in mapping.items() if isinstance(name, str) and _is_plain(value)
            }
            if tensors:
                yield key, tensors


def _is_plain(value: object) -> bool:
    """Return True for a dense tensor of real numbers, the only kind that networks here are made of."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized)
    )


def _mappings(content: object) -> Iterator[tuple[str, Mapping]]:
    """The mappings inside one another, each once, with their keys joined by dots; "" is the outermost."""
    waiting, seen = [("", content, 0)], set()
    while waiting:
        key, value, depth = waiting.pop(0)
        if isinstance(value, _Placeholder) and value.name == _FLAGS:
            value = getattr(value, "state", {})
        if not isinstance(value, Mapping) or id(value) in seen or depth == _DEPTH:
            continue
        seen.add(id(value))
        yield key, value
        waiting += [(f"{key}.{name}" if key else str(name), below, depth + 1) for name, below in value.items()]


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Tensors of a sharded file, by its index of names to files beside it.

    Raises:
        ModelError: the index is broken, or a file or tensor that it names is missing.
    """
    where = readable(index)
    try:
        files = read_json(index)["weight_map"]
        names = sorted({str(file) for file in files.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"weights: {where} is no index of a sharded file: {' '.join(str(error).split())}") from None
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or not os.path.isfile(index.parent / name):
            raise ModelError(f"weights: {where} names {name!r}, which is no file beside it: copy all shards there")
        content = _read(index.parent / name)
        states = dict(_find_states(content))
        _check_sizes(states, index.parent / name)
        tensors |= states.get("", {})
    if missing := sorted(files.keys() - tensors.keys()):
        raise ModelError(f"weights: {where}: its files lack {len(missing)} of {len(files)} tensors: {some(missing)}")
    return tensors


def _check_zip(path: Path) -> None:
    """Refuse a zip file that unpacks to far more than it is."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        _refuse_claim(claimed, path, "")


def _check_sizes(states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Refuse tensors larger than their file: a stride of 0 makes any size of a few bytes."""
    for state in states.values():
        for name, value in state.items():
            _refuse_claim(value.numel() * value.element_size(), path, f" in {name}")


def _refuse_claim(claimed: int, path: Path, part: str) -> None:
    size = path.stat().st_size
    if claimed > size + _SLACK_BYTES:
        raise ModelError(f"weights: {readable(path)} has {size:,} bytes but claims {claimed:,}{part}: it is not opened")
