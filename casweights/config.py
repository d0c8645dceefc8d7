"""Options as small immutable values, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from casweights.errors import ErrorCode, InvalidInputError

KiB = 1 << 10
MiB = 1 << 20

DigestName = Literal["blake3", "xxh3-128"]
Compression = Literal["auto", "fast", "small"]

DEFAULT_BRANCH = "main"
_ALL_DAYS = timedelta(days=3_652_059)  # of the calendar: years 1 to 9999
# The rules of `Keep` that are whole numbers.
KEEP_COUNTS = ("last", "every", "hourly", "daily", "weekly", "monthly", "yearly")
# Patterns of files that a commit leaves out, the same as `hf upload`.
DEFAULT_EXCLUDE = (".git", "*/.git", ".cache/huggingface", "*/.cache/huggingface")
DEFAULT_CHUNK_SIZE = 4 * MiB  # measured in docs/design/001-chunk-size.md
MIN_CHUNK_SIZE = 64 * KiB  # below it, IDs and index rows weigh more than chunks save
MAX_CHUNK_SIZE = 64 * MiB  # every worker holds several whole chunks in memory
PACK_TARGET = 64 * MiB  # one transfer block of the Hub's storage
DEFAULT_GRACE = timedelta(days=7)  # of collections
REPLACED_GRACE = timedelta(days=1)  # of what others replace; shorter, as each step leaves some
LEAST_GRACE = timedelta(days=1)  # with less, what somebody else writes at the same time can be lost
# Writers may rely on what was in its place within this time, and collections on what they have
# marked. It is a quarter of the shortest grace time, so that clocks and listings may be hours off.
RELIANCE_SECONDS = 6 * 3600.0
PACK_FRAMES = 1 << 16  # limits the index of a pack of tiny frames to a few MiB


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Settings of a store that are fixed when it is made.

    Attributes:
        digest: Hash that identifies chunks. ``"blake3"`` is safe against forgery. ``"xxh3-128"``
            hashes about 2.5 times faster, and is for stores that only trusted users write to.
        chunk_size: Size of a chunk in bytes: a power of two from 64 KiB to 64 MiB.
        refs: A git repository of the Hub that keeps the branches and tags of a store in a bucket,
            as ``"datasets/namespace/name"``. Use one if branches have several writers. None to
            keep branches and tags in the store itself. Comparisons ignore it, because it is not
            part of a manifest.
        shared: Whether all users of a group write to a store in a directory. The store's folder
            becomes writable for its group, and objects readable for it, whatever the umasks are.
            Comparisons ignore it, because the folder's mode records it.
        standalone: Whether no version is stored as a function of others, such as an export as
            the rounding of its origin. Reads then never take more than 1.5 times a whole version.
            Comparisons ignore it, because it is not part of a manifest.

    Raises:
        InvalidInputError: The digest is unknown, or the chunk size is not allowed.

    Example:
        >>> config = StoreConfig(digest="xxh3-128", chunk_size=1 << 20)
        >>> casweights.open("./store", create=True, config=config)
    """

    digest: DigestName = "blake3"
    chunk_size: int = DEFAULT_CHUNK_SIZE
    refs: str | None = field(default=None, compare=False)
    shared: bool = field(default=False, compare=False)
    standalone: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.digest not in ("blake3", "xxh3-128"):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"digest must be 'blake3' or 'xxh3-128', got {self.digest!r}",
            )
        size = self.chunk_size
        # A power of two keeps every element of a tensor within one chunk.
        if not (MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and size & (size - 1) == 0):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"chunk_size must be a power of two from 64 KiB to 64 MiB, got {size} bytes",
            )


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """Options for stores behind a network.

    Attributes:
        patience: Seconds for which a failing request is repeated.
        stall: Seconds without progress after which a transfer is given up.
        disk_cache: Size in bytes of this machine's disk cache, which all processes and stores
            share; 0 for no cache.
        read_ahead: Bytes of memory for data that is fetched before it is needed.
        clock_skew: Seconds by which the clocks of the Hub's servers may differ. Two writers that
            move a branch of a bucket within this time wait for each other; a single writer never
            waits. The Hub's developers assume 30 seconds.

    Raises:
        InvalidInputError: A value is negative, or `stall` is 0.

    Example:
        >>> remote = RemoteOptions(patience=600.0, disk_cache=64 << 30)
        >>> casweights.open("hf://buckets/me/weights", remote=remote)
    """

    patience: float = 60.0
    stall: float = 20.0
    disk_cache: int = 16 << 30
    read_ahead: int = 128 * MiB
    clock_skew: float = 30.0

    def __post_init__(self) -> None:
        for name in ("patience", "disk_cache", "read_ahead", "clock_skew"):
            if (value := getattr(self, name)) < 0:
                raise InvalidInputError(
                    ErrorCode.BAD_ARGUMENT, f"{name} must be at least 0, got {value}"
                )
        if self.stall <= 0:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"stall must be more than 0, got {self.stall}"
            )


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The versions that a retention policy keeps of the branches whose names match a pattern.

    A version stays if at least one rule keeps it. Heads of branches and versions with a tag always
    stay. Hours, days and so on are those of UTC.

    Attributes:
        branches: Pattern of branches, as ``"run-*"``. Of several `Keep`, the first that matches a
            branch counts; a branch that none matches keeps everything.
        last: Number of newest versions to keep.
        every: Keep versions whose number is divisible by this, such as every 50th.
        within: Keep versions that are at most this much older than the newest one.
        hourly: Keep the newest version of each hour, for this number of latest hours that have
            versions.
        daily: The same for days.
        weekly: The same for weeks, which begin on Monday.
        monthly: The same for months.
        yearly: The same for years.
        where: Keep versions whose metadata meet a condition, as ``"eval >= 0.7 and not draft"``.

    Raises:
        InvalidInputError: No rule is given, or a value is not positive.

    Example:
        >>> store.expire([Keep(branches="run-*", last=100, every=50), Keep(daily=30)])
    """

    branches: str = "*"
    last: int | None = None
    every: int | None = None
    within: timedelta | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        for name in KEEP_COUNTS:
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 1 <= value < 1 << 63):
                raise InvalidInputError(
                    ErrorCode.BAD_ARGUMENT,
                    f"{name} must be a whole number of at least 1, got {value!r}",
                )
        if self.within is not None and not timedelta(0) < self.within <= _ALL_DAYS:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"within must be more than 0 and at most {_ALL_DAYS.days} days, got {self.within}",
            )
        rules = (self.within, self.where, *(getattr(self, name) for name in KEEP_COUNTS))
        if all(rule is None for rule in rules):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"a policy for branches {self.branches!r} must keep something: give at least one "
                "rule, such as last=1",
            )
