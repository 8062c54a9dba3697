"""Configs made in Python: paths may be given as strings."""

import os
import typing
from pathlib import Path


def accept_strings(config: object) -> None:
    """Turn strings into paths, in place, in the fields of a frozen dataclass; several paths may be given as one."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value, hints = getattr(config, name), (hint, *typing.get_args(hint))
        if value is not None and tuple[Path, ...] in hints:
            given = (value,) if isinstance(value, str | os.PathLike) else value
            object.__setattr__(config, name, tuple(map(Path, given)))
        elif isinstance(value, str) and Path in hints:
            object.__setattr__(config, name, Path(value))
