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
    True: "if several move a branch at once, exactly one succeeds",
    False: "if several move a branch at once, one counts; the others learn so right afterwards",
}
_READS = {
    True: "at most 1.5 times a whole version",
    False: "at most 1.5 times a whole version, 3 times if it is a function of others",
}
_AFTER_POWER_CUTS = {
    True: "every committed version survives",
    False: "the latest versions may be lost: the file system cannot sync folders",
}


@verb("info", Exit.NO_STORE, Exit.INTEGRITY)
def command(session: Session) -> None:
    """Show the settings of the store and what it guarantees.

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
            "standalone": config.standalone,
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
                ("reads", _READS[config.standalone]),
                ("writers", _GUARANTEES[info.exclusive]),
                ("power cuts", _AFTER_POWER_CUTS[info.durable]),
            ]
        ),
        essential="store",
    )
