"""Transformers: checkpoints of a `Trainer` as versions, resumed or loaded again in one call."""

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

_MAX_CONFIG_BYTES = 16 << 20  # real ones have some kilobytes
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx")
# Last parts of the names of classes that read no weights, including the ``Auto`` classes.
_WEIGHTLESS_ENDINGS = ("Config", "Tokenizer", "TokenizerFast", "Processor", "Extractor")


class CasweightsCallback(TrainerCallback):
    """Commits every checkpoint that a `Trainer` saves, as one version of the whole directory.

    Weights, optimizer, scheduler, random states and ``trainer_state.json`` are stored as the bytes
    they are; nothing is unpickled. The version before it on the branch is its parent, so only what
    changed is stored, and ``save_total_limit`` may delete local checkpoints as it likes. A
    version's metadata has ``step``, ``epoch`` and, once one was logged, ``loss``.

    Training waits until the version is durable. With several processes the first one commits, when
    all have saved: they must save into one file system.

    Args:
        store: Where to; a store at a path or URL is opened when training begins, in the
            committing process alone.
        branch: The branch that the checkpoints go to. One run has it for itself: a branch that is
            there already is refused, unless this run made its head, resumes from it, or names it
            as its `parent`.
        parent: The version that the first checkpoint comes after: the one that training resumes
            from, or the model that it fine-tunes. A new branch begins there.
        message: The message of each version; by default ``step N``.
        author: Who trains.
        metadata: JSON-like values to keep with each version.
        compression: See `Repository.commit`.
        on_error: Whether a storage that fails ends the training, or is a warning in the log; the
            next save commits what is there then.

    Attributes:
        snapshot: The newest version; None before the first, and in processes that do not commit.

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
                ErrorCode.BAD_ARGUMENT, f"on_error={on_error!r}: choose 'raise' or 'warn'"
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
        self._line: SnapshotId | None = None  # the head that this run made, or goes on from
        self._in_doubt = False  # whether a version that failed has become the head after all
        self.snapshot: Snapshot | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the store and find the place of this run on the branch, before the first step.

        Raises:
            NotFoundError: There is no store, or no version `parent`.
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
                f"branch {self._branch!r} is there already, at {head}, and this run does not go "
                "on from that version: choose another branch, or resume from it with resume(), "
                f"or pass parent={self._branch!r} to put the checkpoints after it",
            )
        self._line = head
        name_run(state, self._branch)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit the checkpoint that was saved just now.

        Raises:
            InvalidInputError: There is no such checkpoint, or it changed meanwhile.
            ConflictError: Another writer moved the branch meanwhile; so it is at every save from
                then on.
            StoreError: The store could not be written, and that is no warning.
        """
        if args.distributed_state is not None:  # the others have states and shards to write
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
        """Close the store, unless it was passed open."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _repository(self) -> Repository:
        if self._opened is None:
            self._opened = opened(self._store)
        return self._opened.repository

    def _commit(self, checkpoint: Path, state: TrainerState) -> Snapshot:
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
            base=db.snapshots.load(before, with_locations=True) if before else None,
            compression=self._compression,
        )
        self._line, self._in_doubt = snapshot.id, False
        return snapshot

    def _check_line(
        self, repository: Repository, head: SnapshotId | None, state: TrainerState
    ) -> None:
        """Refuse a head that this run did not make."""
        if head == self._line:
            return
        if self._in_doubt and is_from_run(repository, head, self._branch, state):
            return
        raise ConflictError(
            ErrorCode.REF_MOVED,
            f"branch {self._branch!r} was moved by another writer, from "
            f"{self._line or 'nowhere'} to {head or 'nowhere'}: step {state.global_step} is in "
            "the checkpoint's directory and not in the store. Give every run a branch of its own",
        )


def _progress(state: TrainerState) -> dict[str, Any]:
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    progress: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch}
    return progress | ({"loss": float(losses[-1])} if losses else {})


def resume(store: StoreLike, ref: Ref, output_dir: str | os.PathLike[str]) -> str:
    """Put a `Trainer`'s checkpoint back into place.

    With several processes, call it in ``with args.main_process_first():``.

    Args:
        store: The store, or its path or URL.
        ref: The version; of a `CasweightsCallback`, or any commit of a checkpoint's directory.
        output_dir: The ``output_dir`` of the `Trainer`.

    Returns:
        ``output_dir/checkpoint-N``, which is exactly the version now, for
        ``trainer.train(resume_from_checkpoint=...)``.

    Raises:
        NotFoundError: No such version.
        ConflictError: The directory is there and has files that no version of the store has: they
            would be lost. It is as it was.
        InvalidInputError: The version is no checkpoint of a `Trainer`.
        IntegrityError: The store is damaged.
        StoreError: The store could not be read, or the directory not be written.
    """
    with opened(store) as repository:
        snapshot = repository.snapshot(ref)
        directory = Path(output_dir, f"checkpoint-{_global_step(repository, snapshot)}")
        repository.checkout(snapshot, directory, delete=True)
    return str(directory)


def _global_step(repository: Repository, snapshot: Snapshot) -> int:
    step = trainer_state(repository, snapshot).get("global_step")
    if type(step) is int and step >= 0:  # it becomes part of a path
        return step
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT,
        f"version {snapshot.id} is no checkpoint of a Trainer: it has no trainer_state.json with a "
        "global_step. Load it with from_pretrained instead",
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

    Only the files that it may need are read from the store: no optimizer, no other state of the
    training and, for a tokenizer, processor or config, no weights.

    Args:
        store: The store, or its path or URL.
        ref: The version.
        cls: What to load: a model, tokenizer, processor or config class, ``Auto`` classes
            included. By default the model class that ``config.json`` names.
        directory: Where to keep the files, in a folder for each version; what is there already is
            not fetched again. By default they are gone afterwards, and ``name_or_path`` of what
            was loaded is empty.
        include: Patterns of the files to take weights from, where a version has several sets of
            them. All other files are there in any case.
        **kwargs: Go to ``cls.from_pretrained``. Of a version with several models in folders,
            ``subfolder`` chooses one, and only that is fetched.

    Returns:
        What ``cls.from_pretrained`` returns.

    Raises:
        NotFoundError: No such version, or nothing in it to load from.
        InvalidInputError: It is not clear which files have the weights, or an index is wrong.
        UnsupportedError: The model class that ``config.json`` names is not in transformers.
        IntegrityError: The store is damaged.
        StoreError: The store could not be read, or the directory not be written.
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
    """A version without the weights in files that do not match; an index stays with its shards.

    Raises:
        NotFoundError: No weights match.
    """
    weights = [file.path for file in snapshot.files if name_matches(file.path, _WEIGHT_FILES)]
    left_out = {path for path in weights if not matches(path, include)}
    if left_out.issuperset(weights):
        raise NotFoundError(
            ErrorCode.FILE_NOT_FOUND,
            f"no file with weights matches {' or '.join(map(repr, include))}",
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
        f"config.json names {name!r}, which is no model of this transformers: pass `cls`",
    )


def _forget_path(loaded: Any) -> None:
    """Leave no path of a directory that is gone, which would go on into adapters' configs."""
    for part in (loaded, getattr(loaded, "config", None)):
        if part is not None and hasattr(part, "name_or_path"):
            part.name_or_path = ""
