"""Options as small immutable values. Nothing here reads the environment or touches a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from casweights.errors import ErrorCode, InvalidInputError

KiB = 1 << 10
MiB = 1 << 20

DigestName = Literal["blake3", "xxh3-128"]
Compression = Literal["auto", "fast", "small"]

DEFAULT_BRANCH = "main"
# Patterns of what a commit leaves out; `hf upload` does, too.
DEFAULT_EXCLUDE = (".git", "*/.git", ".cache/huggingface", "*/.cache/huggingface")
DEFAULT_CHUNK_SIZE = 4 * MiB  # measured in docs/design/001-chunk-size.md
MIN_CHUNK_SIZE = 64 * KiB  # below it, IDs and index rows weigh more than chunks save
MAX_CHUNK_SIZE = 64 * MiB  # several whole chunks are in memory at a time
PACK_TARGET = 64 * MiB  # one transfer block of the Hub's storage
PACK_FRAMES = 1 << 16  # keeps the index of a pack of tiny frames below some MiB


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What is fixed when a store is created.

    Attributes:
        digest: Digest of chunks. ``"blake3"`` is safe against forgers; ``"xxh3-128"`` hashes
            about 2.5 times faster and is for stores that only trusted people write to.
        chunk_size: Bytes of a chunk: a power of two from 64 KiB to 64 MiB.
        refs: For a store in a Hub bucket whose branches have several writers: a git repository of
            the same Hub that keeps branches and tags, as ``"datasets/namespace/name"``. None for
            refs in the store itself. Manifests do not have it, so comparisons leave it out.
        shared: For a store in a directory that all users of a group write to: the store's folder
            becomes one that belongs to the group, and what is written to it can be read by the
            group, whatever the umasks are. The folder's mode keeps this, so comparisons leave it
            out.
    """

    digest: DigestName = "blake3"
    chunk_size: int = DEFAULT_CHUNK_SIZE
    refs: str | None = field(default=None, compare=False)
    shared: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.digest not in ("blake3", "xxh3-128"):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"unknown digest {self.digest!r}: choose 'blake3' or 'xxh3-128'",
            )
        size = self.chunk_size
        if not (MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and size & (size - 1) == 0):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"chunk size {size} is not a power of two from 64 KiB to 64 MiB",
            )


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """How to deal with a store behind a network.

    Attributes:
        patience: Seconds for which a call that fails is tried again.
        stall: Seconds after which a transfer that moves nothing is given up.
        disk_cache: Bytes of this machine's cache, which all processes and stores share; 0 for none.
        read_ahead: Bytes of memory for what is fetched before it is asked for.
        clock_skew: Seconds by which the clocks of the Hub's servers may differ. Two writers who
            move a branch of a bucket within that time wait for one another; a single writer never
            waits. The Hub's own developers reckon with 30 seconds.
    """

    patience: float = 60.0
    stall: float = 20.0
    disk_cache: int = 16 << 30
    read_ahead: int = 128 * MiB
    clock_skew: float = 30.0

    def __post_init__(self) -> None:
        lowest = min(self.patience, self.disk_cache, self.read_ahead, self.clock_skew)
        if lowest < 0 or self.stall <= 0:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                "patience, disk_cache, read_ahead and clock_skew are at least 0, stall is more",
            )
