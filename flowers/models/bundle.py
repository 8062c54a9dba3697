"""A trained model as a folder of ``model.safetensors`` and ``model.json``; nothing in it is unpickled.

``model.json`` of format version 1::

    {"format_version": 1, "model": "efficientnet_lite0",
     "head": {"num_classes": 102, "in_features": 1280, "hidden": null, "dropout": 0.0},
     "classes": ["1", "10", ...],               class folders in index order
     "labels": ["pink primrose", ...],          their display names
     "preprocessing": {...},                    see flowers.data.preprocessing.Preprocessing
     "metrics": {"valid_top1": 0.93, ...}, "made": {"date": ..., "versions": {...}, "hash": ..., ...}}

Version 2 has one more entry, "unfamiliar", see ``flowers.models.familiarity``; a model without it is written as version
1, which earlier versions of this code read.

``made.hash`` is ``Bundle.hash`` when it was written; a model that no longer has it is refused as damaged. Models of
earlier versions have none; they load.
"""

import functools
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import flowers
from flowers.data.classes import ClassIndex, is_folder_name
from flowers.data.paths import readable, some
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ModelError, OutputError, system_reason
from flowers.files import allow_as_usual, old_name, replace_folder
from flowers.models.backbones import build_backbone, check_name, skip_random_init
from flowers.models.familiarity import Familiarity
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.models.weights import WEIGHTS_FILE, add_tensors, fit_weights, strip_wrappers
from flowers.parsing import parse_json
from flowers.retries import retries

FORMAT_VERSION = 2
DESCRIPTION_FILE = "model.json"
MOST_TEMPERATURE = 1e6
_LONG = 800  # characters
_FIELDS = {"format_version", "model", "head", "classes", "labels", "preprocessing", "metrics", "made"}
_UNFAMILIAR = "unfamiliar"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model, whole: what to build, what to fill it with, how to look at a picture, what it knows.

    Attributes:
        metrics: figures by name, as plain values.
        made: how, when and with what it was made, as plain values; see ``flowers.made``.
        state_dict: tensors on the CPU, named ``backbone.*`` and ``head.*``.
        folder: where it was loaded from.
        familiarity: tells photos of none of the classes; None in a model that cannot.
    """

    model: str
    head: HeadSpec
    classes: ClassIndex
    preprocessing: Preprocessing
    metrics: dict
    made: dict
    state_dict: Mapping[str, Tensor]
    folder: Path | None = None
    familiarity: Familiarity | None = None

    def build(self) -> Classifier:
        """Build the network with its weights: float32, on the CPU, in evaluation mode. Nothing is downloaded.

        Raises:
            ModelError: the tensors are not those of the model and head that it names.
        """
        with skip_random_init():
            backbone = build_backbone(self.model, "none", self.preprocessing.crop)
            if backbone.num_features != self.head.in_features:
                raise ModelError(
                    f"bundle: the head takes {self.head.in_features} features, {self.model} gives "
                    f"{backbone.num_features}"
                )
            classifier = Classifier(backbone.network, build_head(self.head))
        fit_weights(classifier, self.state_dict, f"bundle of {self.model}")
        return classifier.eval()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that decides what it answers: tensors, classes, labels, preprocessing, familiarity.

        Metrics and the way it was made do not count.
        """
        return _hash(self)


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle as that folder; it takes the name only when whole, and an earlier one stays until then.

    Raises:
        FlowersError: the disk is full or the place cannot be written.
        ModelError: classes, head and tensors do not belong together.
    """
    with replace_folder(folder) as temporary:
        write_bundle(bundle, temporary)


def refuse_other_files(
    output: Path, own: Collection[str] = (DESCRIPTION_FILE, WEIGHTS_FILE), whose: str = "a bundle's"
) -> None:
    """Refuse a folder that a job would replace although it holds more than that job writes, which would be lost.

    Args:
        own: names of what the job writes there.
        whose: they are, for the message.

    Raises:
        OutputError: it does.
    """
    others = sorted(set(os.listdir(output)).difference(own)) if output.is_dir() else []
    if others:
        held = some([readable(name) for name in others])
        raise OutputError(f"--output {readable(output)}: holds other files than {whose} ({held}); give a new folder")


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's two files into a folder that is there, a checkpoint's say; the caller makes it last.

    Raises:
        ModelError: classes, head and tensors do not belong together.
    """
    description = _describe(bundle)
    description["made"] = {**bundle.made, "hash": _hash(bundle)}
    _read_description(description, "bundle to save")  # what could not be loaded is not written
    tensors = {name: value.detach().cpu().contiguous() for name, value in strip_wrappers(bundle.state_dict).items()}
    _check_head(bundle.head, {name: list(value.shape) for name, value in tensors.items()}, "bundle to save")
    seen: set[int] = set()
    for name, value in tensors.items():
        if value.data_ptr() in seen:  # two names of one tensor: safetensors wants two
            tensors[name] = value.clone()
        seen.add(value.data_ptr())
    try:  # ASCII: odd bytes in names stay escaped
        text = json.dumps(description, indent=1, allow_nan=False, default=str)
    except ValueError as error:
        raise ModelError(f"bundle to save: metrics or how it was made hold what JSON cannot: {error}") from None
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    allow_as_usual(folder / WEIGHTS_FILE)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="ascii")


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, a checkpoint, or a run folder's best bundle (its last one where there is no best).

    Everything is checked before it is believed, and nothing in it is run. The tensors of the backbone are held
    against the network when that is built.

    Raises:
        ModelError: there is none, it is of a newer format, or what it says cannot be; the reason is given.
    """
    while True:
        folder = _find_folder(Path(path))
        before = _read_file(folder / DESCRIPTION_FILE)
        try:
            description = parse_json(before)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"bundle {folder}: {DESCRIPTION_FILE} is not JSON ({reason})") from None
        try:
            model, head, classes, preprocessing, familiarity = _read_description(description, f"bundle {folder}")
        except ModelError as error:
            raise ModelError(_shortened(str(error))) from None
        state_dict = _read_tensors(folder, head)
        if _read_file(folder / DESCRIPTION_FILE) == before:  # else a training run has just put a better one there
            made = dict(description["made"])
            written = made.pop("hash", None)
            figures = description["metrics"], made
            bundle = Bundle(model, head, classes, preprocessing, *figures, state_dict, folder, familiarity)
            if written not in (None, bundle.hash):
                raise ModelError(
                    f"bundle {folder}: damaged, its hash is not the one that {DESCRIPTION_FILE} says it was written "
                    f'with; copy it again (or, if you edited {DESCRIPTION_FILE}, remove "hash" from its "made")'
                )
            return bundle


def _describe(bundle: Bundle) -> dict:
    """The content of model.json."""
    familiarity = bundle.familiarity
    return {
        "format_version": 1 if familiarity is None else FORMAT_VERSION,
        "model": bundle.model,
        "head": bundle.head.to_dict(),
        "classes": list(bundle.classes.folders),
        "labels": list(bundle.classes.labels),
        "preprocessing": bundle.preprocessing.to_dict(),
        "metrics": bundle.metrics,
        "made": bundle.made,
        **({} if familiarity is None else {_UNFAMILIAR: familiarity.to_dict()}),
    }


def _hash(bundle: Bundle) -> str:
    """``Bundle.hash`` of the tensors as they are now: they may have been changed since it was last asked for."""
    meaning = _describe(bundle)
    meaning = {name: meaning[name] for name in sorted(meaning.keys() - {"metrics", "made"})}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    add_tensors(digest, strip_wrappers(bundle.state_dict))
    return digest.hexdigest()


def _read_description(
    values: object, where: str
) -> tuple[str, HeadSpec, ClassIndex, Preprocessing, Familiarity | None]:
    """Check what model.json says, value by value.

    Raises:
        ModelError: something in it cannot be.
    """
    if not isinstance(values, dict):
        raise ModelError(f"{where}: {DESCRIPTION_FILE} holds a {type(values).__name__}, expected a mapping")
    version = values.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelError(f"{where}: format_version is {version!r}, expected a number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{where}: format version {version}, this is flowers {flowers.__version__}, which reads up to "
            f"{FORMAT_VERSION}: install the newer flowers that wrote it"
        )
    fields = _FIELDS if version == 1 else _FIELDS | {_UNFAMILIAR}
    if set(values) != fields:
        missing, unknown = sorted(fields - set(values)), sorted(map(repr, set(values) - fields))
        raise ModelError(
            f"{where}: {DESCRIPTION_FILE} lacks {missing or 'nothing'} and has unknown {unknown or 'none'}"
        )
    try:
        check_name(values["model"])
        head = HeadSpec.from_dict(values["head"])
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        familiarity = Familiarity.from_dict(values[_UNFAMILIAR], head.in_features) if version > 1 else None
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    check_made(values["metrics"], values["made"], where)
    classes = read_classes(values["classes"], values["labels"], head.num_classes, where)
    return values["model"], head, classes, preprocessing, familiarity


def check_made(metrics: object, made: object, where: str) -> None:
    """Check the figures of a description, and how the model was made.

    Raises:
        ModelError: they are no mappings, or what the jobs use of them is not of its kind.
    """
    for name, value in (("metrics", metrics), ("made", made)):
        if not isinstance(value, dict):
            raise ModelError(f"{where}: {name} is a {type(value).__name__}, expected a mapping")
    for name in ("config", "versions"):
        if not isinstance(made.get(name, {}), dict):
            raise ModelError(f"{where}: {name} in made is {made[name]!r}, expected a mapping")
    for name, most in (("temperature", MOST_TEMPERATURE), ("min_prob", 1)):
        value = made.get(name, most)
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise ModelError(f"{where}: {name} in made is {value!r}, expected a number from 0 to {most:g}")


def read_classes(folders: object, labels: object, num_classes: int, where: str) -> ClassIndex:
    """Check the classes of a description.

    Raises:
        ModelError: they are no lists of so many names, or not such as folders may have.
    """
    for name, value in (("classes", folders), ("labels", labels)):
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise ModelError(f"{where}: {name} must be a list of names that are not empty")
        if len(value) != num_classes:
            raise ModelError(f"{where}: {len(value)} {name} for a head of {num_classes}")
    seen: set[str] = set()
    for folder in folders:
        if not is_folder_name(folder):
            raise ModelError(f"{where}: class {folder!r} is a path, expected the name of one folder")
        if folder in seen:
            raise ModelError(f"{where}: class {folder!r} stands there twice")
        seen.add(folder)
    return ClassIndex(tuple(folders), tuple(labels))


def _check_head(head: HeadSpec, shapes: Mapping[str, list[int]], where: str) -> None:
    """Hold the head's tensors against its description before anything of that size is made."""
    with torch.device("meta"):
        expected = {f"head.{name}": list(value.shape) for name, value in build_head(head).state_dict().items()}
    found = {name: list(shape) for name, shape in shapes.items() if name.startswith("head.")}
    if found != expected:
        raise ModelError(f"{where}: the head's tensors are {found}, expected {expected} by its description")


def _shortened(text: str) -> str:
    """A message that quotes a value of megabytes is still one to read: how it begins, and what was expected."""
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]} ... {text[-_LONG // 4 :]}"


def _find_folder(path: Path) -> Path:
    """Return the folder with model.json: the path itself, or best/ or last/ in it."""
    if path.name in (DESCRIPTION_FILE, WEIGHTS_FILE) and path.is_file():
        return path.parent
    for folder in (path, path / "best", path / "last"):
        for candidate in (folder, old_name(folder)):  # the latter after a save that was killed between two renames
            if (candidate / DESCRIPTION_FILE).exists():
                return candidate
    if not path.exists():
        raise ModelError(f"no such bundle, checkpoint or run folder: {path}")
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors"):
        raise ModelError(
            f"{path} is a weights file without head and classes that this project knows: make a model of it with "
            "export.py --from-state-dict, or start a training from it with train.py --weights"
        )
    if path.is_file():
        raise ModelError(
            f"{path} is a file, expected the folder of a model, checkpoint or run; exported files (.onnx, .xml) are "
            "for predict, demo and info"
        )
    raise ModelError(
        f"no model in {path}: expected {DESCRIPTION_FILE} and {WEIGHTS_FILE} in it, or in best/ or last/ below it"
    )


def _read_file(path: Path) -> bytes:
    try:
        return retries.read(path.read_bytes, path)
    except OSError as error:
        raise ModelError(f"bundle {path.parent}: {path.name} cannot be read: {system_reason(error)}") from None


def _read_tensors(folder: Path, head: HeadSpec) -> dict[str, Tensor]:
    where = f"bundle {folder}"
    try:
        # safetensors calls every file that it cannot open missing
        retries.read(lambda: open(folder / WEIGHTS_FILE, "rb").close())
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            names = list(file.keys())
            _check_head(head, {name: file.get_slice(name).get_shape() for name in names}, where)
            return strip_wrappers({name: file.get_tensor(name) for name in names})
    except FileNotFoundError:
        raise ModelError(f"{where}: {WEIGHTS_FILE} is missing: copy the whole folder") from None
    except (OSError, SafetensorError, RuntimeError) as error:  # the last: torch, of a file that it cannot map
        raise ModelError(f"{where}: {WEIGHTS_FILE} cannot be read: {' '.join(str(error).split())}") from None
