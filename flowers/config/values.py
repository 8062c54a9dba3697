"""Configs made in Python: their values are read as those of flags are."""

import os
from collections.abc import Iterable, Mapping

from flowers import flags


def read_values(config: object) -> None:
    """Read the values of a frozen dataclass, in place, as their flags would: "3" is 3, a string may be a path.

    One value may stand where several may, and any collection for several.

    Raises:
        UsageError: a value that the flag does not take, such as a word that is none of its words.
    """
    for option in flags.options(type(config)):
        value = getattr(config, option.name)
        if isinstance(value, Iterable) and not isinstance(value, str | os.PathLike | Mapping):
            value = list(value)
        object.__setattr__(config, option.name, option.read(value, option.spelled))
