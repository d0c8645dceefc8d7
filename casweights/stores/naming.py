"""Calls that give a finished file its name, and fail if the name is taken.

Some file systems have no hard links, and some of those cannot rename a file without replacing
another one. `exclusive_call` tries both on private files and returns the call that works.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.system.files import is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.system.staging import Staging

    Call = Callable[[str, str, int], None]  # path of the file, new name, descriptor of its folder

_RENAME_NOREPLACE = 1


def link(path: str, name: str, folder: int) -> None:
    """Give a file a second name in a folder, as ``link(2)`` does.

    Raises:
        FileExistsError: The name is taken.
    """
    os.link(path, name, dst_dir_fd=folder)


def rename_new(path: str, name: str, folder: int) -> None:
    """Rename a file, as ``renameat2(2)`` does with ``RENAME_NOREPLACE``.

    Raises:
        AttributeError: This system has no such call.
        FileExistsError: The name is taken.
    """
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    # The path is absolute, so the first descriptor does not matter.
    if rename(folder, os.fsencode(path), folder, os.fsencode(name), _RENAME_NOREPLACE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path, None, name)


def replace(path: str, name: str, folder: int) -> None:
    """Rename a file, replacing the file that has the name, if any."""
    os.replace(path, name, dst_dir_fd=folder)


def exclusive_call(drafts: Staging) -> Call | None:
    """Return `link` or `rename_new`, the first that works here and respects existing files.

    Args:
        drafts: A private folder on the file system in question.

    Returns:
        The call, or None if neither works.

    Raises:
        OSError: The folder cannot be written to.
    """
    return next((call for call in (link, rename_new) if _is_exclusive(call, drafts)), None)


def _is_exclusive(call: Call, drafts: Staging) -> bool:
    draft, taken, free = (drafts.new_path() for _ in range(3))
    try:
        draft.touch(exist_ok=False)
        taken.touch(exist_ok=False)
        try:
            call(str(draft), taken.name, drafts.descriptor)
        except FileExistsError:
            call(str(draft), free.name, drafts.descriptor)
        else:
            return False  # it replaced an existing file
    except AttributeError:
        return False
    except OSError as error:
        if not is_refusal(error):
            raise
        return False
    else:
        return True
    finally:
        for path in (draft, taken, free):
            with suppress(OSError):
                path.unlink(missing_ok=True)
