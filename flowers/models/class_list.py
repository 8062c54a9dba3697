"""The classes of an imported model, in the order of its outputs.

They are a text file with one a line (a tab and a display name may follow), or JSON: a list of names, ``{"name":
index}``, ``{"0": "name", ...}`` (id2label), a config.json with such values as ``id2label`` or ``label_names``, or
``{"folder": "display name"}`` sorted by folder, as torchvision's ImageFolder does.
"""

import os
from pathlib import Path

from flowers.data.classes import ClassIndex
from flowers.data.paths import readable, some
from flowers.errors import DataError
from flowers.parsing import parse_json


def read_class_list(path: Path) -> ClassIndex:
    """Read the meaning of a network's outputs; see the head of this module.

    Raises:
        DataError: the file cannot be read, or is no list of different names.
    """
    where = readable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = parse_json(text) if path.suffix.lower() == ".json" else None
    except OSError as error:
        raise DataError(f"--classes {where}: cannot be read: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise DataError(f"--classes {where}: {' '.join(str(error).split())}") from None
    if values is None:
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        pairs = [(line[0].strip(), line[-1].strip() or line[0].strip()) for line in lines]
    else:
        pairs = _pairs(values, where)
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not pairs or twice:
        raise DataError(f"--classes {where}: " + (f"{some(twice)} stands there twice" if twice else "names no class"))
    for name in names:
        if not name or name in (".", "..") or any(character in name for character in {"/", "\0", os.sep}):
            raise DataError(f"--classes {where}: class {name!r} cannot be the name of a folder")
    return ClassIndex(tuple(names), tuple(label for _, label in pairs))


def _pairs(values: object, where: str) -> list[tuple[str, str]]:
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
