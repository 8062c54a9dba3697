"""Which files of a tree are inputs: by ending or by content, without system folders and what a user excludes.

Every file is an input or is counted as left out, by kind, so that none is missing without a word.
"""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flowers import console
from flowers.data.formats.names import IMAGE_EXTENSIONS, identify
from flowers.errors import DataError

SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found", "__macosx"}
    | {"$recycle.bin", "recycler", "system volume information", "__pycache__"}
)
"""Folders that disks, archives and programs make by themselves, in lower case; hidden ones are left out anyway."""
UNREADABLE_FOLDER = "unreadable folder"
"""A kind of what is left out: all below it, nobody knows how much."""
HEAD_BYTES = 256
"""What ``begins_like_picture`` looks at."""
_PPM = re.compile(rb"P[1-6]\s+(#[^\n]*\s+)*\d+\s+\d+\s")
_MOST_KINDS = 100
_LONGEST_ENDING = 16


@dataclass(frozen=True)
class Choice:
    """The files that are taken, and how many of a tree were not.

    Attributes:
        extensions: lower case, with the dot; "" stands for every file.
        exclude: shell patterns (``*_small.jpg``, ``thumbs``, ``2019/*``) for a file's or folder's name, or for a path
            below the folder that is scanned.
        by_content: also take files of any other ending that begin like a picture.
        left_out: how many files were not taken, by kind.
    """

    extensions: Collection[str] = IMAGE_EXTENSIONS
    exclude: tuple[str, ...] = ()
    by_content: bool = False
    left_out: Counter = field(default_factory=Counter)

    @cached_property
    def endings(self) -> tuple[bytes, ...]:
        """The extensions as the ends of names in lower case."""
        return tuple(os.fsencode(extension.lower()) for extension in self.extensions)

    @cached_property
    def _excluded(self) -> re.Pattern | None:
        return re.compile("|".join(map(fnmatch.translate, self.exclude))) if self.exclude else None

    def takes(self, path: bytes, head: Callable[[int], bytes]) -> bool:
        """True if a file is an input; else it is counted.

        Args:
            path: below the folder that is scanned.
            head: gives the file's first bytes, so many of them.

        Raises:
            OSError: ``head`` did.
        """
        name = path.rpartition(b"/")[2]
        if self.excludes(path):
            self.left_out["excluded"] += 1
        elif name.lower().endswith(self.endings) or (self.by_content and begins_like_picture(head(HEAD_BYTES))):
            return True
        else:
            self.left_out[self._kind(name)] += 1
        return False

    def excludes(self, path: bytes) -> bool:
        """True if ``exclude`` names this file or folder; the folders above it are not looked at."""
        if self._excluded is None:
            return False
        text = os.fsdecode(path)
        return any(map(self._excluded.match, (text, text.rpartition("/")[2])))

    def skips(self, folder: bytes) -> str | None:
        """Why a folder is not looked into, as a kind of what is left out; None if it is.

        Args:
            folder: below the one that is scanned, without a slash at the end.
        """
        name = os.fsdecode(folder.rpartition(b"/")[2])
        if name.startswith("."):
            return "hidden"
        if name.lower() in SYSTEM_FOLDERS:
            return f"in {name}"
        return "excluded" if self.excludes(folder) else None

    def skips_part_of(self, path: bytes) -> str | None:
        """Why a path is left out for one of its folders or for a hidden name; as ``skips``."""
        steps = path.split(b"/")
        folders = (b"/".join(steps[:end]) for end in range(1, len(steps)))
        return next(filter(None, map(self.skips, folders)), "hidden" if steps[-1].startswith(b".") else None)

    def excludes_listed(self, path: str) -> bool:
        """True if ``exclude`` names this path of a list or a folder in it; then it is counted."""
        if self._excluded is None:
            return False
        steps = os.fsencode(path).split(b"/")
        excluded = any(self.excludes(b"/".join(steps[:end])) for end in range(1, len(steps) + 1))
        self.left_out.update(["excluded"] * excluded)
        return excluded

    def leave_out(self, place: bytes, kind: str) -> None:
        """Count a file, or all files below a folder."""
        if os.path.isdir(place):
            below = 0 if os.path.islink(place) else sum(len(files) for _, _, files in os.walk(place))
            if below:
                self.left_out[kind] += below
        else:
            self.left_out[kind] += 1

    def _kind(self, name: bytes) -> str:
        ending = os.path.splitext(os.fsdecode(name))[1].lower()
        if not 1 < len(ending) <= _LONGEST_ENDING or not ending.isprintable() or " " in ending:
            return "without an ending"
        return ending if ending in self.left_out or len(self.left_out) < _MOST_KINDS else "of other endings"


def refuse_unreadable_folders(choice: Choice) -> None:
    """Refuse a listing that lacks the images of some folders, which it has named.

    Raises:
        DataError: it does.
    """
    if choice.left_out[UNREADABLE_FOLDER]:
        raise DataError("some folders cannot be read, see above: mend that and start again")


def begins_like_picture(head: bytes) -> bool:
    """True of the first bytes of a file in a format that can be decoded, and of no text that happens to begin so."""
    kind = identify(head)
    if kind == "BMP":
        return head[6:10] == bytes(4)  # else a text about a BMW
    return _PPM.match(head) is not None if kind == "PPM" else kind is not None


def said_left_out(left_out: Mapping[str, int]) -> str:
    """The number of files left out, in words: "6 files left out (3 .dng, 2 hidden, 1 .psd)"; empty if nothing was."""
    if not left_out:
        return ""
    return f"{console.counted(sum(left_out.values()), 'file')} left out ({kinds_left_out(left_out)})"


def kinds_left_out(left_out: Mapping[str, int]) -> str:
    """The kinds of what was left out, the most frequent first: "3 .dng, 2 hidden, 1 .psd"."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {kind}" for kind, count in kinds[:8]) + (", ..." if len(kinds) > 8 else "")
