"""Notes on errors about refs: which existing name or version may have been meant.

They are notes in the sense of PEP 678: tracebacks and the command line print them, and the message
of the error stays the same. The refs are listed only after a lookup has failed.
"""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING

from casweights.database.snapshots import MIN_PREFIX
from casweights.errors import CasweightsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights.database import Database

_MAX_NAMES = 3  # suggestions in one note


def note_similar_refs(error: CasweightsError, db: Database, name: str) -> None:
    """Add a note that suggests existing refs in place of `name`, if one fits."""
    with suppress(CasweightsError):  # the error itself matters more than a suggestion
        if db.refs.last_deletions(name):
            error.add_note(f"it was deleted: `casweights undelete {name}` brings it back")
            return
        branches, tags = db.refs.branches(), db.refs.tags()
        if not branches and not tags:
            error.add_note("the store has no branches or tags yet: commit a first version")
            return
        if name.startswith("heads/"):
            note_similar(error, name, (f"heads/{branch}" for branch in branches))
        elif name.startswith("tags/"):
            note_similar(error, name, (f"tags/{tag}" for tag in tags))
        else:
            note_similar(error, name, (*branches, *tags))
    if is_short_prefix(name):
        error.add_note(f"a prefix of an ID has at least {MIN_PREFIX} digits")


def is_short_prefix(name: str) -> bool:
    """Whether a name could be the beginning of an ID, but is too short to stand for one."""
    return len(name) < MIN_PREFIX and not set(name.lower()) - set("0123456789abcdef")


def note_similar(error: CasweightsError, name: str, names: Iterable[str]) -> None:
    """Add a note that suggests those of `names` that are spelled like `name`, best first."""
    found = get_close_matches(name, dict.fromkeys(names), n=_MAX_NAMES)
    if found:
        error.add_note(f"did you mean {' or '.join(found)}?")
