"""Configs made in Python: paths may be given as strings."""

import typing
from pathlib import Path


def accept_strings(config: object) -> None:
    """Turn strings into paths, in place, in the fields of a frozen dataclass that hold paths."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
            object.__setattr__(config, name, Path(value))
