"""The trainer's side: live tensors become versions in the background."""

from __future__ import annotations

import itertools
import threading
import time
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from casweights.config import DEFAULT_BRANCH, DEFAULT_EXCLUDE, Compression
from casweights.content.arguments import check_choice, check_compression
from casweights.content.files import scan
from casweights.content.states import StateFile
from casweights.content.trees import ExtraState, without_extra_state
from casweights.errors import (
    CasweightsError,
    ConflictError,
    ErrorCode,
    InvalidInputError,
)
from casweights.opening import open_repository
from casweights.operations.commit import (
    Description,
    EncodedVersion,
    encode_version,
    repeated,
    write_version,
)
from casweights.repository import Repository
from casweights.sync import exits
from casweights.sync.mirror import KeptState, Mirror
from casweights.sync.states import cast_policy, plain_state
from casweights.sync.steps import Failure, Step
from casweights.system.files import to_path
from casweights.system.handles import Handle, check_open

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

    import torch
    from torch.utils.hooks import RemovableHandle

    from casweights.content.files import SourceFile
    from casweights.content.outlines import Outline
    from casweights.database.refs import Head
    from casweights.events import Reporter
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore
    from casweights.sync.mirror import Scan

Base = Literal["host", "device", "cache"]
Policy = Literal["block", "skip-to-latest"]

_EXIT_TIMEOUT = 300.0

# What else may lie in the directory of a model, and would be its weights a second time.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


class Publisher(Handle):
    """Publishes live tensors as versions of a branch.

    `publish` finds what changed, remembers it and returns; hashing, encoding and uploading go on in
    the background, one version after the other. A version is an ordinary commit: it has an ID and
    a parent, and everything that reads versions reads it.

    What was published last is kept in host memory, to find what changes and to encode it; that is
    one copy of the model. It is the base of the next version once it is durable: when an upload
    fails, the next version has its changes too. A publisher that is opened anew goes on
    where the branch is.

    Use it as a context manager or `close` it: both wait until all is durable. A program that ends
    without that waits for `exit_timeout` seconds and logs what is not stored then. Other processes,
    also forked ones, make a publisher of their own.

    Args:
        store: A store, or how to open it.
        branch: The branch to move; made if there is none.
        base: Where to find what changes: ``"host"``, in the copy in host memory; ``"device"``, in
            another copy beside each tensor on an accelerator, so that only changes cross to the
            host; ``"cache"``, without a copy, against what the store reads again (open it with a
            `cache_size`, if there is memory for that). Without a copy, `publish` returns only after
            encoding.
        policy: What `publish` does while the one before waits for its turn: ``"block"`` until it
            is encoded, or ``"skip-to-latest"`` and leave that one out. Left out are whole versions,
            never changes; see `PublishStats.skipped` and the version's metadata.
        cast: Dtypes to publish floating-point tensors in, by patterns of their names; the first
            that matches counts. ``{"*.norm.*": torch.float32, "*": torch.bfloat16}`` publishes
            fp32 masters as bf16.
        extra: A directory whose other files (configuration, tokenizer) go with every version.
        author: Who makes the versions.
        compression: How chunks without a base are stored, see `Repository.commit`.
        extra_state: Whether what modules return from ``get_extra_state`` is published or left out.
        exit_timeout: Seconds that the end of the program waits for versions to become durable.
        reporter: Receives `Reporter.published`; by default that of the store.

    Attributes:
        exit_timeout: As above.

    Raises:
        NotFoundError: There is no such store.
        InvalidInputError: An argument is none of those above.
        StoreError: The store could not be read.
    """

    usable_closed = frozenset({"version"})

    def __init__(
        self,
        store: Repository | ObjectStore | str | os.PathLike[str],
        branch: str = DEFAULT_BRANCH,
        *,
        base: Base = "host",
        policy: Policy = "block",
        cast: Mapping[str, torch.dtype] | None = None,
        extra: str | os.PathLike[str] | None = None,
        author: str = "",
        compression: Compression = "auto",
        extra_state: ExtraState = "keep",
        exit_timeout: float = _EXIT_TIMEOUT,
        reporter: Reporter | None = None,
    ) -> None:
        check_choice("base", base, get_args(Base))
        check_choice("policy", policy, get_args(Policy))
        check_choice("extra_state", extra_state, get_args(ExtraState))
        if not exit_timeout >= 0:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"exit_timeout={exit_timeout}: give seconds, from 0 on"
            )
        self.exit_timeout = min(exit_timeout, threading.TIMEOUT_MAX)
        self._compression = check_compression(compression)
        self._base, self._policy, self._author = base, policy, author
        self._cast = cast_policy(cast or {})
        self._extra_state = extra_state
        self._extra = None if extra is None else to_path(extra)
        self._branch = branch
        self._owns_store = not isinstance(store, Repository)
        self._store = store if isinstance(store, Repository) else open_repository(store)
        self._db = self._below = self._store.database
        self._reporter = reporter or self._db.reporter
        self._head = self._db.refs.head(branch, for_update=True)
        self._written: Snapshot | None = None  # the head, once it was read or written here
        self._doubtful: Snapshot | None = None  # was written, and may have become the head
        self._mirror: Mirror | None = None
        self._outline: Outline | None = None  # of the last state
        self._state = threading.Condition()  # guards what follows
        self._waiting: Step | None = None
        self._active: str | None = None  # the name of the step that is being written
        self._in_use = False  # the mirror, by whoever scans or encodes
        self._errors: list[Failure] = []
        self._conflict: ConflictError | None = None
        self._thread = threading.Thread(target=self._work, name="casweights-publish", daemon=True)
        self._thread.start()
        self._pending = exits.Pending(repr(self), self.exit_timeout, self._drain, self._losses)
        exits.opened(self._pending)

    def __repr__(self) -> str:
        return f"Publisher({self._store.url!r}, {self._branch!r})"

    def _how_to_reopen(self) -> str:
        return f"make another with casweights.{self!r}"

    @property
    def version(self) -> SnapshotId | None:
        """The newest version of the branch that is durable, as far as this publisher knows."""
        with self._state:
            return self._head.snapshot if self._head else None

    def publish(
        self,
        source: torch.nn.Module | Mapping[str, Any],
        *,
        step: int | None = None,
        message: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish the tensors as they are now; they may be changed when this returns.

        Args:
            source: A module or a state dict. Where names, shapes and dtypes are those of the last
                call, only what changed is kept and hashed. Names are published without what
                ``torch.compile`` and data parallelism put in front of them: of a module that is so
                wrapped or has such modules in it, and where all names of a state dict have it.
            step: A number for it, which goes into the version's metadata.
            message: Why this version is.
            metadata: JSON-like values to keep with it.

        Raises:
            ConflictError: Another writer moved the branch. Nothing is published any more: open
                another publisher, which goes on from there.
            CasweightsError: The version of an earlier call could not be made durable. Its changes
                will be part of the next one. This call has done nothing: repeat it.
            InvalidInputError: The source cannot be published.
        """
        given = plain_state(source)
        if self._extra_state == "drop":
            given = without_extra_state(given)
        state = StateFile(given, self._cast, self._outline)
        self._outline = state.outline
        described = Step(
            number=step,
            message=message,
            metadata=deepcopy(dict(metadata or {})) | ({} if step is None else {"step": step}),
        )
        self._acquire(state)
        try:
            self._release(self._take(state, described))
        except BaseException:
            self._release(None)
            raise

    def _fits(self, state: StateFile) -> bool:
        """Whether the mirror is one of such states."""
        return self._mirror is not None and self._mirror.layout == state.layout

    def _acquire(self, state: StateFile) -> None:
        """Wait until the mirror may be written; or until nothing is under way that has another."""

        def is_free() -> bool:
            if self._in_use:
                return False
            if self._base == "cache" or not self._fits(state):
                return not (self._active or self._waiting)
            return self._waiting is None or self._policy != "block"

        with self._state:
            self._check()
            self._state.wait_for(is_free)
            self._check()
            self._in_use = True

    def _release(self, taken: Step | None) -> None:
        with self._state:
            self._in_use = False
            if taken is None:  # half of the mirror may be new
                self._mirror = None
                if self._waiting is not None and self._waiting.mirror is not None:
                    self._errors.append(Failure(self._waiting.name, self._waiting.torn()))
                    self._waiting = None
            else:
                other = self._waiting
                self._waiting = taken if other is None else taken.instead_of(other)
            self._state.notify_all()

    def _take(self, state: StateFile, step: Step) -> Step:
        """Keep what the caller may change next."""
        begin = time.monotonic()
        if self._base == "cache":
            self._settle()
            encoded = self._encode(state, step)
            return replace(step, encoded=encoded, encode_seconds=time.monotonic() - begin)
        if self._mirror is None or not self._fits(state):
            self._settle()  # what is in doubt is the last version of the mirror that goes
            self._mirror = None  # before there is another one: two take too much memory
            self._mirror = Mirror(
                state,
                self._db.config.chunk_size,
                self._db.workers,
                on_device=self._base == "device",
            )
            found = self._mirror.first(state)
        else:
            found = self._mirror.scan(state)
        seconds = time.monotonic() - begin
        return replace(step, mirror=self._mirror, scan=found, scan_seconds=seconds)

    def _check(self) -> None:
        check_open(self)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._conflict is not None:
            self._errors.clear()  # nothing follows, so it speaks for them all
            raise self._conflict
        if self._errors:
            raise self._errors.pop(0).error

    def wait(self, timeout: float | None = None) -> Snapshot | None:
        """Wait until all that was published is durable.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            The newest version of the branch; None if there is none yet.

        Raises:
            TimeoutError: It takes longer; it goes on.
            CasweightsError: A version could not be made durable, see `publish`.
        """
        if not self._drain(timeout):
            raise TimeoutError(f"versions are still being written after {timeout:g} s")
        with self._state:
            self._raise_error()
        return self._before()

    def _drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being written, whatever came of it; False if it takes longer."""
        with self._state:
            return self._state.wait_for(lambda: not (self._waiting or self._active), timeout)

    def _losses(self) -> list[str]:
        """What is not durable and was not told by an error yet, a line for each step."""
        with self._state:
            pending = [self._active, self._waiting and self._waiting.name]
            told = [f"{failure.name}: {failure.error}" for failure in self._errors]
        told += [f"{name}: the program ended before it was written" for name in pending if name]
        return [f"not stored in branch {self._branch!r} of {self._store.url}: {s}" for s in told]

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        source: torch.nn.Module | Mapping[str, Any],
        *,
        every: int = 1,
    ) -> RemovableHandle:
        """Publish after each step of an optimizer, or after every so many.

        Returns:
            A handle; its `remove` ends that.
        """
        if every < 1:
            raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"every={every}: it takes at least 1")
        steps = itertools.count(1)

        def hook(*_: object) -> None:
            step = next(steps)
            if step % every == 0:
                self.publish(source, step=step)

        return optimizer.register_step_post_hook(hook)

    def close(self) -> None:
        """Wait until all is durable, and end the thread.

        Raises:
            CasweightsError: A version could not be made durable, see `publish`.
        """
        with self._state:
            self._state.notify_all()
        self._thread.join()
        exits.closed(self._pending)
        if self._owns_store:
            self._store.close()
        with self._state:
            for other in self._errors[1:]:
                self._errors[0].error.add_note(f"besides, {other.name}: {other.error}")
            self._raise_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CasweightsError as failure:
            if error is None:
                raise
            if failure is not error:
                error.add_note(f"besides, a version could not be published: {failure}")

    def _work(self) -> None:
        """Turn one step after the other into versions, on a thread of its own."""
        while (step := self._next()) is not None:
            failure = self._attempt(step)
            del step  # its mirror may have to make room for another one
            self._done(failure)
            del failure

    def _next(self) -> Step | None:
        with self._state:
            self._state.wait_for(lambda: not self._in_use and (self._waiting or self._closed))
            step, self._waiting = self._waiting, None
            if step is not None:
                self._active = step.name
                self._in_use = step.mirror is not None
            return step

    def _attempt(self, step: Step) -> BaseException | None:
        try:
            self._publish(step)
        except BaseException as error:  # it is raised where the caller is
            return error
        return None

    def _done(self, failure: BaseException | None) -> None:
        with self._state:
            if failure is not None:
                self._errors.append(Failure(self._active or "", failure))
            if isinstance(failure, ConflictError):
                if self._waiting is not None:
                    self._errors.append(Failure(self._waiting.name, failure))
                self._conflict, self._waiting = failure, None
            self._active = None
            self._state.notify_all()

    def _publish(self, step: Step) -> None:
        begin = time.monotonic()
        encoded, scan, seconds = step.encoded, step.scan, step.encode_seconds
        new = False
        if step.mirror is not None and scan is not None:
            try:
                new = step.mirror.is_settled
                scan = self._claim(step.mirror, scan)
                encoded = self._encode(KeptState(step.mirror, scan), step)
            finally:
                with self._state:
                    self._in_use = False
                    self._state.notify_all()
            seconds = time.monotonic() - begin
        if encoded is not None:
            begin = time.monotonic()
            self._write(encoded, step.mirror, new=new)
            upload_seconds = time.monotonic() - begin
            self._reporter.published(step.stats(encoded, scan, seconds, upload_seconds))

    def _claim(self, mirror: Mirror, scan: Scan) -> Scan:
        """What to publish: what was found, and what is part of no durable version."""
        try:
            self._settle()
        except BaseException:
            mirror.put_off(scan)
            raise
        return mirror.claim(scan)

    def _encode(self, state: StateFile | KeptState, step: Step) -> EncodedVersion:
        before = self._before()
        skipped = [number for number in step.skipped if number is not None]
        description = Description(
            parents=() if before is None else (before.id,),
            time=datetime.now(UTC),
            author=self._author,
            message=step.message,
            metadata=step.metadata | ({"skipped": skipped} if skipped else {}),
        )
        files: list[SourceFile] = [state]
        if self._extra is not None:
            files += scan(self._extra, exclude=(*DEFAULT_EXCLUDE, *_WEIGHTS))
        encoded = encode_version(
            self._db,
            sorted(files, key=lambda file: file.path),
            description,
            base=before,
            compression=self._compression,
            nearby=state if isinstance(state, KeptState) else None,
        )
        return encoded.detached()

    def _before(self) -> Snapshot | None:
        """The version that the branch is at."""
        with self._state:
            head, written = self._head, self._written
        if head is None or (written is not None and written.id == head.snapshot):
            return written
        return self._db.snapshots.load(head.snapshot, with_locations=True)

    def _write(self, encoded: EncodedVersion, mirror: Mirror | None, *, new: bool) -> None:
        there = repeated(self._db, encoded.snapshot, self._head)
        if there is not None and self._head is not None:
            self._landed(self._head, there, mirror)
            return
        self._doubtful = encoded.snapshot
        head = write_version(self._db, encoded, self._branch, self._head, new=new)
        self._landed(head, encoded.snapshot, mirror)

    def _settle(self) -> None:
        """Find out whether the last version has become the branch's head, if that is unknown."""
        if self._doubtful is not None:
            head = self._db.refs.landed(self._branch, self._doubtful.id)
            if head is not None:
                self._landed(head, self._doubtful, self._mirror)
            self._doubtful = None

    def _landed(self, head: Head, version: Snapshot, mirror: Mirror | None) -> None:
        if mirror is not None:
            mirror.publish(version)
        self._db.snapshots.retain(version)
        with self._state:
            self._head, self._written, self._doubtful = head, version, None
