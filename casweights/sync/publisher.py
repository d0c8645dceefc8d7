"""The trainer's side of live sync: turning live tensors into versions in the background."""

from __future__ import annotations

import itertools
import threading
import time
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from casweights.config import DEFAULT_BRANCH, Compression
from casweights.content.arguments import check_choice, check_compression
from casweights.content.states import StateFile
from casweights.content.trees import ExtraState, without_extra_state
from casweights.errors import CasweightsError, ErrorCode, InvalidInputError
from casweights.opening import opened
from casweights.sync import exits
from casweights.sync.branch_writer import BranchWriter
from casweights.sync.handoff import Handoff
from casweights.sync.mirror import Mirror
from casweights.sync.models import cast_policy, plain_state
from casweights.sync.steps import CapturedStep, EncodedStep, Label
from casweights.sync.upkeep import Upkeep, interval
from casweights.system.files import to_path
from casweights.system.handles import Handle, check_open

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

    import torch
    from torch.utils.hooks import RemovableHandle

    from casweights.content.outlines import Outline
    from casweights.events import Reporter
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.opening import StoreLike
    from casweights.sync.steps import Step

Compare = Literal["host", "device", "cache"]
Policy = Literal["block", "skip-to-latest"]

_EXIT_TIMEOUT = 300.0  # seconds; uploading a large model on a slow line may need minutes


class Publisher(Handle):
    """Publishes live tensors as versions of a branch.

    `publish` finds the changes since the last call, keeps a copy of them, and returns. Hashing,
    encoding and uploading follow in the background, one version after another. A version is an
    ordinary commit: it has an ID and a parent, and every reader of versions can read it.

    To find and encode changes, the publisher keeps one copy of the model in host memory. A durable
    version becomes the base of the next one. If an upload fails, the next version includes its
    changes. A new publisher continues at the head of the branch.

    Use it as a context manager, or call `close`: both wait until everything is durable. A program
    that ends without either waits for `exit_timeout` seconds, and logs each state that is not
    stored by then. Other processes, including forked ones, need a publisher of their own.

    A state passes through three parts. `Publisher` captures it on the caller's thread, `Handoff`
    decides when, and passes it to the writer's thread, and `BranchWriter` encodes and writes it
    there. See `Handoff` for the states and locks. `Upkeep` maintains the store in pauses::

        publish ── acquire ─▶ capture ─ put ─▶ [one step waits] ─▶ encode ─▶ write ─▶ durable

    Example:
        ::

            with casweights.Publisher("hf://buckets/me/weights/run-7", "policy") as publisher:
                for step in range(steps):
                    train(model, optimizer)
                    publisher.publish(model, step=step)

    Args:
        store: An open store, or the path or URL of one.
        branch: The branch to move. The first version creates it.
        compare: Where to look for changes: ``"host"`` compares with the copy in host memory.
            ``"device"`` compares with a second copy next to each tensor on an accelerator, so that
            only changes are copied to the host. ``"cache"`` keeps no copy and compares with what
            it reads again from the store (open the store with a `cache_size` if memory allows);
            then `publish` returns only after encoding.
        policy: What `publish` does while an earlier version waits to be encoded: ``"block"`` waits,
            ``"skip-to-latest"`` leaves the earlier version out. Only versions are left out, never
            changes; see `PublishStats.skipped` and the version's metadata.
        cast: Dtypes in which to publish floating-point tensors, by patterns of their names; the
            first match counts. ``{"*.norm.*": torch.float32, "*": torch.bfloat16}`` publishes
            fp32 masters as bf16, except for the norms.
        extra: A directory whose files, except weights, are part of every version (configuration,
            tokenizer).
        author: The author of the versions.
        compression: How chunks without a base are stored, see `Repository.commit`.
        extra_state: Whether to publish the return values of ``get_extra_state`` of modules
            (``"keep"``) or to leave them out (``"drop"``).
        maintain: Whether to maintain the store in the background, as `Repository.maintain` does
            but in the pauses between versions; a number is that of versions from one round to the
            next. Errors of it are reported as warnings.
        exit_timeout: Maximum number of seconds that the end of the program waits for versions to
            become durable.
        reporter: Receives `Reporter.published`; by default the reporter of the store.

    Attributes:
        exit_timeout: The argument of that name.

    Raises:
        NotFoundError: The store does not exist.
        InvalidInputError: An argument has none of the values above.
        StoreError: The store could not be read.
    """

    usable_closed = frozenset({"version"})

    def __init__(
        self,
        store: StoreLike,
        branch: str = DEFAULT_BRANCH,
        *,
        compare: Compare = "host",
        policy: Policy = "block",
        cast: Mapping[str, torch.dtype] | None = None,
        extra: str | os.PathLike[str] | None = None,
        author: str = "",
        compression: Compression = "auto",
        extra_state: ExtraState = "keep",
        maintain: bool | int = True,
        exit_timeout: float = _EXIT_TIMEOUT,
        reporter: Reporter | None = None,
    ) -> None:
        check_choice("compare", compare, get_args(Compare))
        check_choice("policy", policy, get_args(Policy))
        check_choice("extra_state", extra_state, get_args(ExtraState))
        check_compression(compression)
        every = interval(maintain)
        self.exit_timeout = _checked_timeout(exit_timeout)
        self._compare = compare
        self._cast = cast_policy(cast or {})
        self._extra_state = extra_state
        self._branch = branch
        extra = None if extra is None else to_path(extra)
        self._opened = opened(store)
        self._db = self._below = self._opened.repository.database
        self._reporter = reporter or self._db.reporter
        self._writer = BranchWriter(
            self._db, branch, author=author, compression=compression, extra=extra
        )
        self._handoff = Handoff(
            replaces=policy == "skip-to-latest", check_open=partial(check_open, self)
        )
        self._upkeep = Upkeep(self._db, every, self._handoff.pause)
        self._outline: Outline | None = None  # of the last state; saves parsing an equal one again
        self._thread = threading.Thread(
            target=self._handoff.serve, args=[self._write], name="casweights-publish", daemon=True
        )
        self._thread.start()
        self._pending = exits.Pending(
            repr(self), self.exit_timeout, self._handoff.drain, self._losses
        )
        exits.register(self._pending)

    def __repr__(self) -> str:
        return f"Publisher({self._opened.repository.url!r}, {self._branch!r})"

    def _how_to_reopen(self) -> str:
        return f"make another with casweights.{self!r}"

    @property
    def version(self) -> SnapshotId | None:
        """The newest durable version of the branch that this publisher knows; None if none."""
        return self._writer.version

    def publish(
        self,
        source: torch.nn.Module | Mapping[str, Any],
        *,
        step: int | None = None,
        message: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish the current values of the tensors, which may change once this returns.

        Args:
            source: A module or a state dict. If names, shapes and dtypes are those of the last
                call, only changes are kept and hashed. Names are published without the prefixes
                of ``torch.compile`` and data parallelism: for a module that is wrapped or contains
                wrapped modules, and for a state dict if all its names have the prefix.
            step: A step number to store in the version's metadata.
            message: Why this version exists.
            metadata: JSON-like values to store with the version.

        Raises:
            ConflictError: Another writer moved the branch. This publisher publishes nothing more:
                open another one, which continues at the new head.
            CasweightsError: The version of an earlier call could not be made durable. The next
                version will include its changes. This call has done nothing: repeat it.
            InvalidInputError: The source cannot be published.
        """
        given = plain_state(source)
        if self._extra_state == "drop":
            given = without_extra_state(given)
        state = StateFile(given, self._cast, self._outline)
        self._outline = state.outline
        values = deepcopy(dict(metadata or {})) | ({} if step is None else {"step": step})
        label = Label(number=step, message=message, metadata=values)
        self._handoff.acquire(state.layout)
        try:
            self._handoff.put(self._capture(state, label))
        except BaseException:
            self._handoff.abandon()
            raise

    def _capture(self, state: StateFile, label: Label) -> Step:
        """Copy everything from a state that the caller may change next, and return it as a step."""
        begin = time.monotonic()
        if self._compare == "cache":
            self._writer.settle()
            version = self._writer.encode(state, label)
            return EncodedStep(label, version, encode_seconds=time.monotonic() - begin)
        mirror = self._handoff.mirror
        if mirror is not None and mirror.layout == state.layout:
            found = mirror.scan(state)
        else:
            # A version in doubt was encoded from the old mirror: settle it before dropping that.
            self._writer.settle()
            self._handoff.mirror = mirror = None  # two mirrors at once need too much memory
            self._handoff.mirror = mirror = Mirror(
                state,
                self._db.config.chunk_size,
                self._db.workers,
                on_device=self._compare == "device",
            )
            found = mirror.first(state)
        return CapturedStep(label, mirror, found, time.monotonic() - begin)

    def _write(self, step: Step) -> None:
        """Turn a step into a version, on the writer's thread."""
        if isinstance(step, CapturedStep):
            try:
                step = self._writer.encode_captured(step)
            finally:  # callers may capture the next state while this one is uploaded
                self._handoff.release_mirror()
        begin = time.monotonic()
        self._writer.write(step)
        stats = step.stats(time.monotonic() - begin)
        self._reporter.published(stats)
        self._upkeep.stored(step.version.snapshot.number, stats.stored_bytes)
        self._report_troubles()

    def _report_troubles(self) -> None:
        """Report the errors of maintenance, on a thread that reports other events, too."""
        for trouble in self._upkeep.troubles():
            self._reporter.warned(*trouble)

    def wait(self, timeout: float | None = None) -> Snapshot | None:
        """Wait until all published states are durable.

        Args:
            timeout: Maximum number of seconds to wait; None for no limit.

        Returns:
            The newest version of the branch; None if the branch has none yet.

        Raises:
            TimeoutError: The states were not durable in time. Writing continues.
            CasweightsError: A version could not be made durable, see `publish`.
        """
        if not self._handoff.drain(timeout):
            raise TimeoutError(f"versions are still being written after {timeout:g} s")
        self._handoff.raise_failure()
        return self._writer.before()

    def _losses(self) -> list[str]:
        """Return a log line for each state that is not stored, see `exits.Pending`."""
        where = f"not stored in branch {self._branch!r} of {self._opened.repository.url}"
        return [f"{where}: {loss}" for loss in self._handoff.losses()]

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        source: torch.nn.Module | Mapping[str, Any],
        *,
        every: int = 1,
    ) -> RemovableHandle:
        """Publish after every step of an optimizer, or after every `every` steps.

        The step number in the metadata counts the steps of the optimizer from this call on.

        Returns:
            A handle; call its `remove` to stop publishing.
        """
        if every < 1:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"every must be at least 1 step, got {every}"
            )
        steps = itertools.count(1)

        def hook(*_: object) -> None:
            step = next(steps)
            if step % every == 0:
                self.publish(source, step=step)

        return optimizer.register_step_post_hook(hook)

    def close(self) -> None:
        """Wait until everything is durable, and end the writer's thread.

        Maintenance ends where it is; the next one continues.

        Raises:
            CasweightsError: A version could not be made durable, see `publish`.
        """
        self._upkeep.stop()
        self._handoff.close()
        self._thread.join()
        self._upkeep.close()
        exits.unregister(self._pending)
        self._opened.close()
        try:
            self._report_troubles()
        finally:
            self._handoff.raise_all()

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
                error.add_note(f"also, a version could not be published: {failure}")


def _checked_timeout(seconds: float) -> float:
    """Return a timeout, or the longest one that threads can wait for."""
    if not seconds >= 0:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"exit_timeout must be at least 0 seconds, got {seconds}"
        )
    return min(seconds, threading.TIMEOUT_MAX)
