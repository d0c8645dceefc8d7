"""``casweights repack``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, get_args

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._spans import grace_option
from casweights.cli._text import count, micros, moment, size
from casweights.cli._verb import verb
from casweights.config import Compression, MiB

if TYPE_CHECKING:
    from datetime import timedelta

    from casweights.cli._session import Session
    from casweights.results.stores import RepackStats

_WHEN_FREE = "what is aside takes space until a repack, maintain or gc deletes it, from {} on"
_WAYS_OUT = (
    "`casweights verify` says why. Replace it by a sound copy, or delete it if `verify` finds no "
    "other problem"
)


@verb("repack", Exit.NO_STORE, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.option(
    "--compression",
    type=click.Choice(get_args(Compression)),
    default="auto",
    show_default=True,
    help="How to store chunks that have no base, as for commit.",
)
@click.option(
    "--memory",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="Memory for chunks, in MiB. If a version fits, no chunk is rebuilt twice.",
)
@grace_option
def command(session: Session, compression: str, memory: int, grace: timedelta) -> None:
    """Rewrite all packs to save space.

    Every chunk is encoded again as the smallest difference from the chunks that the store has now.
    This pays after an import, or if similar versions were added later. IDs do not change. Old packs
    are set aside when the new ones are complete, and a later repack, maintain or gc deletes them:
    the space is free then. With --grace 0, it is free at once.
    """
    with session.open(Results(session.out), cache_size=memory * MiB) as repository:
        done = repository.repack(compression=cast("Compression", compression), grace=grace)
    session.out.summary(
        {
            "packs": done.packs,
            "old_packs": done.old_packs,
            "pack_bytes": done.nbytes,
            "old_pack_bytes": done.old_bytes,
            "aside_bytes": done.aside_bytes,
            "freed_bytes": done.freed_bytes,
            "free_from": micros(done.free_from) if done.free_from else None,
            "compared": done.compared,
            "tree_bytes": done.tree_bytes,
            "least_bytes": done.least_bytes,
            "unreadable": list(done.unreadable),
        },
        [
            [
                Span(
                    f"{count(done.packs, 'pack')} of {size(done.nbytes)}, "
                    f"previously {count(done.old_packs, 'pack')} of {size(done.old_bytes)}"
                    + (f"; {size(done.aside_bytes)} set aside" if done.aside_bytes else "")
                    + (f"; {size(done.freed_bytes)} deleted" if done.freed_bytes else "")
                )
            ],
            *([[Span(_WHEN_FREE.format(moment(micros(done.free_from))))]] * bool(done.free_from)),
            *([Span(_gap(done))] for _ in range(bool(done.compared))),
            *([Span(f"{name} cannot be read and stays. {_WAYS_OUT}")] for name in done.unreadable),
        ],
    )


def _gap(done: RepackStats) -> str:
    """Return how much the limit of reads costs."""
    gap = done.tree_bytes / done.least_bytes - 1
    return (
        f"{count(done.compared, 'version')} compared with others: about {size(done.tree_bytes)}, "
        f"{gap:.1%} more than if reads were not limited"
    )
