"""Photos at addresses (``s3://``, ``https://``, ``hf://``, ...), read through fsspec: the extra ``remote``.

What a server or the network gets wrong for a moment is tried again, after longer and longer waits, as on a disk.
"""

import errno
import functools
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowers.data.archives import ARCHIVES, COMPRESSED
from flowers.data.choice import Choice
from flowers.data.formats.limits import check_size
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.lists import read_paths
from flowers.data.members import Entry
from flowers.errors import DataError, ImageError
from flowers.retries import retries

PLACE = b"url:"
"""How the place of an entry begins whose path is an address; its size in bytes follows, -1 if it is not known."""
_ADDRESS = re.compile(r"(?!file:|local:)([a-z][a-z0-9+.-]+):/+(?=[^/])")
_LISTS = (".txt", ".csv", ".csv.gz", ".jsonl")
_ANSWER_S, _SILENCE_S = 300.0, 30.0
"""How long a web server may take for one answer, and how long it may send nothing, before a further try."""
_BUSY = (408, 425, 429)
"""Answers of a web server that a later try may not get, beside those from 500 on."""


def address_of(source: str | os.PathLike) -> str | None:
    """The address that an input is, whose doubled slash ``Path`` has taken; None of a path on this machine."""
    text = os.fspath(source)
    found = _ADDRESS.match(text)
    return f"{found[1]}://{text[found.end() :]}" if found and not os.path.lexists(text) else None


def list_address(address: str, choice: Choice) -> Iterator[Entry]:
    """The photos at an address: one picture, those that a list names, or all below a folder.

    Lines of a list that are no addresses themselves start from the folder that it is in.

    Raises:
        DataError: nothing is there, it cannot be read, or the extra is missing.
    """
    name = posixpath.basename(address.partition("?")[0]).lower()
    try:
        if name.endswith((*ARCHIVES, *COMPRESSED)):
            raise DataError(f"--input {address}: archives are read from a disk only; download it first")
        if name.endswith(_LISTS):
            yield from _listed(address, name, choice)
        elif name.endswith(tuple(IMAGE_EXTENSIONS)):
            check_protocol(address)
            yield Entry(os.fsencode(address), PLACE + b"-1")
        else:
            yield from _below(address, choice)
    except ImageError as error:
        raise DataError(f"--input {address}: {error}") from None


def check_protocol(address: str) -> None:
    """Refuse an address that nothing installed can read.

    Raises:
        DataError: the extra, or the package of this kind of address, is missing.
    """
    try:
        _file_system(address)
    except ImportError as error:
        also = "" if error.name == "fsspec" else f" ({_said(error)})"  # hf:// and others have packages of their own
        raise DataError(f"{address}: addresses need the extra remote: pip install flowers[remote]{also}") from None
    except ValueError as error:
        raise DataError(f"{address}: {error}") from None


def read_address(address: str, size: int = -1) -> bytes:
    """The bytes at an address.

    Args:
        size: in bytes, if it is known.

    Raises:
        ImageError: the short reason why there are none.
    """

    def read() -> bytes:
        system, path = _file_system(address)
        # Of a web server's answer fsspec makes "file not found", whatever is wrong.
        known = size if size >= 0 or address.startswith("http") else system.info(path).get("size") or 0
        check_size(known)
        data = system.cat_file(path)
        check_size(len(data))
        return data

    return _tried(read)


def _listed(address: str, name: str, choice: Choice) -> Iterator[Entry]:
    check_protocol(address)
    folder = address.rpartition("/")[0]
    with tempfile.TemporaryDirectory(prefix="flowers-") as scratch:
        local = Path(scratch) / name
        local.write_bytes(read_address(address))
        for path in read_paths(local):
            if not choice.excludes_listed(path):
                full = path if address_of(path) else f"{folder}/{path.lstrip('/')}"
                yield Entry(os.fsencode(full), PLACE + b"-1")


def _below(address: str, choice: Choice) -> Iterator[Entry]:
    check_protocol(address)
    system, top = _file_system(address)
    found: dict[str, dict] = _tried(lambda: system.find(top, detail=True))
    top = top.rstrip("/")
    for path in sorted(found, key=os.fsencode):
        inside = os.fsencode(path.removeprefix(top).lstrip("/"))
        if reason := choice.skips_part_of(inside):
            choice.left_out[reason] += 1
        elif choice.takes(inside, lambda _: b""):
            size = found[path].get("size")
            yield Entry(os.fsencode(system.unstrip_protocol(path)), PLACE + b"%d" % (-1 if size is None else size))


@functools.lru_cache(maxsize=64)
def _of_protocol(protocol: str) -> Any:
    import fsspec

    options = {}
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        options["client_kwargs"] = {"timeout": timeout}
    return fsspec.filesystem(protocol, **options)


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    system = _of_protocol(address.partition("://")[0])
    return system, system._strip_protocol(address)


def _tried(read) -> Any:
    """Call ``read`` until it works or nothing speaks for a further try.

    Raises:
        ImageError: the short reason.
    """

    def attempt() -> Any:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            raise ImageError("file not found") from None
        except PermissionError:
            raise ImageError("no permission") from None
        except (ImageError, MemoryError):
            raise
        except OSError as error:
            said = "no answer in time" if isinstance(error, TimeoutError) else _said(error)
            raise error if error.errno is not None else OSError(errno.EIO, said) from None
        except Exception as error:  # of any of the libraries below fsspec
            status = getattr(error, "status", None)
            if status == 0:  # aiohttp's for a redirect that leads to ever further ones
                raise ImageError("the server redirects without end") from None
            # An answer that breaks the rules of HTTP has a status of aiohttp's own, and a cause.
            if isinstance(status, int) and status < 500 and status not in _BUSY and error.__cause__ is None:
                raise ImageError(f"the server answers {status}") from None
            raise OSError(errno.EIO, _said(error)) from None

    try:
        return retries.read(attempt)
    except OSError as error:
        raise ImageError((error.strerror or type(error).__name__)[:200]) from None


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
