"""Photos in tar shards as a data set: an index of each shard, made once, and reads by offset; nothing is extracted.

A photo's path is ``SHARD.tar/MEMBER``, as prediction names it. Its class is the content of ``KEY.cls``, of the field
"class", "cls" or "label" of ``KEY.json``, or of ``KEY.txt`` beside ``KEY.jpg`` (a key ends at the first dot of the
name, as in WebDataset); else the first folder that it lies in inside the shard, after one that is called like a split
and after one that all photos share.

The index of a shard lies in the user's cache folder, under a name that changes with the shard's path, size and time of
change; its CRC-32 is checked each time it is read, and a damaged one is made again.
"""

import bisect
import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers.data.archives import COMPRESSED, members, place_of, read_range
from flowers.data.choice import Choice
from flowers.data.formats.limits import check_size
from flowers.data.lists import SPLIT_NAMES, ListedImage
from flowers.data.paths import PathList, readable
from flowers.errors import DataError, FlowersError, ImageError, system_reason
from flowers.files import NPZ_DAMAGE, user_cache, write_atomically
from flowers.locks import take_turns
from flowers.parsing import parse_json
from flowers.retries import is_file, retries

ENDING = ".tar"
FORMAT = 1
_LABELS = (".cls", ".json", ".txt")
_FIELDS = ("class", "cls", "label")
_INSIDE = re.compile(r"\.tar(?=/)", re.IGNORECASE)
_MOST_LABEL_BYTES = 1 << 20
_LONGEST_CLASS = 255


class Index(NamedTuple):
    """The photos of one shard, sorted by name."""

    names: PathList
    labels: PathList
    """The class that a file beside each photo names; empty where none does."""
    places: np.ndarray
    """int64 [N, 2]: offset and size in bytes."""
    left_out: dict[str, int]
    """Other members, by kind."""

    def place(self, name: str) -> tuple[int, int] | None:
        """Offset and size of a photo; None if the shard lacks it."""
        row = bisect.bisect_left(self.names, name)
        found = row < len(self.names) and self.names[row] == name
        return tuple(self.places[row].tolist()) if found else None


def is_shard(path: str | os.PathLike) -> bool:
    """True of the name of a tar."""
    return os.fspath(path).lower().endswith(ENDING)


def shards_in(folder: Path) -> list[str]:
    """Names of the tars in a folder itself, sorted.

    Raises:
        DataError: it cannot be listed, or its tars are compressed, which cannot be read by offset.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    except OSError as error:
        raise DataError(f"{readable(folder)}: cannot be listed: {system_reason(error)}") from None
    shards = [name for name in names if is_shard(name)]
    packed = [name for name in names if name.lower().endswith(COMPRESSED)]
    if packed and not shards:
        raise DataError(f"{readable(folder / packed[0])}: a compressed tar cannot be read by offset; unpack it to .tar")
    return shards


def list_shards(root: Path, shards: Sequence[str], choice: Choice) -> list[ListedImage]:
    """The photos of some shards, in the order of the same photos in folders: by their paths without the shards.

    Args:
        root: folder that paths start from.
        shards: paths of the shards, relative to it.
        choice: which photos are taken; it counts the others.

    Raises:
        DataError: a shard cannot be read, or is cut or damaged.
    """
    found: list[tuple[str, str, str]] = []
    for shard in shards:
        if choice.excludes_listed(shard):
            continue
        index = index_of(root / shard)
        choice.left_out.update(index.left_out)
        for name, label in zip(index.names, index.labels, strict=True):
            inside = without_shards(f"{shard}/{name}")
            if not (choice.excludes_listed(f"{shard}/{name}") or choice.excludes_listed(inside)):
                found.append((shard, name, label))
    tops = {name.partition("/")[0] for _, name, _ in found}
    wraps = len(tops) == 1 and all(name.count("/") > 1 or (label and "/" in name) for _, name, label in found)
    images = []
    for shard, name, label in found:
        folders = name.split("/")[wraps:-1]
        split = _split_of(shard)
        if len(folders) > (0 if label else 1) and folders[0] in SPLIT_NAMES:
            split = SPLIT_NAMES[folders.pop(0)]
        folder = label or (folders[0] if folders else "")
        if folder:
            images.append(ListedImage(f"{shard}/{name}", folder, split))
        else:
            choice.left_out["without a class"] += 1
    return sorted(images, key=lambda image: (os.fsencode(without_shards(image.path)), os.fsencode(image.path)))


def without_shards(path: str) -> str:
    """The path that a photo would have outside of the shard that it lies in."""
    return "/".join(step for step in path.split("/") if not is_shard(step)) if _INSIDE.search(path) else path


def read_photo(path: str) -> bytearray | None:
    """The bytes of a photo in a shard; None if no part of the path is one.

    Raises:
        ImageError: the shard lacks it, or is cut.
        OSError: the shard cannot be read.
    """
    if (parts := _parts(path)) is None:
        return None
    shard, name = parts
    with open(shard, "rb") as file:
        status = os.fstat(file.fileno())
        place = _index(shard, status.st_size, status.st_mtime_ns).place(name)
        if place is None:
            raise ImageError("not in the archive")
        check_size(place[1])
        data = read_range(file.fileno(), *place)
    if len(data) < place[1]:
        raise ImageError("truncated archive")
    return bytearray(data)


def stamp_of(path: str) -> tuple[int, int]:
    """Size of a photo in a shard in bytes, time of change of the shard in ns; -1 for what cannot be seen."""
    try:
        shard, name = _parts(path) or ("", "")
        status = retries.read(lambda: os.stat(shard))
        place = _index(shard, status.st_size, status.st_mtime_ns).place(name)
    except (OSError, DataError):
        return -1, -1
    return (place[1], status.st_mtime_ns) if place else (-1, -1)


def lies_in_shard(path: str) -> bool:
    """True if a photo is a member of a shard."""
    return _parts(path) is not None


def index_of(shard: Path) -> Index:
    """The index of a shard, from the cache folder where it is there.

    Raises:
        DataError: the shard cannot be read, or is cut or damaged.
    """
    try:
        status = os.stat(shard)
        return _index(str(shard), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{readable(shard)}: cannot be read: {system_reason(error)}") from None


@functools.cache
def _index(shard: str, size: int, changed_ns: int) -> Index:
    cache = user_cache()
    if cache is None:
        return _make(Path(shard))
    key = f"{FORMAT} {size} {changed_ns} {os.path.abspath(shard)}"
    place = cache / "shards" / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:24]}.npz"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, FlowersError):  # a folder that cannot be written
            stack.enter_context(take_turns(place.parent / "lock"))  # the others find what the first has made
        if (kept := _load(place)) is not None:
            return kept
        index = _make(Path(shard))
        with contextlib.suppress(FlowersError), write_atomically(place, "wb") as file:
            np.savez(
                file,
                names=_joined(index.names),
                labels=_joined(index.labels),
                places=index.places,
                left_out=np.array(json.dumps(index.left_out)),
            )
    return index


def _load(place: Path) -> Index | None:
    """An index as it was kept; None if it is not there, or damaged."""
    try:
        with np.load(place, allow_pickle=False) as file:
            places = file["places"]
            names, labels = (_parted(file[name], len(places)) for name in ("names", "labels"))
            return Index(names, labels, places, parse_json(str(file["left_out"])))
    except (OSError, *NPZ_DAMAGE):
        return None


def _joined(texts: PathList) -> np.ndarray:
    return np.frombuffer(b"\0".join(map(os.fsencode, texts)), np.uint8)


def _parted(letters: np.ndarray, count: int) -> PathList:
    texts = letters.tobytes().split(b"\0") if count else []
    if len(texts) != count:
        raise ValueError("another number of texts")
    return PathList(map(os.fsdecode, texts))


def _make(shard: Path) -> Index:
    """Read the headers of all members, and the files that name classes."""
    choice = Choice()
    wanted = Choice({*choice.extensions, *_LABELS}, left_out=choice.left_out)
    photos: dict[str, tuple[int, int]] = {}
    labels: dict[tuple[str, str], str] = {}
    with open(shard, "rb") as file:
        for entry in members(shard.parent, os.fsencode(shard.name), wanted):
            name = os.fsdecode(entry.path).removeprefix(f"{shard.name}/")
            if entry.place.startswith(b"!"):
                if os.fsdecode(entry.path) == shard.name:
                    reason = os.fsdecode(entry.place[1:])
                    raise DataError(f"{readable(shard)}: {reason}; mend it, or leave it out with --exclude")
                choice.left_out["links or others that a tar does not hold"] += 1
                continue
            _, _, offset, size = place_of(entry)
            if name.lower().endswith(_LABELS):
                key, ending = _key(name), os.path.splitext(name)[1].lower()
                labels[key, ending] = _class_in(read_range(file.fileno(), offset, min(size, _MOST_LABEL_BYTES)), ending)
            else:
                photos[name] = offset, size
    names = sorted(photos)
    return Index(
        PathList(names),
        PathList(_label_of(name, labels) for name in names),
        np.array([photos[name] for name in names], np.int64).reshape(-1, 2),
        dict(choice.left_out),
    )


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label_of(name: str, labels: dict[tuple[str, str], str]) -> str:
    # A text beside a photo in a class folder may be anything, its caption say.
    endings = _LABELS[:2] if "/" in name else _LABELS
    return next(filter(None, (labels.get((_key(name), ending)) for ending in endings)), "")


def _class_in(data: bytes, ending: str) -> str:
    """The class that a file beside a photo names; empty if it names none."""
    text = data.decode("utf-8", "replace").strip()
    if ending == ".json":
        try:
            fields = parse_json(text)
            text = next((fields[name] for name in _FIELDS if isinstance(fields.get(name), int | str)), "")
        except (ValueError, AttributeError):
            return ""
    text = str(text)
    return text if text.isprintable() and "/" not in text and len(text.encode()) <= _LONGEST_CLASS else ""


def _split_of(shard: str) -> str | None:
    """The split that a part of a shard's name says: ``photos-val-0001.tar``."""
    words = re.split(r"[-_.]", os.path.basename(shard).lower())
    return next((SPLIT_NAMES[word] for word in words if word and word in SPLIT_NAMES), None)


def _parts(path: str) -> tuple[str, str] | None:
    """The shard that a path leads into, and the member's name."""
    for match in _INSIDE.finditer(path):
        if is_file(path[: match.end()]):
            return path[: match.end()], path[match.end() + 1 :]
    return None
