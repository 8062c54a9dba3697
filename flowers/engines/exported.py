"""A model that was exported: one ONNX file, or OpenVINO's .xml with its .bin, which says itself what it is.

The text that travels inside, under the name ``flowers`` (ONNX: metadata_props; OpenVINO: rt_info; torch.export: the
extra file flowers.json), is JSON in ASCII::

    {"format_version": 1, "model": "efficientnet_lite0", "model_hash": "...",     the bundle it was made of
     "classes": ["1", "10", ...], "labels": ["pink primrose", ...], "preprocessing": {"resize": 256, "crop": 224, ...},
     "input": {"type": "uint8", "layout": "NHWC"}, "precision": "float32", "metrics": {...}, "made": {...}}

Its input is ``images`` (pixels 0 to 255, RGB), its output ``probs``: normalisation and softmax are part of the graph.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowers.data.folders import ClassIndex
from flowers.data.paths import readable
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ModelError, UsageError, system_reason
from flowers.files import file_digest
from flowers.models.bundle import Bundle, check_made, load_bundle, read_classes
from flowers.parsing import parse_json, read_json

FORMAT_VERSION = 1
KEY = "flowers"
ENGINES = ("onnxruntime", "openvino")
"""What runs exported files, on the CPU."""
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f]|[\x80-\xff]\x01)")
"""The key under which a tensor of an ONNX file says where its numbers are, as protobuf writes it; the value's size."""
SUFFIXES = {".onnx": "onnx", ".xml": "openvino"}
INPUT_TYPES = ("uint8", "float32")
LAYOUTS = ("NHWC", "NCHW")
PRECISIONS = ("float32", "fp16", "int8")


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """The description inside an exported file.

    Attributes:
        format: "onnx" or "openvino".
        precision: of its weights and arithmetic: "float32", "fp16" or "int8".
        input_type: of the pixels: "uint8" or "float32".
        layout: order of the input's dimensions, "NHWC" or "NCHW".
        metrics: of the bundle that it was made of.
        made: when, and with which versions.
    """

    path: Path
    format: str
    model: str
    precision: str
    input_type: str
    layout: str
    classes: ClassIndex
    preprocessing: Preprocessing
    metrics: dict
    made: dict

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of its file, or files."""
        return hashlib.sha256(
            b"".join(bytes.fromhex(digest["sha256"]) for digest in self._digests.values())
        ).hexdigest()

    @functools.cached_property
    def is_verified(self) -> bool:
        """True if the file is as it was exported, by the JSON beside it; False where there is none that says so.

        Raises:
            ModelError: it is another than the one that was exported.
        """
        beside = self.path.with_name(f"{self.path.name}.json")
        try:
            written = read_json(beside)["files"]
            changed = [file for file, digest in self._digests.items() if written[file.suffix] != digest]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        if changed:
            raise ModelError(
                f"{readable(changed[0])}: damaged or changed since it was exported, by the SHA-256 in "
                f"{readable(beside)}: copy or export it again, or remove that JSON"
            )
        return True

    @functools.cached_property
    def _digests(self) -> dict[Path, dict[str, int | str]]:
        try:
            return {file: file_digest(file) for file in files_of(self.path)}
        except OSError as error:
            raise ModelError(f"{readable(error.filename)} cannot be read: {system_reason(error)}") from None

    def input_of(self, images: np.ndarray) -> np.ndarray:
        """Pictures as it takes them.

        Args:
            images: uint8 [B, S, S, 3].
        """
        return as_input(images, self.input_type, self.layout)


def open_model(path: Path) -> Bundle | ExportedModel:
    """Read an exported model where the path is a file that ends like one, else a bundle.

    Raises:
        ModelError: there is none, or what it says cannot be.
    """
    path = Path(path)
    if path.suffix.lower() == ".pt2" and path.is_file():
        raise ModelError(f"{readable(path)}: a torch.export file does not run here; expected a bundle, .onnx or .xml")
    return load_exported(path) if path.suffix.lower() in SUFFIXES and not path.is_dir() else load_bundle(path)


def describe(bundle: Bundle, precision: str, input_type: str, layout: str, made: dict) -> str:
    """Return the description that an export of a bundle carries."""
    values = {
        "format_version": FORMAT_VERSION,
        "model": bundle.model,
        "model_hash": bundle.hash,
        "classes": list(bundle.classes.folders),
        "labels": list(bundle.classes.labels),
        "preprocessing": bundle.preprocessing.to_dict(),
        "input": {"type": input_type, "layout": layout},
        "precision": precision,
        "metrics": bundle.metrics,
        "made": made,
    }
    return json.dumps(values, default=str)


def load_exported(path: Path) -> ExportedModel:
    """Read what an exported file says of itself, and hold it against its input and output.

    Raises:
        ModelError: no such file, not one of ours, or what it says cannot be; the reason is given.
        UsageError: nothing is installed that reads it.
    """
    where = readable(path)
    missing = [readable(file) for file in files_of(path) if not file.is_file()]
    if missing:
        raise ModelError(f"no such exported model: {missing[0]} is not there")
    kind = SUFFIXES[path.suffix.lower()]
    read = {"openvino": _read_openvino, "onnxruntime": _read_onnx}[reader(kind)]
    text, input_type, input_shape, num_outputs = read(path)
    if text is None:
        raise ModelError(f"{where}: has no description of classes and preprocessing; expected a file of jobs/export.py")
    try:
        values = parse_json(text)
        version, model, input_ = values["format_version"], values["model"], values["input"]
        if version != FORMAT_VERSION:
            raise ModelError(f"{where}: format version {version!r}, this flowers reads {FORMAT_VERSION}: export again")
        for name, value, known in (
            ("input type", input_["type"], INPUT_TYPES),
            ("layout", input_["layout"], LAYOUTS),
            ("precision", values["precision"], PRECISIONS),
        ):
            if value not in known:
                raise ModelError(f"{where}: {name} is {value!r}, expected {' or '.join(known)}")
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        check_made(values["metrics"], values["made"], where)
        classes = read_classes(values["classes"], values["labels"], num_outputs, where)
        found = ExportedModel(
            path, kind, str(model), values["precision"], input_["type"], input_["layout"], classes, preprocessing,
            values["metrics"], values["made"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{where}: its description is broken ({type(error).__name__}: {reason})") from None
    wanted = found.input_of(np.zeros((1, preprocessing.crop, preprocessing.crop, 3), np.uint8))
    if (input_type, input_shape) != (found.input_type, wanted.shape[1:]):
        raise ModelError(
            f"{where}: its input is {input_type} {list(input_shape)}, expected {found.input_type} "
            f"{list(wanted.shape[1:])} by what it says of itself"
        )
    found.is_verified  # noqa: B018 -- costs nothing more: every job tells models apart by the same digests
    return found


def reader(kind: str, engine: str = "auto", precision: str = "float32") -> str:
    """Return the runtime for an exported file: "onnxruntime" for ONNX where it is installed, else "openvino".

    Raises:
        UsageError: the engine asked for does not run such files, or nothing that does is installed.
    """
    known = ENGINES if kind == "onnx" else ("openvino",)
    if kind == "onnx" and precision == "int8":  # OpenVINO computes something else of it: 77% of 818 classes stayed
        known = ("onnxruntime",)
        kind = "int8 onnx"
    if engine not in ("auto", *known):
        expected = " or ".join(("auto", *known))
        raise UsageError(f"--engine {engine} does not run an exported {kind} file; expected {expected}")
    wanted = known if engine == "auto" else (engine,)
    for name in wanted:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UsageError(f"an exported {kind} file needs {' or '.join(wanted)}: pip install {wanted[0]}")


def files_of(path: Path) -> list[Path]:
    """Return the files of an exported model, the one that names it last.

    An ONNX file that others have converted may keep its tensors in files beside it.
    """
    if path.suffix.lower() == ".xml":
        return [path.with_suffix(".bin"), path]
    beside = _named_in(path) if path.is_file() else []
    return [*sorted(file for file in beside if file.is_file()), path]


def _named_in(path: Path) -> set[Path]:
    """The files below its folder that an ONNX file says it keeps tensors in."""
    names = set()
    with open(path, "rb") as file, contextlib.suppress(ValueError):  # an empty file
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for match in _LOCATION.finditer(content):
            low, high = match[1][0] & 127, match[1][1] if len(match[1]) > 1 else 0
            names.add(os.fsdecode(content[match.end() : match.end() + low + 128 * high]))
    names = {os.path.normpath(name) for name in names if "\0" not in name and not os.path.isabs(name)}
    return {path.parent / name for name in names if name.split("/")[0] != ".."}


def as_input(images: np.ndarray, input_type: str, layout: str) -> np.ndarray:
    """Pictures uint8 [B, S, S, 3] as a network of this input takes them."""
    if layout == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images.astype(input_type, copy=False)


def _read_onnx(path: Path) -> tuple[str | None, str, tuple, int | None]:
    from flowers.engines.onnx_engine import open_session

    session = open_session(path, optimize=False)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _check_ports(path, len(inputs), len(outputs))
    types = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    last = outputs[0].shape[-1] if outputs[0].shape else None
    return text, types.get(inputs[0].type, inputs[0].type), tuple(inputs[0].shape[1:]), last


def _read_openvino(path: Path) -> tuple[str | None, str, tuple, int | None]:
    from flowers.engines.openvino_engine import read_model

    model = read_model(path)
    _check_ports(path, len(model.inputs), len(model.outputs))
    types = {"u8": "uint8", "f32": "float32"}
    input_type = model.inputs[0].element_type.get_type_name()
    keys = ["framework", KEY] if path.suffix.lower() == ".onnx" else [KEY]  # where its reader puts ONNX's metadata
    text = str(model.get_rt_info(keys).value) if model.has_rt_info(keys) else None
    sides, outputs = _sides(model.inputs[0].partial_shape), _sides(model.outputs[0].partial_shape)
    return text, types.get(input_type, input_type), sides[1:], outputs[-1] if outputs else None


def _sides(shape) -> tuple[int | None, ...]:
    """A shape of OpenVINO's; None for sides of any length, no sides where their number is open."""
    if shape.rank.is_dynamic:
        return ()
    return tuple(side.get_length() if side.is_static else None for side in shape)


def _check_ports(path: Path, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (1, 1):
        raise ModelError(f"{readable(path)}: has {inputs} inputs and {outputs} outputs, expected one of each")
