"""The flags of a config class: one for each field, their values read from words.

A config is a frozen dataclass; a field's type says what its flag takes, ``Annotated[..., Flag("-b")]`` adds other names
for it, and ``GROUPS``, a class variable of first field to title, cuts the flags into the groups of ``--help``.
"""

import collections
import dataclasses
import itertools
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


CONFIG = Option("config", (Path,), 1, True, None, Flag())
"""The flag of every job that names a YAML file with defaults for the others."""
LOG = Option("log", (str,), 1, True, None, Flag())
"""The flag of every job for its screen, which ``flowers.cli.choose_log`` takes away before the others are read."""


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
    names = {name: option for option in known for name in option.names if not option.flag.positional}
    positional = [option for option in known if option.flag.positional]
    words = collections.deque(argv)
    found: dict[str, object] = {}
    loose: list[str] = []
    _refuse_unknown(argv, names)
    while words:
        word = words.popleft()
        if not _is_flag(word):
            loose.append(word)
            continue
        if word == "--":
            loose += words
            break
        name, equals, value = _split(word)
        if name not in names:  # -b8
            name, equals, value = word[:2], "=", word[2:]
        option = names[name]
        values = [value] if equals else []
        while words and not _is_flag(words[0]):
            values.append(words.popleft())
        most = len(values) if option.count != 1 else int(bool(option.words)) if option.is_switch else 1
        if len(values) > most and (not positional or (equals and most == 0)):
            raise UsageError(_too_many(option, values, values[most]))
        loose += values[most:]
        found[option.name] = _stored(option, name, values[:most], found)
    for option in positional:
        if loose:
            found[option.name], loose = (loose, []) if option.count is None else (loose[0], loose[1:])
    if loose:
        raise UsageError(f"got {loose[0]!r}, which belongs to no flag")
    return found


def before_a_command(known: Sequence[Option], argv: Sequence[str]) -> int:
    """How many words come before a command with flags of its own: those of flags here, each of at most one value."""
    names = {name: option for option in known for name in option.names}
    end = 0
    while end < len(argv) and _is_flag(argv[end]):
        name, equals, _ = _split(argv[end])
        has_value = name in names and not names[name].is_switch and not equals
        end += 2 if has_value else 1
    return end


def _stored(option: Option, name: str, values: list[str], found: dict[str, object]) -> object:
    """What a flag's words are stored as, beside what the same flag has stored before.

    Of two numbers the last one counts, as scripts expect that add to a common command; which of two other values is
    meant is not known.
    """
    is_off = option.is_switch and name.startswith("--no-")
    if is_off and values:
        raise UsageError(f"{name} takes no value, got {values[0]!r}")
    if not (values or option.is_switch or option.flag.bare):
        hint = f"a value that starts with - is written {option.spelled}=-..."
        raise UsageError(f"{option.spelled}: got no value, expected {option.expected}; {hint}")
    if option.count is None:
        return [*found.get(option.name, ()), *values]
    value = not is_off if not values else values[0] if option.count == 1 else values
    before = found.get(option.name, value)
    if option.name in found and not option.is_number:
        raise UsageError(f"{option.spelled} is given twice; give it once")
    if before != value:
        console.warn(f"{option.spelled} is given twice ({before}, then {value}): {value} counts")
    return value


def _split(word: str) -> tuple[str, str, str]:
    """A flag's name, = if there is one, and its value; --data_dir is --data-dir."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-"), equals, value


def _is_flag(word: str) -> bool:
    """Tell a flag, and the end of flags, from a value, which may be a negative number."""
    name, _, _ = _split(word)
    return re.match(r"--|-[A-Za-z]", name) is not None and " " not in name


def _refuse_unknown(argv: Sequence[str], names: dict[str, Option]) -> None:
    """Refuse words that look like flags, -lr too, and are none; all in one message."""
    flags = [_split(word)[0] for word in itertools.takewhile(lambda word: word != "--", argv) if _is_flag(word)]
    wrong = [
        flag for flag in dict.fromkeys(flags)
        if flag not in names and (flag[:2] not in names or flag[2].isalpha())  # -b8 is -b 8
    ]  # fmt: skip
    if wrong:
        raise UsageError("; ".join(usage.unknown_flag(flag, names) for flag in wrong))


def _too_many(option: Option, values: list[str], first: str) -> str:
    """The message about words that a flag does not take, from the first of them on."""
    if option.is_switch:
        return f"{option.spelled} takes no value, got {first!r}; on is {option.spelled}, off is {option.names[-1]}"
    shown = ", ".join(map(repr, values[:3])) + (", ..." if len(values) > 3 else "")
    return f"{option.spelled}: got {len(values)} values ({shown}), expected one: {option.expected}"
