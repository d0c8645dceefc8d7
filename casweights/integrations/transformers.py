"""Transformers: checkpoints of a `Trainer` as versions, to resume from or to load."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casweights.config import DEFAULT_EXCLUDE
from casweights.content.arguments import (
    check_compression,
    to_list,
    to_sources,
    to_utc,
)
from casweights.content.shard_index import is_index, single_file
from casweights.content.source_tree import matches
from casweights.content.weights import Weights
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from casweights.integrations._opening import checked_out, name_matches
from casweights.integrations._runs import is_from_run, name_run, trainer_state
from casweights.opening import opened
from casweights.operations.commit import Description, commit

try:
    import transformers
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "casweights.integrations.transformers needs transformers: "
        "pip install 'casweights[transformers]'"
    ) from error

from casweights.integrations._names import key_mapping

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from casweights.config import Compression
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.opening import OpenedStore, StoreLike
    from casweights.repository import Ref, Repository

_log = logging.getLogger(__name__)

_MAX_CONFIG_BYTES = 16 << 20  # real files have a few kilobytes
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx")
# Last parts of the names of classes that read no weights, including the ``Auto`` classes.
_WEIGHTLESS_ENDINGS = ("Config", "Tokenizer", "TokenizerFast", "Processor", "Extractor")


class CasweightsCallback(TrainerCallback):
    """Commits every checkpoint that a `Trainer` saves, as one version of the whole directory.

    Weights, optimizer, scheduler, random states and ``trainer_state.json`` are stored byte for
    byte, without unpickling. The parent of a version is the one before it on the branch, so only
    changes are stored, and ``save_total_limit`` may delete any local checkpoint. A version's
    metadata has ``step``, ``epoch`` and, once a loss was logged, ``loss``.

    Training waits until the version is durable. With several processes, the first one commits after
    all of them have saved: they must save to one file system.

    Args:
        store: An open store, or the path or URL of one, which is opened when training begins, and
            only in the process that commits.
        branch: The branch for the checkpoints. It belongs to one run: a branch that exists already
            is refused, unless this run made its head, resumes from it, or names it as its `parent`.
        parent: The version before the first checkpoint: the one from which training resumes, or
            the model to fine-tune. A new branch begins there.
        message: The message of each version; by default ``step N``.
        author: The author of the versions.
        metadata: JSON-like values to store with each version.
        compression: How chunks without a base are stored, see `Repository.commit`.
        on_error: Whether a failing store ends the training (``"raise"``) or is logged as a warning
            (``"warn"``). After a warning, the next save commits its own checkpoint as usual.

    Attributes:
        snapshot: The newest version; None before the first one, and in processes that do not
            commit.

    Example:
        >>> trainer = Trainer(
        ...     model, args, callbacks=[CasweightsCallback("hf://buckets/me/weights", "run-7")]
        ... )
    """

    def __init__(
        self,
        store: StoreLike,
        branch: str = "main",
        *,
        parent: Ref | None = None,
        message: str = "",
        author: str = "",
        metadata: Mapping[str, Any] | None = None,
        compression: Compression = "auto",
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"on_error must be 'raise' or 'warn', got {on_error!r}"
            )
        self._store = store
        self._branch = branch
        self._parent = parent
        self._message = message
        self._author = author
        self._metadata = dict(metadata or {})
        self._compression = check_compression(compression)
        self._on_error = on_error
        self._opened: OpenedStore | None = None
        self._line: SnapshotId | None = None  # the head that this run made, or continues from
        self._in_doubt = False  # whether a version whose commit failed may have become the head
        self.snapshot: Snapshot | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the store, and check before the first step that this run may move the branch.

        Raises:
            NotFoundError: The store or the version `parent` does not exist.
            ConflictError: The branch has versions of another run.
            StoreError: The storage failed.
        """
        if not state.is_world_process_zero:
            return
        repository = self._repository()
        if self._parent is not None:
            self._parent = repository.resolve(self._parent)
        head = repository.branches().get(self._branch)
        ours = head in (None, self._line, self._parent)
        if not ours and not is_from_run(repository, head, self._branch, state):
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"branch {self._branch!r} already exists, at {head}, and this run does not "
                "continue from that version: choose another branch, or resume from the version "
                f"with resume(), or pass parent={self._branch!r} to put the checkpoints after it",
            )
        self._line = head
        name_run(state, self._branch)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit the checkpoint that was just saved.

        Raises:
            InvalidInputError: The checkpoint does not exist, or it changed during the commit.
            ConflictError: Another writer moved the branch. Every later save raises it again.
            StoreError: The store could not be written, and `on_error` is ``"raise"``.
        """
        # The other processes may still be writing their random states and shards.
        if args.distributed_state is not None:
            args.distributed_state.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        try:
            checkpoint = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            self.snapshot = self._commit(checkpoint, state)
        except StoreError as error:
            self._in_doubt = True
            if self._on_error == "raise":
                raise
            _log.warning("step %d is not in the store: %s", state.global_step, error)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the store if the callback opened it."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _repository(self) -> Repository:
        """Return the store; open it if necessary."""
        if self._opened is None:
            self._opened = opened(self._store)
        return self._opened.repository

    def _commit(self, checkpoint: Path, state: TrainerState) -> Snapshot:
        """Commit the directory of a checkpoint to the branch."""
        repository = self._repository()
        db = repository.database
        head = db.refs.head(self._branch)
        before = None if head is None else head.snapshot
        self._check_line(repository, before, state)
        if before is None and self._parent is not None:
            before = repository.resolve(self._parent)
        snapshot = commit(
            db,
            to_sources(checkpoint, DEFAULT_EXCLUDE, ()),
            Description(
                parents=(before,) if before else (),
                time=to_utc(None),
                author=self._author,
                message=self._message or f"step {state.global_step}",
                metadata=self._metadata | _progress(state),
            ),
            branch=self._branch,
            head=head,
            parent=db.snapshots.load(before, with_locations=True) if before else None,
            compression=self._compression,
        )
        self._line, self._in_doubt = snapshot.id, False
        return snapshot

    def _check_line(
        self, repository: Repository, head: SnapshotId | None, state: TrainerState
    ) -> None:
        """Check that this run made the head of the branch, or continues from it.

        Raises:
            ConflictError: Another writer moved the branch.
        """
        if head == self._line:
            return
        # After a failed commit, the head may be this run's version nevertheless.
        if self._in_doubt and is_from_run(repository, head, self._branch, state):
            return
        raise ConflictError(
            ErrorCode.REF_MOVED,
            f"branch {self._branch!r} was moved by another writer, from "
            f"{self._line or 'no version'} to {head or 'no version'}: step {state.global_step} is "
            "in the checkpoint's directory, but not in the store. Use a separate branch for each "
            "run",
        )


def _progress(state: TrainerState) -> dict[str, Any]:
    """Return the step, the epoch, and the last logged loss if there is one."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    progress: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch}
    return progress | ({"loss": float(losses[-1])} if losses else {})


def resume(store: StoreLike, ref: Ref, output_dir: str | os.PathLike[str]) -> str:
    """Check a `Trainer`'s checkpoint out into its directory, so that training can resume from it.

    With several processes, call it inside ``with args.main_process_first():``.

    Args:
        store: An open store, or the path or URL of one.
        ref: The version: one of a `CasweightsCallback`, or any commit of a checkpoint's directory.
        output_dir: The ``output_dir`` of the `Trainer`.

    Returns:
        ``output_dir/checkpoint-N``, whose content is now exactly the version, for
        ``trainer.train(resume_from_checkpoint=...)``.

    Raises:
        NotFoundError: The version does not exist.
        ConflictError: The directory exists and has files that no version of the store contains:
            they would be lost. The directory is unchanged.
        InvalidInputError: The version is not a checkpoint of a `Trainer`.
        IntegrityError: The store is damaged.
        StoreError: The store could not be read, or the directory could not be written.
    """
    with opened(store) as repository:
        snapshot = repository.snapshot(ref)
        directory = Path(output_dir, f"checkpoint-{_global_step(repository, snapshot)}")
        repository.checkout(snapshot, directory, delete=True)
    return str(directory)


def _global_step(repository: Repository, snapshot: Snapshot) -> int:
    """Return the step of the checkpoint in a version, from its ``trainer_state.json``."""
    step = trainer_state(repository, snapshot).get("global_step")
    if type(step) is int and step >= 0:  # it becomes part of a path
        return step
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT,
        f"version {snapshot.id} is not a checkpoint of a Trainer: it has no trainer_state.json "
        "with a global_step. Load it with from_pretrained instead",
    )


def from_pretrained(
    store: StoreLike,
    ref: Ref = "main",
    cls: Any = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    include: Sequence[str] | None = None,
    **kwargs: Any,
) -> Any:
    """Load a version with ``cls.from_pretrained``.

    Only the files that the class may need are read from the store: no optimizer or other training
    state and, for a tokenizer, processor or config, no weights.

    Example:
        >>> model = from_pretrained("hf://buckets/me/weights", "run-7")
        >>> tokenizer = from_pretrained("hf://buckets/me/weights", "run-7", AutoTokenizer)

    Args:
        store: An open store, or the path or URL of one.
        ref: The version.
        cls: The class to load: a model, tokenizer, processor or config class, including ``Auto``
            classes. By default the model class that ``config.json`` names.
        directory: The directory in which to keep the files, in a folder for each version; files
            that it has already are not fetched again. By default the files are removed afterwards,
            and ``name_or_path`` of the loaded object is empty.
        include: Patterns of the files with the weights to load, if a version has several sets of
            weights. Files that are not weights are available in any case.
        **kwargs: Arguments for ``cls.from_pretrained``. In a version with several models in
            folders, ``subfolder`` chooses one, and only its files are fetched.

    Returns:
        The return value of ``cls.from_pretrained``.

    Raises:
        NotFoundError: The version does not exist, or has no files to load from.
        InvalidInputError: The version has several candidates for its weight files, or an index is
            wrong.
        UnsupportedError: Transformers lacks the model class that ``config.json`` names.
        IntegrityError: The store is damaged.
        StoreError: The store could not be read, or the directory could not be written.
    """
    subfolder = kwargs.get("subfolder") or ""
    weightless = cls is not None and cls.__name__.endswith(_WEIGHTLESS_ENDINGS)
    skip = _WEIGHT_FILES if weightless else ()
    with opened(store) as repository, ExitStack() as stack:
        snapshot = repository.snapshot(ref)
        if include is not None:
            snapshot = _with_weights(snapshot, to_list(include))
        if not weightless and _reads_safetensors(kwargs):
            Weights(repository.database).check(snapshot, subfolder, kwargs.get("variant"))
        folder = stack.enter_context(
            checked_out(repository, snapshot, directory, subfolder=subfolder, skip=skip)
        )
        if not weightless and not kwargs.get("gguf_file"):
            kwargs = key_mapping(folder / subfolder, kwargs) | kwargs
        loaded = (cls or _model_class(folder / subfolder)).from_pretrained(folder, **kwargs)
    if directory is None:
        _forget_path(loaded[0] if isinstance(loaded, tuple) else loaded)
    return loaded


def _reads_safetensors(kwargs: Mapping[str, Any]) -> bool:
    return kwargs.get("use_safetensors") is not False and not kwargs.get("gguf_file")


def _with_weights(snapshot: Snapshot, include: Sequence[str]) -> Snapshot:
    """Return a version without the weight files that do not match some patterns.

    An index of shards is also left out if the only weights kept are its unsharded counterpart.

    Raises:
        NotFoundError: No weights match.
    """
    weights = [file.path for file in snapshot.files if name_matches(file.path, _WEIGHT_FILES)]
    left_out = {path for path in weights if not matches(path, include)}
    if left_out.issuperset(weights):
        raise NotFoundError(
            ErrorCode.FILE_NOT_FOUND,
            f"no weight file matches {' or '.join(map(repr, include))}",
        )
    kept = {path for path in weights if path not in left_out}
    left_out |= {
        file.path
        for file in snapshot.files
        if is_index(file.path)
        and not matches(file.path, include)
        and all(path == single_file(file.path) for path in kept)
    }
    return replace(snapshot, files=tuple(f for f in snapshot.files if f.path not in left_out))


def _model_class(folder: Path) -> Any:
    """Return the model class that the ``config.json`` in a folder names."""
    try:
        with (folder / "config.json").open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        whole = content if len(content) <= _MAX_CONFIG_BYTES else b""
        name = str(json.loads(whole)["architectures"][0])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise NotFoundError(
            ErrorCode.FILE_NOT_FOUND,
            "the version has no config.json that names an architecture: pass `cls`, or load an "
            "adapter with casweights.integrations.peft.load_adapter",
        ) from error
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    raise UnsupportedError(
        ErrorCode.UNSUPPORTED,
        f"config.json names {name!r}, which is not a model class of this transformers: pass `cls`",
    )


def _forget_path(loaded: Any) -> None:
    """Clear ``name_or_path`` of a loaded object whose directory is removed."""
    # PEFT would copy the path into the configs of adapters.
    for part in (loaded, getattr(loaded, "config", None)):
        if part is not None and hasattr(part, "name_or_path"):
            part.name_or_path = ""
