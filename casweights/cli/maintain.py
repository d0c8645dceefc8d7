"""``casweights maintain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._text import count, size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session


_REFUSED = (
    "the store does not let you delete objects, so nothing was merged that replaces others: "
    "somebody who may delete should run it, too"
)


@verb("maintain", Exit.NO_STORE, Exit.PERMISSION, Exit.INTERRUPTED)
def command(session: Session) -> None:
    """Merge small objects and index packs, so that commands stay fast.

    Run it from time to time on a store to which a training run publishes many versions. Versions
    behind the last 64 of every branch move into archives, and small packs are merged. Content is
    copied as it is, so it is cheaper than `repack`, and saves no space. IDs do not change, and
    commits and subscribers can continue at the same time. If the store has a policy (see `expire`),
    it is applied first.
    """
    with session.open(Results(session.out)) as repository:
        done = repository.maintain()
    session.out.summary(
        {
            "packs": done.packs,
            "old_packs": done.old_packs,
            "copied_bytes": done.copied_bytes,
            "segments": done.segments,
            "segment_bytes": done.segment_bytes,
            "archived": done.archived,
            "archives": done.archives,
            "may_delete": done.may_delete,
            "expired": done.expired,
        },
        [
            [
                Span(
                    f"{count(done.packs, 'pack')}, previously {count(done.old_packs, 'pack')}; "
                    f"{size(done.copied_bytes)} copied; {count(done.archived, 'version')} moved "
                    f"into {count(done.archives, 'archive')}. {count(done.segments, 'segment')}; "
                    f"{size(done.segment_bytes)} written"
                    + (f". {count(done.expired, 'version')} expired" if done.expired else "")
                )
            ],
            *([] if done.may_delete else [[Span(_REFUSED, "yellow")]]),
        ],
    )
