"""Handles belong to the process that made them.

A forked child has none of its parent's threads, and a copy of every lock as it was at that moment,
held or not. A handle that is used there would wait forever or lose what it is given, so it raises
at once. No handle is pickled either: it is the threads, locks and connections of one process.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from casweights.errors import ErrorCode, WrongProcessError

if TYPE_CHECKING:
    from collections.abc import Callable

_GUARDED = ("__enter__", "__getitem__")


class ProcessBound:
    """A base of handles: public methods and properties work only in the process that made them.

    Attributes:
        usable_anywhere: Names of public members that every process may use.
    """

    usable_anywhere: ClassVar[frozenset[str]] = frozenset()
    _process: int

    def __new__(cls, *args: object, **options: object) -> Self:
        """Note the process."""
        handle = super().__new__(cls)
        handle._process = os.getpid()
        return handle

    def __init_subclass__(cls) -> None:
        """Guard what the class defines."""
        super().__init_subclass__()
        for name, member in list(vars(cls).items()):
            if name == "__exit__":
                setattr(cls, name, _guarded_exit(member))
            elif name in _GUARDED or not (name.startswith("_") or name in cls.usable_anywhere):
                setattr(cls, name, _guarded_member(member))

    def _how_to_reopen(self) -> str:
        """What to do in another process instead, for error messages."""
        return "make one there"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            WrongProcessError: Always.
        """
        raise WrongProcessError(
            ErrorCode.WRONG_PROCESS,
            f"a {type(self).__name__} cannot be copied or sent to another process: "
            f"{self._how_to_reopen()}",
        )


def belongs_here(handle: ProcessBound) -> bool:
    """Whether this process made the handle."""
    return handle._process == os.getpid()


def check_process(handle: ProcessBound) -> None:
    """Refuse a handle of another process.

    Raises:
        WrongProcessError: It was made in another process.
    """
    if not belongs_here(handle):
        raise WrongProcessError(
            ErrorCode.WRONG_PROCESS,
            f"this {type(handle).__name__} belongs to process {handle._process}, and this is "
            f"process {os.getpid()}, a fork of it: {handle._how_to_reopen()}",
        )


def _guarded_member(member: Any) -> Any:
    if isinstance(member, property):
        return property(_guarded(member.fget), doc=member.__doc__) if member.fget else member
    return _guarded(member) if callable(member) and not isinstance(member, type) else member


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: ProcessBound, *args: Any, **options: Any) -> Any:
        check_process(self)
        return method(self, *args, **options)

    return call


def _guarded_exit(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def leave(self: ProcessBound, kind: Any, error: Any, traceback: Any) -> Any:
        if error is not None and not belongs_here(self):
            return None  # a child on its way out of its parent's block
        check_process(self)
        return method(self, kind, error, traceback)

    return leave
