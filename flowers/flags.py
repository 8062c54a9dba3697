"""The flags of a config class: one for each field, their values read from words.

A config is a frozen dataclass; a field's type says what its flag takes, ``Annotated[..., Flag("-b")]`` adds other names
for it, and ``GROUPS``, a class variable of first field to title, cuts the flags into the groups of ``--help``.
"""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from flowers import console, usage
from flowers.errors import UsageError

_WORDS = {int: "a whole number", float: "a number", Path: "a path", str: "a word"}
_SWITCHED = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLACEHOLDERS = {int: "INT", float: "NUMBER", Path: "PATH", str: "TEXT"}


def spelled(name: str) -> str:
    """A field as its flag: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


class Flag:
    """Facts about a flag beyond its field's type; stands in ``Annotated``.

    Args:
        names: other names, such as "-b".
        takes: what one value is, in the words of a message ("folder or list"); by default from the type.
        positional: the value stands alone, without the flag's name.
        bare: a flag of several values may stand without any.
    """

    def __init__(self, *names: str, takes: str | None = None, positional: bool = False, bare: bool = False):
        self.names, self.takes, self.positional, self.bare = names, takes, positional, bare


class Option(NamedTuple):
    """One flag.

    Attributes:
        name: the field.
        kinds: types that a value may have, each ``int``, ``float``, ``str``, ``Path``, ``bool`` or a ``Literal``.
        count: how many values: 1, another number, or None for any.
        optional: None is a value.
        default: of the field; ``dataclasses.MISSING`` where one has to be given.
        flag: other names.
    """

    name: str
    kinds: tuple
    count: int | None
    optional: bool
    default: object
    flag: Flag

    @property
    def spelled(self) -> str:
        """The flag as it is typed; the placeholder of a positional one."""
        return self.name.upper() if self.flag.positional else spelled(self.name)

    @property
    def required(self) -> bool:
        """True if it has to be given."""
        return self.default is dataclasses.MISSING

    @property
    def is_number(self) -> bool:
        """True if it takes one number, or perhaps a word in its place."""
        return self.count == 1 and bool({int, float} & set(self.kinds))

    @property
    def is_switch(self) -> bool:
        """True if it needs no value: on as --x, off as --no-x."""
        return self.kinds[0] is bool

    @property
    def words(self) -> tuple[str, ...]:
        """The words that a value may be; of a switch, what may stand behind it."""
        return tuple(word for kind in self.kinds for word in typing.get_args(kind))

    @property
    def names(self) -> list[str]:
        """All spellings: short ones, the flag, other long ones; --no-x of a switch comes last."""
        short = [name for name in self.flag.names if not name.startswith("--")]
        long = [name for name in self.flag.names if name.startswith("--")]
        off = [self.spelled.replace("--", "--no-", 1)] if self.is_switch else []
        return [*short, self.spelled, *long, *off]

    @property
    def expected(self) -> str:
        """The values it takes, for a message."""
        if self.count != 1 and not self.flag.takes:
            number = "one or more" if self.count is None else str(self.count)
            noun = {int: "whole numbers", float: "numbers"}.get(self.kinds[0], "values")
            return f"{number} {noun}"
        if self.flag.takes:
            return self.flag.takes
        if self.is_switch:
            return usage.either(["true", "false", *self.words])
        words = [word for kind in self.kinds for word in (typing.get_args(kind) or (_WORDS[kind],))]
        return usage.either(words)

    @property
    def placeholder(self) -> str:
        """The values it takes, for the help; empty for a plain switch."""
        if self.is_switch:
            return f"[{'|'.join(self.words)}]" if self.words else ""
        one = "|".join("|".join(typing.get_args(kind)) or _PLACEHOLDERS[kind] for kind in self.kinds)
        if self.count is None:
            return f"[{one} ...]" if self.flag.bare else f"{one} ..."
        return " ".join([one] * self.count)

    def read(self, value: object, where: str) -> object:
        """A field's value from the words of a command line or of a YAML file.

        Args:
            value: a word, a list of words, or True or False of a switch; None, too, from a file.
            where: where it stands, to begin a message with.

        Raises:
            UsageError: it is none.
        """
        if value is None and self.optional:
            return None
        if self.is_switch:
            value = _SWITCHED.get(str(value).lower(), value)
            if not (isinstance(value, bool) or value in self.words):
                raise UsageError(f"{where}: got {value!r}, expected {self.expected}")
            return value
        if self.count == 1:
            return self._read_one(value, where)
        values = list(value) if isinstance(value, list | tuple) else [value]
        if values == ["None"] and self.optional:
            return None
        if self.count not in (None, len(values)):
            raise UsageError(f"{where}: got {' '.join(map(str, values)) or 'no value'}, expected {self.expected}")
        one = self._replace(optional=False)  # None stands for all of them
        return tuple(one._read_one(item, where) for item in values)

    def _read_one(self, value: object, where: str) -> object:
        word = str(value)
        if word == "None" and self.optional:
            return None
        if value is not None and not isinstance(value, list | tuple | dict):
            if word in self.words:
                return word
            for kind in self.kinds:
                if kind in _WORDS and (word or kind is not Path):  # an unset variable is not the current folder
                    try:
                        return kind(word)
                    except ValueError:
                        continue
        one = self._replace(count=1)
        raise UsageError(f"{where}: got {value!r}, expected {one.expected}")


def options(config_type: type) -> list[Option]:
    """The flags of a config class, in the order of its fields."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    return [_option(field, hints[field.name]) for field in dataclasses.fields(config_type)]


def _option(field: dataclasses.Field, hint: object) -> Option:
    flag = Flag()
    if typing.get_origin(hint) is typing.Annotated:
        hint, flag = typing.get_args(hint)
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    optional = type(None) in kinds
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    count: int | None = 1
    if typing.get_origin(kinds[0]) is tuple:
        items = typing.get_args(kinds[0])
        kinds, count = (items[0],), None if items[-1] is Ellipsis else len(items)
    assert all(kind in (*_WORDS, bool) or typing.get_origin(kind) is Literal for kind in kinds), field
    return Option(field.name, kinds, count, optional, field.default, flag)


def given(known: Sequence[Option], argv: Sequence[str]) -> dict[str, object]:
    """The words of a command line, by the field that they are for.

    Returns:
        a word, or a list of words where several may stand, or True or False; only of the flags that are there.

    Raises:
        UsageError: a flag that there is not, one given twice, one without its value, a word too many.
    """
    argv = _with_hyphens(argv)
    names = {name: option for option in known for name in option.names if not option.flag.positional}
    if wrong := _unknown(argv, names):
        raise UsageError("; ".join(usage.unknown_flag(word, names) for word in wrong))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in known:
        settings: dict = {"dest": option.name, "default": argparse.SUPPRESS, "action": _Once}
        settings |= {"action": _LastNumber} if option.is_number else {}
        settings |= {"action": "extend"} if option.count is None else {}
        if option.flag.positional:
            parser.add_argument(option.name, nargs="*" if option.count is None else "?", default=argparse.SUPPRESS)
        elif option.is_switch:
            parser.add_argument(*option.names, nargs="?" if option.words else 0, **settings)
        else:
            several = "+" if option.count is None and not option.flag.bare else "*"
            parser.add_argument(*option.names, nargs=None if option.count == 1 else several, **settings)
    try:
        found, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(_wrong_count(names[error.argument_name.split("/")[0]], error.message)) from None
    values = vars(found)
    several = [option.name for option in known if option.flag.positional and option.count is None]
    if several and not any(word.startswith("-") for word in rest):  # argparse takes one stretch of them
        values[several[0]] = [*values.get(several[0], []), *rest]
        rest = []
    if rest:
        raise UsageError(_too_many(argv, rest, names))
    return {name: value for name, value in values.items() if name not in several or value}


def _wrong_count(option: Option, message: str) -> str:
    """The message for a flag that argparse refuses."""
    if option.is_switch and message.startswith("ignored"):
        return f"{option.spelled} takes no value; on is {option.spelled}, off is {option.names[-1]}"
    if message.startswith("expected"):
        hint = f"a value that starts with - is written {option.spelled}=-..."
        return f"{option.spelled}: got no value, expected {option.expected}; {hint}"
    return message


class _Once(argparse.Action):
    """Stores what a flag takes, and refuses the flag a second time: which of two values is meant is not known."""

    def __call__(self, _parser, namespace, values, option_string=None):
        if hasattr(namespace, self.dest):
            raise argparse.ArgumentError(self, f"{spelled(self.dest)} is given twice; give it once")
        is_off = option_string.startswith("--no-")
        if self.nargs == "?" and values is not None and is_off:
            raise argparse.ArgumentError(self, f"{option_string} takes no value, got {values!r}")
        is_switched = self.nargs == 0 or (self.nargs == "?" and values is None)
        setattr(namespace, self.dest, not is_off if is_switched else values)


class _LastNumber(argparse.Action):
    """Stores a number. Of two the last one counts, as scripts expect that add to a common command; a line says so."""

    def __call__(self, _parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest, values)
        if before != values:
            console.warn(f"{spelled(self.dest)} is given twice ({before}, then {values}): {values} counts")
        setattr(namespace, self.dest, values)


def _with_hyphens(argv: Sequence[str]) -> list[str]:
    """--data_dir is --data-dir; values stay as they are."""

    def hyphened(word: str) -> str:
        name, equals, value = word.partition("=")
        return (name.replace("_", "-") if name.startswith("--") else name) + equals + value

    end = argv.index("--") if "--" in argv else len(argv)
    return [*map(hyphened, argv[:end]), *argv[end:]]


def _unknown(argv: Sequence[str], names: dict[str, Option]) -> list[str]:
    """Words that look like flags, -lr too, and are none."""
    flags = [word.partition("=")[0] for word in argv if re.match(r"--[A-Za-z]|-[A-Za-z]{2}", word) and " " not in word]
    return [flag for flag in dict.fromkeys(flags) if flag not in names]


def _too_many(argv: Sequence[str], rest: Sequence[str], names: dict[str, Option]) -> str:
    """The message about words that no flag takes."""
    index = max(at for at in range(len(argv)) if list(argv[at : at + 1]) == list(rest[:1]))
    before = [at for at in range(index) if argv[at].partition("=")[0] in names]
    option = names[argv[before[-1]].partition("=")[0]] if before else None
    if option is None or option.count != 1:
        return f"got {rest[0]!r}, which belongs to no flag"
    if option.is_switch:
        return f"{option.spelled} takes no value, got {rest[0]!r}; on is {option.spelled}, off is {option.names[-1]}"
    words = [word for word in argv[before[-1] + 1 : index + len(rest)] if not word.startswith("-")]
    shown = ", ".join(map(repr, words[:3])) + (", ..." if len(words) > 3 else "")
    return f"{option.spelled}: got {len(words)} values ({shown}), expected one: {option.expected}"
