"""The bytes of a photo's file, or the reason why there are none; what only moves files about needs no decoder."""

import errno
import os
import stat

from flowers.data import shards
from flowers.data.formats.limits import check_size
from flowers.errors import ImageError, system_reason
from flowers.retries import retries


def read_bytes(path: str | bytes | os.PathLike) -> bytearray:
    """All bytes of a regular file, or of a photo in a tar shard (``flowers.data.shards``); anything else is refused.

    Nothing waits for a FIFO; a disk's hiccup is waited for.

    Raises:
        ImageError: the short reason: "file not found", "no permission", "a folder, not a file", ...
    """
    try:
        return retries.read(lambda: _read_bytes(path))
    except ValueError:  # a NUL in the name
        raise ImageError("file not found") from None
    except OSError as error:
        raise ImageError(_os_reason(error)) from None


def _read_bytes(path: str | bytes | os.PathLike) -> bytearray:
    try:
        # Opening a FIFO that nobody writes to would wait for ever, without O_NONBLOCK.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except NotADirectoryError:
        if (data := shards.read_photo(os.fsdecode(path))) is None:
            raise
        return data
    try:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        check_size(status.st_size)
        data = bytearray(status.st_size)
        done = 0
        with memoryview(data) as view:
            while done < len(data) and (count := os.readv(file, [view[done:]])):
                done += count
        del data[done:]  # of a file that shrank meanwhile
        return data
    finally:
        os.close(file)


def _os_reason(error: OSError) -> str:
    reasons = {
        errno.ENOENT: "file not found",
        errno.ENOTDIR: "file not found",
        errno.EACCES: "no permission",
        errno.EPERM: "no permission",
        errno.ENXIO: "not a regular file",
        errno.ELOOP: "a link to itself",
    }
    return reasons.get(error.errno or 0, system_reason(error))
