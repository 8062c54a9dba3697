"""JSON and YAML that somebody else may have written: plain values, or a ValueError that says in one line why not.

Beyond what the two formats allow, values must be such that the rest of the program can use them: numbers are finite,
text is such as file names and UTF-8 can hold, and nothing is nested deeper than anybody means it.
"""

import json
import math
import re
from pathlib import Path
from typing import ClassVar, NoReturn

import yaml

from flowers.retries import retries

MOST_DEPTH = 100
_ALIASED = 10_000
"""Values of a YAML file, beside one a character: few letters may stand for billions of values by its aliases."""
_HALF_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates but for those that stand for a byte of a file name that is not UTF-8."""


def parse_json(text: str | bytes, *, unique: bool = False) -> object:
    """The value of a JSON text.

    Args:
        unique: a mapping must have each key once; otherwise the last of several counts, which is faster.

    Raises:
        ValueError: it is none, or holds a number that is not finite, half a character, or depths.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        pairs_hook = _unique if unique else None
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise _too_deep() from None
    _check(value, len(text), "\\u" in text)
    return value


def read_json(path: Path) -> object:
    """The value in a JSON file, in which a mapping has each key once; a disk's hiccup is waited for.

    Raises:
        ValueError: as ``parse_json``.
        OSError: the file cannot be read; it names the file.
    """
    return parse_json(retries.read(Path(path).read_bytes, path), unique=True)


def read_mapping(path: Path) -> dict[str, object]:
    """The mapping in a JSON file that an earlier start may have left; empty if it is gone, damaged or another value.

    Raises:
        OSError: the disk does not say what is in it.
    """
    try:
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:40]!r} stands there twice")
    return found


class _Yaml(yaml.SafeLoader):
    """YAML in which a mapping has each key once; PyYAML takes the last of several without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


class _YamlOfWords(_Yaml):
    """Values as they are written: to YAML 1.1, 1:30 is 90, the folder 2024_01_02 a number and no is false."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path, *, as_words: bool = False) -> object:
    """The value in a YAML file; None if it is empty.

    Args:
        as_words: numbers, dates, true and false stay the text that they are written as.

    Raises:
        ValueError: it is not YAML, has a key twice, or as ``parse_json``.
        OSError: the file cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        value = yaml.load(text, _YamlOfWords if as_words else _Yaml)
    except RecursionError:
        raise _too_deep() from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    _check(value, len(text) + _ALIASED, True)
    return value


def _check(value: object, most_values: int, has_escapes: bool) -> None:
    """Go through all values; those of a list or mapping that has several names are counted under each."""
    waiting = [(value, 1)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise _too_deep()
        items = [*value, *value.values()] if isinstance(value, dict) else value
        seen += len(items) if isinstance(items, list | tuple | set) else 0
        if seen > most_values:
            raise ValueError("its aliases stand for too many values")
        for item in items if isinstance(items, list | tuple | set) else (items,):
            if isinstance(item, dict | list | tuple | set):
                waiting.append((item, depth + 1))
            elif isinstance(item, float) and not math.isfinite(item):
                _not_finite(str(item))
            elif has_escapes and isinstance(item, str) and (half := _HALF_CHARACTER.search(item)):
                raise ValueError(f"{item[:40]!r} holds half a character (\\u{ord(half[0]):04x})")


def _too_deep() -> ValueError:
    return ValueError(f"nested deeper than {MOST_DEPTH} levels")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not a finite number")
