"""The retention policy of a store."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.format.policy import (
    MAX_POLICY,
    decode_policy,
    encode_policy,
    parse_policy_name,
    policy_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.config import Keep
    from casweights.stores.base import ObjectStore


class Policies:
    """Reads and replaces the retention policy of a store.

    Args:
        store: The store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def load(self) -> tuple[Keep, ...]:
        """Return the policy; empty if the store has none.

        Raises:
            IntegrityError: It is damaged. An earlier one is not used in its place.
            UnsupportedError: A newer casweights wrote it.
        """
        while listed := self._listed():
            with suppress(NotFoundError):  # another client has just replaced it
                return decode_policy(self._store.read(listed[-1], MAX_POLICY), listed[-1])
        return ()

    def save(self, policy: Sequence[Keep]) -> None:
        """Replace the policy; an empty one removes it.

        Earlier policies are deleted if possible; they do not count in any case.

        Raises:
            IntegrityError: No policy can follow the one that the store has, which is forged.
        """
        listed = self._listed()
        position = 1 + (parse_policy_name(listed[-1]) if listed else 0)
        if position >= 10**names.POSITION_DIGITS:
            raise corrupt(listed[-1], "its position is the last one that a name can have")
        name = policy_name(position, secrets.token_hex(names.WRITER_DIGITS // 2))
        self._store.put(name, [encode_policy(policy, time.time_ns() // 1000)])
        with suppress(CasweightsError):
            self._store.delete_all(listed)

    def problems(self) -> Iterator[CasweightsError]:
        """Yield an error for each policy that is damaged or misnamed."""
        for info in self._store.list(names.POLICIES):
            try:
                parse_policy_name(info.name)
                decode_policy(self._store.read(info.name, MAX_POLICY), info.name)
            except NotFoundError:  # replaced since
                continue
            except CasweightsError as error:
                yield error

    def _listed(self) -> list[str]:
        """Return the names of all policies; the last one counts. Other names are left out."""
        found = []
        for info in self._store.list(names.POLICIES):
            with suppress(IntegrityError):
                parse_policy_name(info.name)
                found.append(info.name)
        return sorted(found)
