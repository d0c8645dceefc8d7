"""Calls for files that read or write all bytes, sync, and turn the system's errors into ours."""

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

_MAX_PARTS = 512  # buffers in one call; below the IOV_MAX of every system
_CODES = {
    errno.ENOSPC: ErrorCode.NO_SPACE,
    errno.EDQUOT: ErrorCode.NO_SPACE,
    errno.EFBIG: ErrorCode.NO_SPACE,
    errno.EACCES: ErrorCode.NO_PERMISSION,
    errno.EPERM: ErrorCode.NO_PERMISSION,
    errno.EROFS: ErrorCode.NO_PERMISSION,
}
# Errors that show a real fault. File systems that do not support a call report various other
# errors, so every error that is not listed here counts as "not supported".
_FAULTS = frozenset(
    (
        *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE),
        *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EBADF, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN),
        *(errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    )
)


def to_path(given: str | os.PathLike[str]) -> Path:
    """Return a path that calls of the system accept.

    Raises:
        InvalidInputError: The path is empty, is not text, or has characters that no file name can
            have.
    """
    text = os.fspath(given)
    if not isinstance(text, str):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"the path {text!r} is not text: pass a str"
        )
    if not text:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, "the path is empty: pass '.' for the current directory"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            ErrorCode.BAD_PATH,
            f"the path {text!r} contains {text[error.start]!r}, which no file name can have",
        ) from None
    if "\0" in text:
        raise InvalidInputError(
            ErrorCode.BAD_PATH, f"the path {text!r} contains a NUL, which no file name can have"
        )
    return Path(text)


def read_exactly(descriptor: int, start: int, out: memoryview) -> bool:
    """Fill `out` from offset `start` on, and return True; False if the file ends too early."""
    while out:
        n = os.preadv(descriptor, [out], start)
        if n == 0:
            return False
        out, start = out[n:], start + n
    return True


def read_bytes(descriptor: int, start: int, size: int) -> bytes | None:
    """Return `size` bytes from offset `start` on; None if the file ends too early."""
    parts: list[bytes] = []
    while size > 0:
        part = os.pread(descriptor, size, start)
        if not part:
            return None
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)  # no copy of a single part


def write_fully(descriptor: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write all bytes of `parts` at the current position, also if the system writes in pieces.

    Args:
        descriptor: The open file.
        parts: Buffers of bytes, in order.
    """
    for n in range(0, len(parts), _MAX_PARTS):
        views = [memoryview(part) for part in parts[n : n + _MAX_PARTS]]
        while views:
            written = os.writev(descriptor, views)
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views:
                views[0] = views[0][written:]


def write_at(descriptor: int, start: int, view: memoryview) -> None:
    """Write all of `view` at offset `start`, and start its transfer to the disk.

    A later `os.fsync` then has little left to do.
    """
    offset, nbytes = start, len(view)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    if nbytes and hasattr(os, "posix_fadvise"):  # makes Linux start to write without waiting
        os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)


def permanent_code(number: int | None) -> ErrorCode | None:
    """Return our code for a system error number that no retry cures; None for other numbers."""
    return _CODES.get(number or 0)


def is_refusal(error: OSError) -> bool:
    """Return whether an error means that the file system does not support a call."""
    return error.errno not in _FAULTS


def allow_group(descriptor: int, mode: int) -> None:
    """Add mode bits to an open file or folder of this user, if the file system has modes."""
    now = os.fstat(descriptor).st_mode
    if now & mode != mode:
        try:
            os.fchmod(descriptor, stat.S_IMODE(now) | mode)
        except OSError as error:
            if not is_refusal(error):
                raise


def sync_names(descriptor: int) -> bool:
    """Make the names in an open folder durable; return False if the file system cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_refusal(error):
            raise
        return False
    return True


def fsync_folder(folder: str | Path, dir_fd: int | None = None) -> bool:
    """Make the names in a folder durable; return False if the file system cannot.

    Args:
        folder: Path of the folder.
        dir_fd: Descriptor of an open folder that `folder` is relative to.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        return sync_names(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn `OSError` in a ``with`` block into `StoreError`.

    Args:
        what: The failed action, for the message, such as "cannot read packs/a".

    Raises:
        StoreError: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        code = permanent_code(error.errno) or ErrorCode.IO_FAILED
        raise StoreError(code, f"{what}: {error.strerror or error}") from error
