"""``casweights info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.cli._errors import Exit
from casweights.cli._output import fields
from casweights.cli._text import binary_size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session

_GUARANTEES = {
    True: "of several writers at once, exactly one moves a branch",
    False: "of several writers at once, one moves a branch; the others find out right afterwards",
}
_AFTER_POWER_CUTS = {
    True: "every version that was acknowledged is there",
    False: "the last versions may be gone: the file system cannot sync folders",
}


@verb("info", Exit.NO_STORE, Exit.INTEGRITY)
def command(session: Session) -> None:
    """Tell what the store is and what it guarantees.

    \b
    Examples:
      casweights info
      casweights --store hf://buckets/me/weights info
    """
    with session.open() as repository:
        info = repository.info()
    config = info.config
    session.out.record(
        {
            "store": info.url,
            "store_id": info.store_id,
            "digest": config.digest,
            "chunk_size": config.chunk_size,
            "refs": info.refs,
            "exclusive": info.exclusive,
            "durable": info.durable,
        },
        fields(
            [
                ("store", info.url),
                ("ID", info.store_id),
                ("digest", config.digest),
                ("chunks", binary_size(config.chunk_size)),
                ("refs", "in the store" if info.refs == info.url else info.refs),
                ("writers", _GUARANTEES[info.exclusive]),
                ("power cuts", _AFTER_POWER_CUTS[info.durable]),
            ]
        ),
        essential="store",
    )
