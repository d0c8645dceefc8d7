"""Files of the operating system: all of a read, all of a write, and its errors turned into ours."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, InvalidInputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_PARTS = 512  # of one call; below the IOV_MAX of every system
_CODES = {
    errno.ENOSPC: ErrorCode.NO_SPACE,
    errno.EDQUOT: ErrorCode.NO_SPACE,
    errno.EFBIG: ErrorCode.NO_SPACE,
    errno.EACCES: ErrorCode.NO_PERMISSION,
    errno.EPERM: ErrorCode.NO_PERMISSION,
    errno.EROFS: ErrorCode.NO_PERMISSION,
}
# What a file system says when something is wrong, and not when it lacks a call. Those that lack
# one differ in what they say.
_FAULTS = frozenset(
    (
        *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE),
        *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EBADF, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN),
        *(errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    )
)


def to_path(given: str | os.PathLike[str]) -> Path:
    """A path that the system can be asked for.

    Raises:
        InvalidInputError: No file can be called so, or the path is empty.
    """
    text = os.fspath(given)
    if not isinstance(text, str):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"the path {text!r} is not text: pass a str"
        )
    if not text:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, "the path is empty: the current directory is '.'"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            ErrorCode.BAD_PATH,
            f"the path {text!r} has {text[error.start]!r}, which no file name can have",
        ) from None
    if "\0" in text:
        raise InvalidInputError(
            ErrorCode.BAD_PATH, f"the path {text!r} has a NUL, which no file name can have"
        )
    return Path(text)


def read_exactly(descriptor: int, start: int, out: memoryview) -> bool:
    """Fill `out` from offset `start` on; False if the file ends too early."""
    while out:
        n = os.preadv(descriptor, [out], start)
        if n == 0:
            return False
        out, start = out[n:], start + n
    return True


def write_fully(descriptor: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write all of `parts` (of bytes), however often the system stops short."""
    for n in range(0, len(parts), _MAX_PARTS):
        views = [memoryview(part) for part in parts[n : n + _MAX_PARTS]]
        while views:
            written = os.writev(descriptor, views)
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views:
                views[0] = views[0][written:]


def write_at(descriptor: int, start: int, view: memoryview) -> None:
    """Write all of `view` at offset `start`, and let the system begin to bring it to the disk.

    So a later `os.fsync` finds little left to do.
    """
    offset, nbytes = start, len(view)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    if nbytes and hasattr(os, "posix_fadvise"):  # for Linux a request to write without waiting
        os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)


def permanent_code(number: int | None) -> ErrorCode | None:
    """Our code for an error of the system that trying again does not cure; None for others."""
    return _CODES.get(number or 0)


def is_refusal(error: OSError) -> bool:
    """Whether a file system says that it does not have a call, so that another may do."""
    return error.errno not in _FAULTS


def allow_group(descriptor: int, mode: int) -> None:
    """Add permissions to an open file or folder of ours, where the file system has any."""
    now = os.fstat(descriptor).st_mode
    if now & mode != mode:
        try:
            os.fchmod(descriptor, stat.S_IMODE(now) | mode)
        except OSError as error:
            if not is_refusal(error):
                raise


def sync_names(descriptor: int) -> bool:
    """Make the names in an open folder durable; False if the file system cannot do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_refusal(error):
            raise
        return False
    return True


def fsync_folder(folder: str | Path, dir_fd: int | None = None) -> bool:
    """`sync_names` of a folder by its path, which may be relative to an open folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        return sync_names(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the system's errors into ours.

    Args:
        what: What was tried, for the message.

    Raises:
        StoreError: It failed.
    """
    try:
        yield
    except OSError as error:
        code = permanent_code(error.errno) or ErrorCode.IO_FAILED
        raise StoreError(code, f"{what}: {error.strerror or error}") from error
