"""Handles work in the process that made them, until they are closed.

A forked child has none of its parent's threads, and a copy of every lock as it was at that moment,
held or not. A handle that is used there would wait forever or lose what it is given, so it raises
at once. No handle is pickled either: it is the threads, locks and connections of one process.

A closed handle has no threads either. Every use of it raises the same error, so that a thread that
still works with it can tell that it is to end.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from casweights.errors import ClosedError, ErrorCode, WrongProcessError
from casweights.system.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable

_GUARDED = ("__enter__", "__getitem__")


class Handle:
    """A base of handles: public methods and properties work in one process, until `close`.

    To close a handle again does nothing more.

    Attributes:
        usable_anywhere: Names of public members that work in every process, and always.
        usable_closed: Names of public properties that can still be read after `close`.
    """

    usable_anywhere: ClassVar[frozenset[str]] = frozenset()
    usable_closed: ClassVar[frozenset[str]] = frozenset()
    _process: int
    _closed = False
    _below: Handle | None = None  # the handle that it works on; is closed with that one

    def __new__(cls, *args: object, **options: object) -> Self:
        """Note the process."""
        handle = super().__new__(cls)
        handle._process = os.getpid()
        return handle

    def __init_subclass__(cls) -> None:
        """Guard what the class defines."""
        super().__init_subclass__()
        for name, member in _members(cls).items():
            if name == "__exit__":
                setattr(cls, name, _guarded_exit(member))
            elif name == "close":
                setattr(cls, name, _guarded_close(member))
            elif name in _GUARDED or not (name.startswith("_") or name in cls.usable_anywhere):
                checks = (check_process,) if name in cls.usable_closed else _CHECKS
                setattr(cls, name, _guarded_member(member, checks))

    def _how_to_reopen(self) -> str:
        """What to do instead, for error messages."""
        return "make another one"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            WrongProcessError: Always.
        """
        raise WrongProcessError(
            ErrorCode.WRONG_PROCESS,
            f"a {type(self).__name__} cannot be copied or sent to another process: there, "
            f"{self._how_to_reopen()}",
        )


def _members(cls: type[Handle]) -> dict[str, Any]:
    """What a class defines; the block of `Closing` counts as its own."""
    block = vars(Closing) if Closing in cls.__bases__ else {}
    return {name: block[name] for name in ("__enter__", "__exit__") if name in block} | vars(cls)


def belongs_here(handle: Handle) -> bool:
    """Whether this process made the handle."""
    return handle._process == os.getpid()


def check_process(handle: Handle) -> None:
    """Refuse a handle of another process.

    Raises:
        WrongProcessError: It was made in another process.
    """
    if not belongs_here(handle):
        raise WrongProcessError(
            ErrorCode.WRONG_PROCESS,
            f"this {type(handle).__name__} belongs to process {handle._process}, and this is "
            f"process {os.getpid()}, a fork of it: here, {handle._how_to_reopen()}",
        )


def is_closed(handle: Handle) -> bool:
    """Whether the handle, or one that it works on, was closed."""
    return handle._closed or (handle._below is not None and is_closed(handle._below))


def check_open(handle: Handle) -> None:
    """Refuse a handle that was closed.

    Raises:
        ClosedError: It was closed, or the handle that it works on.
    """
    if is_closed(handle):
        what = "was closed" if handle._closed else "works on a store that was closed"
        raise ClosedError(
            ErrorCode.CLOSED,
            f"this {type(handle).__name__} {what}: {handle._how_to_reopen()}",
        )


_Checks = tuple["Callable[[Handle], None]", ...]
_CHECKS: _Checks = (check_process, check_open)


def _guarded_member(member: Any, checks: _Checks) -> Any:
    if isinstance(member, property):
        return (
            property(_guarded(member.fget, checks), doc=member.__doc__) if member.fget else member
        )
    return _guarded(member, checks) if callable(member) and not isinstance(member, type) else member


def _guarded(method: Callable[..., Any], checks: _Checks) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Handle, *args: Any, **options: Any) -> Any:
        for check in checks:
            check(self)
        return method(self, *args, **options)

    return call


def _guarded_close(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def close(self: Handle) -> Any:
        check_process(self)
        self._closed = True
        return method(self)

    return close


def _guarded_exit(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def leave(self: Handle, kind: Any, error: Any, traceback: Any) -> Any:
        if error is not None and not belongs_here(self):
            return None  # a child on its way out of its parent's block
        check_process(self)
        return method(self, kind, error, traceback)

    return leave
