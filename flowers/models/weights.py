"""Weights from files and from the net, fitted to a network by name and shape, or refused with the reason."""

import argparse
import contextlib
import hashlib
import http.client
import pickle
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowers import console
from flowers.errors import ModelError
from flowers.files import make_folder, write_atomically
from flowers.locks import take_turns
from flowers.models.stages import PREFIX

WRAPPERS = {"module", "_orig_mod"}  # what DistributedDataParallel and torch.compile put before names
CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "ema")
AVERAGED = "n_averaged"  # of torch.optim.swa_utils.AveragedModel: how many models, no part of one
CONNECT_TIMEOUT_S = 10.0
WEIGHTS_FILE = "model.safetensors"
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, as ``read_state_dict`` gives them; of a bundle, or a run folder with one, its backbone's.

    Raises:
        ModelError: no such file, no weights in it, or a pickle that asks for more than tensors.
    """
    if path.is_dir():
        path = next(
            (path / sub / WEIGHTS_FILE for sub in ("", "best", "last") if (path / sub / WEIGHTS_FILE).exists()), path
        )
    state = read_state_dict(path)
    if any(name.startswith("backbone.") for name in state):  # a bundle: its head is for other classes
        state = {name.removeprefix("backbone."): value for name, value in state.items() if not name.startswith("head.")}
        if all(name.startswith(PREFIX) for name in state):  # of NAME+2; a part of timm's VOLO is called so, too
            state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    return state


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file read without running anything from it.

    A checkpoint that keeps its weights under ``state_dict``, ``model`` or the like is looked into; of several there,
    those trained and their average, the first of ``CONTAINERS`` is taken, with a warning. The prefixes of
    DistributedDataParallel and torch.compile are taken off, in any nesting.

    Raises:
        ModelError: no such file, no weights in it, or a pickle that asks for more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # flags beside the weights: timm, torchvision
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"weights: no such file: {path}") from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"weights: {path} is not a plain file of tensors (it asks to run code, or is broken) and is not opened: "
            "save the model's state_dict() alone, or as .safetensors"
        ) from None
    except (
        Exception
    ) as error:  # of damaged bytes torch says so in a dozen ways: IndexError, struct.error, AssertionError
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"weights: {path} cannot be read: {reason}; expected .safetensors or .pth") from None
    found = _find_states(content)
    if not found:
        kind = f"keys {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__
        expected = f"a state_dict, or a mapping that has one under {', '.join(CONTAINERS)}"
        raise ModelError(f"weights: {path} holds no tensors by name: got {kind}, expected {expected}")
    (taken, state), *others = found.items()
    if others:
        console.warn(f"{path} holds {', '.join(found)}: {taken} is taken; of another one make a file of its own")
    return strip_wrappers({name: value for name, value in state.items() if name != AVERAGED})


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.`` and ``_orig_mod.`` out of all names, wherever and however often they stand."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): value for name, value in state.items()}


def add_tensors(digest, tensors: Mapping[str, Tensor]) -> None:
    """Feed a hash of ``hashlib`` names, kinds, shapes and bytes of tensors, sorted by name."""
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], where: str, ignore: Iterable[str] = ()) -> None:
    """Load tensors into a network whose names and shapes they must match exactly.

    Batch-norm step counters may be missing (old files lack them).

    Args:
        state: tensors by name.
        where: what the tensors came from, for the message.
        ignore: names, or beginnings of names, that may be there and are left out: the original's classifier.

    Raises:
        ModelError: names that are missing or too many, or shapes that differ; the first few are listed.
    """
    ignored = tuple(ignore)
    own = network.state_dict()
    given = {name: value for name, value in state.items() if name in own or not (ignored and name.startswith(ignored))}
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ModelError(f"{where}: the tensors do not fit the model ({len(own)} expected): {'; '.join(problems)}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name]) if name in given else value.zero_()


def fetch(url: str, folder: Path, name: str | None = None) -> Path:
    """The file of that URL, downloaded into a folder unless it is there; one process of a machine downloads.

    A beginning of its SHA-256 in the name, as in ``resnet18-f37072fd.pth``, is held against what came.

    Args:
        name: what to call it there; default: as in the URL.

    Raises:
        ModelError: no connection, or a file that is not the one expected.
    """
    target = folder / (name or url.rsplit("/", 1)[1])
    if target.exists():
        return target
    marked = re.search(r"-([0-9a-f]{8,})\.", target.name)
    sha256 = marked.group(1) if marked else ""
    hint = f"download {url} elsewhere and put it at {target}, or give the file as --weights PATH"
    make_folder(folder)
    with take_turns(folder / f".{target.name}.lock"):
        if target.exists():
            return target
        digest = hashlib.sha256()
        with contextlib.closing(_blocks(url, hint)) as blocks, write_atomically(target, "wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
            if not digest.hexdigest().startswith(sha256):
                raise ModelError(f"{url} gave another file than expected (SHA-256 {sha256}...): {hint}")
    return target


def _blocks(url: str, hint: str) -> Iterator[bytes]:
    """A file from the net, a mebibyte at a time.

    Raises:
        ModelError: no connection, or one that broke.
    """
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with console.progress(f"downloading {url.rsplit('/', 1)[1]}", size // 2**20 or None, "MiB") as meter:
                while block := answer.read(2**20):
                    done += len(block)
                    yield block
                    meter.advance(1)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"the pre-trained weights are not on this machine and cannot be fetched ({reason}): {hint}"
        ) from None
    if done < size:
        raise ModelError(f"{url} broke off after {done} of {size} bytes: {hint}")


def _find_states(content: object, depth: int = 3) -> dict[str, Mapping[str, Tensor]]:
    """The mappings of names to tensors inside a checkpoint, by where they stand."""
    if not isinstance(content, Mapping) or not depth:
        return {}
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return {"": content}
    return {
        ".".join(filter(None, (key, below))): state
        for key in CONTAINERS
        for below, state in _find_states(content.get(key), depth - 1).items()
    }
