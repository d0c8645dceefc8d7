"""Handles: objects that work only in the process that made them, until they are closed.

A forked child has none of its parent's threads, and copies of all locks in the state of that
moment, held or not. There, a handle would wait forever or lose data, so every use raises an error
at once. Handles cannot be pickled either, because they consist of threads, locks and connections
of one process.

Every use of a closed handle raises the same error, so a thread that still uses it knows that it
must end.
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
    """Base class of handles: public methods and properties work in one process, until `close`.

    Subclasses need no code for that: their methods are wrapped when the class is defined. `close`
    may be called again.

    Attributes:
        usable_anywhere: Names of public members that work in every process, also after `close`.
        usable_closed: Names of public properties that can still be read after `close`.
    """

    usable_anywhere: ClassVar[frozenset[str]] = frozenset()
    usable_closed: ClassVar[frozenset[str]] = frozenset()
    _process: int
    _closed = False
    _below: Handle | None = None  # the handle that this one works on, and is closed with

    def __new__(cls, *args: object, **options: object) -> Self:
        """Record the process that makes the handle."""
        handle = super().__new__(cls)
        handle._process = os.getpid()
        return handle

    def __init_subclass__(cls) -> None:
        """Wrap the public members that the class defines, so that they check the handle."""
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
        """Return what the user must do to get a usable handle, for error messages."""
        return "create another one"

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
    """Return the members that a class defines, and `__enter__` and `__exit__` of `Closing`."""
    block = vars(Closing) if Closing in cls.__bases__ else {}
    return {name: block[name] for name in ("__enter__", "__exit__") if name in block} | vars(cls)


def belongs_here(handle: Handle) -> bool:
    """Return whether this process made the handle."""
    return handle._process == os.getpid()


def check_process(handle: Handle) -> None:
    """Make sure that this process made the handle.

    Raises:
        WrongProcessError: Another process made it.
    """
    if not belongs_here(handle):
        raise WrongProcessError(
            ErrorCode.WRONG_PROCESS,
            f"this {type(handle).__name__} belongs to process {handle._process}, and this is "
            f"process {os.getpid()}, a fork of it: here, {handle._how_to_reopen()}",
        )


def is_closed(handle: Handle) -> bool:
    """Return whether the handle, or one that it works on, was closed."""
    return handle._closed or (handle._below is not None and is_closed(handle._below))


def check_open(handle: Handle) -> None:
    """Make sure that the handle is not closed.

    Raises:
        ClosedError: The handle, or one that it works on, was closed.
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
            return None  # a forked child leaves its parent's block, and keeps its own error
        check_process(self)
        return method(self, kind, error, traceback)

    return leave
