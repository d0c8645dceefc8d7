"""When a chunk is stored as a shortcut so that its chain is spread over few packs.

Where a step of training is small, readers that start from nothing pay for the packs of a chain and
not for its bytes. The schedule follows from the version's number alone, so that all chunks of a
version have shortcuts to the same earlier versions, and their chains the same packs.
docs/design/005 has the measurements.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from casweights.config import KiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casweights.ids import PackId

# Versions between shortcuts: as many as their packs have times this many bytes, rounded up to a
# power of two. A shortcut costs about half of the bytes between it and the one before.
_BYTES_FOR_A_VERSION = 2 * KiB
_LEAST, _MOST = 4, 8  # versions between shortcuts; beyond, chains are limited by bytes alone
_RADIX = 4  # every fourth shortcut of a level is one of the next level
_ROUND = _RADIX**3  # shortcuts between two versions at which chains preferably end


class Schedule:
    """The shortcuts of one version.

    Args:
        number: The version's number, see `Snapshot`.
        pack_size: Function that returns the number of bytes of a pack, or 0 if it is unknown.
    """

    def __init__(self, number: int, pack_size: Callable[[PackId], int]) -> None:
        self._number = number
        self._pack_size = pack_size

    def passed(self, packs: Iterable[PackId]) -> int | None:
        """Return how many shortcuts of the chain a new one replaces; None if none is due.

        Like the digits of a number, the shortcuts of a chain have levels. A shortcut leads from the
        last one of a higher level to the version, and so replaces those of its level or lower ones.

        Args:
            packs: The packs of the steps since the last shortcut, without the new step.
        """
        distinct = set(packs)
        every = self._every(distinct)
        if every is None or not distinct:
            return None
        group, rest = divmod(self._number, every)
        if rest and len(distinct) < 2 * every:  # a chunk that rarely changes may miss its turns
            return None
        return _lower(group)

    def is_round(self, packs: Iterable[PackId]) -> bool:
        """Whether this is a version at which chains that will soon end do so together.

        Otherwise the whole chunks of a version would in time lie in as many packs as it has chunks.

        Args:
            packs: As for `passed`.
        """
        every = self._every(set(packs))
        return every is not None and self._number % (every * _ROUND) == 0

    def _every(self, packs: Iterable[PackId]) -> int | None:
        """Return the number of versions from one shortcut to the next; None for large versions."""
        sizes = [size for pack in packs if (size := self._pack_size(pack))]
        if not sizes:
            return None
        usual, every = statistics.median(sizes), _LEAST
        while every <= _MOST and every * _BYTES_FOR_A_VERSION < usual:
            every *= 2
        return every if every <= _MOST else None


def _lower(group: int) -> int:
    """Return the number of digits of `group - 1` that differ from those of `group`, and are not 0.

    They are the shortcuts in the chain of the version before, each of one level.
    """
    zeros = 0
    while group and group % _RADIX == 0:
        group //= _RADIX
        zeros += 1
    return zeros + (group % _RADIX > 1)
