"""`WholeStore`: the methods of a `Repository` that concern the store and not one version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.config import Keep
from casweights.content.arguments import check_compression
from casweights.system.closing import Closing
from casweights.system.handles import Handle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.config import Compression, StoreConfig
    from casweights.database import Database
    from casweights.results import (
        Expiry,
        MaintainStats,
        RepackStats,
        StoreInfo,
        StoreStats,
        Verification,
    )


class WholeStore(Handle, Closing):
    """The part of a `Repository` that looks after its store as a whole."""

    usable_anywhere = frozenset({"url"})

    def __init__(self, database: Database) -> None:
        self._db = self._below = database

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

    def _how_to_reopen(self) -> str:
        return self._db._how_to_reopen()

    @property
    def database(self) -> Database:
        """The internal parts of the store, for modules that build on them."""
        return self._db

    @property
    def url(self) -> str:
        """The URL or path that opens this store again."""
        return self._db.store.url

    @property
    def config(self) -> StoreConfig:
        """The settings that are fixed since the store was made."""
        return self._db.config

    def info(self) -> StoreInfo:
        """Return the store's settings, and its guarantees to several writers."""
        return self._db.info()

    def verify(self, *, quick: bool = False) -> Verification:
        """Check every object; list damage in the result, and record it for later commits to repair.

        Args:
            quick: Whether to check only stored bytes against checksums, without decoding and
                hashing chunks. This finds damage, but not every forgery.
        """
        from casweights.operations.verify import verify

        return verify(self._db, quick=quick)

    def stats(self) -> StoreStats:
        """Measure the store: its versions, packs, chunks and encodings."""
        from casweights.operations.stats import stats

        return stats(self._db)

    def repack(self, *, compression: Compression = "auto") -> RepackStats:
        """Rewrite all packs to save space; no ID changes.

        Every chunk is encoded again as the smallest difference from the chunks that the store has
        now. This pays after an import, or if similar versions were added later. Other clients can
        read and write at the same time. If a version fits in `cache_size`, no chunk is rebuilt
        twice.

        Args:
            compression: How to store chunks that have no base, as for `commit`.

        Raises:
            IntegrityError: A version cannot be rebuilt; no pack was deleted.
            StoreError: The store could not be written.
        """
        from casweights.operations.repack import repack

        return repack(self._db, compression=check_compression(compression))

    def maintain(self) -> MaintainStats:
        """Merge small objects, so that calls stay fast after many versions; no ID changes.

        If the store has a policy, it is applied first, see `expire`. Other clients can read and
        write at the same time.

        Raises:
            StoreError: The store could not be read or written. Repeat the call to continue.
        """
        from casweights.operations.maintain import maintain

        return maintain(self._db)

    def expire(self, policy: Keep | Sequence[Keep] | None = None, *, apply: bool = False) -> Expiry:
        """Decide by a policy which versions of branches stay, and record the others as expired.

        An expired version is left out of `log`, `push` and `pull`, and `~N` does not lead to it. No
        byte is deleted: its ID can still be read, and a branch or tag at it brings it back. The
        heads of branches, and versions with a tag, never go.

        Args:
            policy: What to keep: one `Keep` or several, of which the first that matches a branch
                counts. None for the policy of the store.
            apply: Whether to record what goes. By default, the result only says what would go.

        Raises:
            InvalidInputError: A condition is not valid, or the store has no policy.
            NotFoundError: A version of a history is missing; nothing was recorded.
            IntegrityError: A version of a history is damaged; nothing was recorded.
            ConflictError: Other clients made branches all the time; nothing was recorded.
            StoreError: The store could not be read or written. Repeat the call.
        """
        from casweights.operations.expire import expire

        chosen = [policy] if isinstance(policy, Keep) else policy
        return expire(self._db, chosen, apply=apply)

    def policy(self) -> tuple[Keep, ...]:
        """Return the retention policy that the store keeps; empty if it has none."""
        return self._db.policies.load()

    def set_policy(self, policy: Keep | Sequence[Keep]) -> None:
        """Keep a retention policy in the store, for `maintain` and for `expire` without one.

        Args:
            policy: The policy; an empty sequence removes it.

        Raises:
            InvalidInputError: A condition is not valid, or the policy is too large.
            StoreError: The store could not be written.
        """
        from casweights.operations.expire import set_policy

        set_policy(self._db, [policy] if isinstance(policy, Keep) else policy)

    def close(self) -> None:
        """End the threads. The repository cannot be used afterwards."""
        self._db.close()
