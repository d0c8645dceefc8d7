"""``casweights maintain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._spans import grace_option
from casweights.cli._text import count, size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from datetime import timedelta

    from casweights.cli._session import Session


_REFUSED = (
    "the store does not let you delete objects, so nothing was merged that replaces others: "
    "somebody who may delete should run it, too"
)


@verb("maintain", Exit.NO_STORE, Exit.PERMISSION, Exit.INTERRUPTED)
@grace_option
@click.option(
    "--signatures/--no-signatures",
    default=None,
    help="Let versions get signatures, by which relatives are found, or delete all.",
)
def command(session: Session, *, grace: timedelta, signatures: bool | None) -> None:
    """Merge small objects and index packs, so that commands stay fast.

    Run it from time to time on a store to which a training run publishes many versions. Versions
    behind the last 64 of every branch move into archives, and small packs are merged. Content is
    copied as it is, so it is cheaper than `repack`, and saves no space. IDs do not change, and
    commits and subscribers can continue at the same time. What was merged is set aside, and deleted
    by a later maintain or gc. If the store has a policy (see `expire`), it is applied first.
    """
    with session.open(Results(session.out)) as repository:
        done = repository.maintain(grace=grace, signatures=signatures)
    session.out.summary(
        {
            "packs": done.packs,
            "old_packs": done.old_packs,
            "copied_bytes": done.copied_bytes,
            "segments": done.segments,
            "segment_bytes": done.segment_bytes,
            "archived": done.archived,
            "archives": done.archives,
            "freed_bytes": done.freed_bytes,
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
                    + (f"; {size(done.freed_bytes)} deleted" if done.freed_bytes else "")
                    + (f". {count(done.expired, 'version')} expired" if done.expired else "")
                )
            ],
            *([] if done.may_delete else [[Span(_REFUSED, "yellow")]]),
        ],
    )
