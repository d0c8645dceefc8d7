"""Identifying the run of a `Trainer` that a version is a checkpoint of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from casweights.errors import ErrorCode, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from transformers import TrainerState

    from casweights.ids import SnapshotId
    from casweights.repository import Ref, Repository

_STATE = "trainer_state.json"
_MAX_STATE = 64 << 20  # bytes; half a million log entries
RUNS = "casweights"  # key in a state's stateful_callbacks; its value maps branches to run IDs


def name_run(state: TrainerState, branch: str) -> None:
    """Give a run an ID on a branch, unless it resumes from a checkpoint that already has one.

    The ID is part of the state, so that every later checkpoint contains it.
    """
    callbacks: Any = state.stateful_callbacks
    callbacks.setdefault(RUNS, {}).setdefault(branch, uuid4().hex)


def trainer_state(repository: Repository, ref: Ref) -> dict[str, Any]:
    """Read the `Trainer` state of a version; empty if the version has no valid state.

    Raises:
        InvalidInputError: The state is larger than any that a `Trainer` writes.
    """
    version = repository.snapshot(ref)
    size = next((file.size for file in version.files if file.path == _STATE), 0)
    if size > _MAX_STATE:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{_STATE} of version {version.id} has {size} bytes, above the limit of {_MAX_STATE}: "
            "check the version out and resume from the directory",
        )
    try:
        state = json.loads(b"".join(repository.read(version.id, _STATE)))
    except (NotFoundError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def is_from_run(
    repository: Repository, version: SnapshotId | None, branch: str, state: TrainerState
) -> bool:
    """Return whether a version is a checkpoint of a run, made at its present step or before.

    The version must have the same run ID on the branch, and the run's log must begin with the
    version's log. If neither has an ID, the log must not be empty.

    Args:
        repository: The store.
        version: The version.
        branch: The branch of the version.
        state: The present state of the run, or the state from which it resumed.
    """
    theirs = {} if version is None else trainer_state(repository, version)
    step, logged = theirs.get("global_step"), theirs.get("log_history")
    if type(step) is not int or not isinstance(logged, list) or step > state.global_step:
        return False
    run = _run(theirs.get("stateful_callbacks"), branch)
    if run != _run(state.stateful_callbacks, branch) or not (run or logged):
        return False
    return _canonical(logged) == _canonical(state.log_history[: len(logged)])


def _canonical(logged: list[Any]) -> str:
    """Return a text that is equal for equal logs: keys have no order, and NaN equals NaN."""
    return json.dumps(logged, sort_keys=True)


def _run(callbacks: Any, branch: str) -> Any:
    """Return the run ID on a branch; None if the state has none."""
    runs = callbacks.get(RUNS) if isinstance(callbacks, dict) else None
    return runs.get(branch) if isinstance(runs, dict) else None
