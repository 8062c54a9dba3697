"""What decoding libraries say on stderr, kept from the screen: it names no file and tears the progress bar.

torchvision's libjpeg writes to C's ``stderr``. While any picture is decoded, that stream is a file in memory: it was
written to if this or another picture that is decoded at the same time is damaged. libtiff calls a handler, in the
thread that decodes, so its words belong to their file.

Both need glibc; elsewhere the libraries speak as they always did.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_LIBJPEG = (b"Corrupt JPEG data", b"Premature end of JPEG", b"Warning: unknown JFIF", b"Inconsistent progression")
_LIBJPEG += (b"Invalid SOS parameters", b"Unknown Adobe color", b"Unsupported Adobe", b"Caution: ", b"Application tra")
_UNBUFFERED = 2
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class _Stderr:
    """C's ``stderr``, replaced while somebody listens."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
        self._stream = ctypes.c_void_p.in_dll(libc, "stderr")
        self._before = self._stream.value
        self._file = os.memfd_create("words of decoders")
        self._ours = libc.fdopen(self._file, b"a")
        libc.setvbuf(self._ours, None, _UNBUFFERED, 0)
        self._listeners = 0
        self._lock = threading.Lock()

    def begin(self) -> int:
        """Replace it; returns how much has been said before."""
        with self._lock:
            self._listeners += 1
            self._stream.value = self._ours
            return os.fstat(self._file).st_size if self._listeners > 1 else 0

    def end(self, before: int) -> bool:
        """Give it back once nobody listens any more; tells if anything has been said since ``begin``."""
        with self._lock:
            size = os.fstat(self._file).st_size
            self._listeners -= 1
            if not self._listeners:
                self._stream.value = self._before
                if size:
                    self._pass_on(size)
            return size > before

    def restore(self) -> None:
        """Give the stream back, in a child process that has none of the threads that listened."""
        self._stream.value = self._before

    def _pass_on(self, size: int) -> None:
        """Write to the true stderr what other libraries said meanwhile."""
        said = os.pread(self._file, size, 0)
        os.ftruncate(self._file, 0)
        foreign = [line for line in said.splitlines(keepends=True) if not line.startswith(_LIBJPEG)]
        with contextlib.suppress(OSError):
            os.write(2, b"".join(foreign))


_stderr: _Stderr | None = None
_first = threading.Lock()
_tiff = threading.local()
_handlers: list = []  # as long as libtiff may call them


class LibjpegListener:
    """Keeps libjpeg's words from the screen inside its ``with`` block.

    Attributes:
        heard: after the block, there were any, of this picture or of one that was decoded at the same time.
    """

    def __init__(self) -> None:
        self.heard = False
        self._stream = _stderr or _listen()

    def __enter__(self) -> "LibjpegListener":
        self._before = self._stream.begin() if self._stream else 0
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream:
            self.heard = self._stream.end(self._before)


@contextlib.contextmanager
def libtiff() -> Iterator[list[str]]:
    """Collect the errors of libtiff in this thread; its warnings are dropped: every camera causes some."""
    with _first:
        if not _handlers:
            _handle_tiff()
    _tiff.errors = errors = []
    try:
        yield errors
    finally:
        _tiff.errors = None


def _listen() -> _Stderr | None:
    global _stderr
    with _first:
        if _stderr is None and hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                _stderr = _Stderr()
        return _stderr


def _handle_tiff() -> None:
    """Take over the handlers of the libtiff that Pillow has loaded."""

    @_HANDLER
    def error(module: bytes | None, form: bytes, values: int) -> None:
        if (errors := getattr(_tiff, "errors", None)) is not None:
            text = ctypes.create_string_buffer(256)
            vsnprintf(text, len(text), form, values)
            errors.append(text.value.decode(errors="replace").rstrip("."))

    @_HANDLER
    def warning(module: bytes | None, form: bytes, values: int) -> None:
        return

    _handlers.extend((error, warning))
    with contextlib.suppress(OSError, AttributeError):
        vsnprintf = ctypes.CDLL(None).vsnprintf
        vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libtiff" in line}
        for library in map(ctypes.CDLL, loaded):
            library.TIFFSetErrorHandler(error)
            library.TIFFSetWarningHandler(warning)


def _after_fork() -> None:
    global _stderr, _first
    if _stderr is not None:
        _stderr.restore()
    _stderr, _first = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
