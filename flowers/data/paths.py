"""File names: a list of millions of paths as one block of bytes, and names escaped for messages and for UTF-8."""

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence

_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2})")


class PathList(Sequence[str]):
    """Paths in a fixed order, as one block of bytes and where each ends: about 8 bytes a path beside its letters.

    A list of str takes some 60 bytes more each, and loader processes would copy every page of it, because
    reading a str writes its reference count.
    """

    def __init__(self, paths: Iterable[str] = ()):
        """Take paths as ``os.fsdecode`` gives them, undecodable bytes as surrogates."""
        letters, ends = bytearray(), array("Q")
        for path in paths:
            letters += os.fsencode(path)
            ends.append(len(letters))
        self._letters, self._ends = bytes(letters), ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int | slice) -> "str | PathList":
        if isinstance(index, slice):
            return PathList(self[i] for i in range(*index.indices(len(self))))
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._letters[start : self._ends[index]])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield os.fsdecode(self._letters[start:end])
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathList):
            return self._letters == other._letters and self._ends == other._ends
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)


def readable(path: str | os.PathLike) -> str:
    """A name for one line of a message: as it is, or quoted and escaped if it holds line ends or odd bytes."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def is_utf8(path: str | os.PathLike) -> bool:
    """False if a name holds bytes that are not UTF-8."""
    return not any("\udc80" <= char <= "\udcff" for char in os.fspath(path))


def encode_path(path: str) -> str:
    r"""Write any file name as valid UTF-8, one to one: a backslash as ``\\``, an undecodable byte as ``\xNN``.

    Names that hold neither, which is nearly all, stay as they are.

    Args:
        path: as ``os.fsdecode`` gives it, undecodable bytes as surrogates.
    """
    text = path if path.isascii() else os.fsencode(path).decode("utf-8", "surrogateescape")
    if "\\" not in text and text.isprintable():
        return text
    return "".join(
        "\\\\" if char == "\\" else f"\\x{ord(char) - 0xDC00:02x}" if 0xDC80 <= ord(char) <= 0xDCFF else char
        for char in text
    )


def decode_path(text: str) -> str:
    """The name on disk, from how ``encode_path`` wrote it."""
    if "\\" not in text:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))

    def byte(match: re.Match) -> str:
        if match[1] == "\\":
            return "\\"
        value = int(match[1][1:], 16)
        return chr(value if value < 0x80 else 0xDC00 + value)  # nobody but a person writes a letter so

    return os.fsdecode(_ESCAPED.sub(byte, text).encode("utf-8", "surrogateescape"))


def some(names: list[str]) -> str:
    """A few of many names, for one line of a message."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
