"""Rules about values that the configs share: how those from Python are read, what is too small, what has no effect."""

import os
from collections.abc import Collection, Iterable, Mapping

from flowers import flags
from flowers.errors import UsageError
from flowers.flags import spelled
from flowers.machine import MAX_BATCH_SIZE, most_processes


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


def check_least(config: object, bounds: Mapping[str, int]) -> None:
    """Refuse numbers below a bound; of several, each has to reach it. None is no number.

    Args:
        bounds: the smallest value by field.

    Raises:
        UsageError: the flag, what it got, what is expected.
    """
    for name, least in bounds.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not number >= least:
                raise UsageError(f"{spelled(name)}: got {number}, expected at least {least}")


def check_sizes(batch_size: int, loader_processes: int | None = None) -> None:
    """Refuse a batch or a number of loader processes that no machine, or not this one, can hold.

    Such sizes are a slip of the finger, and would fill its memory or stop it.

    Args:
        loader_processes: what ``--workers`` says where it starts processes; None where it is left to the job.

    Raises:
        UsageError: the flag, what it got, what is expected.
    """
    if batch_size > MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size: got {batch_size}, expected at most {MAX_BATCH_SIZE}")
    if loader_processes is not None and loader_processes > (most := most_processes()):
        raise UsageError(f"--workers: got {loader_processes}, expected at most {most} on this machine, by its CPUs")


def given(config: object, names: Iterable[str], harmless: Mapping[str, Collection] | None = None) -> str:
    """Those of these flags that ask for something, "--a, --b", for a message where they have no effect.

    Args:
        names: fields that have a default.
        harmless: by field, values beside the default that ask for nothing either.

    Returns:
        Empty where all are at their defaults.
    """
    harmless = harmless or {}

    def asks(name: str) -> bool:
        value = getattr(config, name)
        return value != getattr(type(config), name) and value not in harmless.get(name, ())

    return ", ".join(spelled(name) for name in names if asks(name))
