"""PEFT: adapters as small versions that name their base, and load together with it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from casweights.content.plain_names import unwrapper
from casweights.errors import ErrorCode, InvalidInputError
from casweights.sync.models import plain_state
from casweights.system.files import to_path

try:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
except ImportError as error:
    raise ImportError(
        "casweights.integrations.peft needs peft: pip install 'casweights[peft]'"
    ) from error

from casweights.integrations._adapters import as_peft, make_fit, make_plain
from casweights.integrations._opening import checked_out
from casweights.integrations.transformers import from_pretrained
from casweights.opening import opened

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from casweights.format.manifest import Snapshot
    from casweights.opening import StoreLike
    from casweights.repository import Ref, Repository

_CONFIG = "adapter_config.json"


def commit_adapter(
    store: StoreLike,
    adapter: torch.nn.Module | str | os.PathLike[str],
    branch: str,
    *,
    base: Ref,
    adapter_name: str = "default",
    message: str = "",
    author: str = "",
    metadata: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Snapshot:
    """Commit an adapter, without its base.

    The version contains the files that ``save_pretrained`` writes, and its metadata names the base:
    ``metadata["base"]`` is a snapshot ID. A new branch begins at the base, so that a push of the
    adapter includes the base unless the other store has it already.

    Args:
        store: An open store, or the path or URL of one. It must contain the base.
        adapter: The `PeftModel` with the adapter, or a directory that ``save_pretrained`` wrote.
            For a model, tensors are stored without the prefixes of ``torch.compile`` and data
            parallelism in their names; a directory is stored as it is.
        branch: The branch to move; created if it does not exist.
        base: The version of the model on which the adapter was trained.
        adapter_name: The name of the adapter in the model.
        message: Why this version exists.
        author: The author of the version.
        metadata: JSON-like values to store with the version.
        **kwargs: Arguments for ``save_pretrained``, for example ``save_embedding_layers=True``.

    Raises:
        NotFoundError: The store has no version `base`.
        InvalidInputError: The model has no such adapter, or the directory contains no adapter.
        ConflictError: Another writer moved the branch during the call.
        StoreError: The store could not be written.
    """
    with opened(store) as repository, _saved(adapter, adapter_name, kwargs) as directory:
        base_id = repository.resolve(base)
        return repository.commit(
            directory,
            branch=branch,
            parent=None if branch in repository.branches() else base_id,
            message=message,
            author=author,
            metadata={**(metadata or {}), "base": str(base_id)},
        )


@contextmanager
def _saved(
    adapter: torch.nn.Module | str | os.PathLike[str], name: str, options: dict[str, Any]
) -> Iterator[Path]:
    """Yield a directory with the adapter's files: a temporary one for a model."""
    if (model := as_peft(adapter)) is not None:
        if name not in model.peft_config:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"the model has no adapter {name!r}: choose one of {', '.join(model.peft_config)}",
            )
        with TemporaryDirectory(prefix="casweights-") as temporary:
            model.save_pretrained(temporary, selected_adapters=[name], **options)
            folder = Path(temporary, "" if name == "default" else name)
            make_plain(folder, model)
            yield folder
        return
    directory = to_path(adapter)  # type: ignore[arg-type]  # no module is a path
    if not (directory / _CONFIG).is_file():
        raise InvalidInputError(
            ErrorCode.SOURCE_UNREADABLE,
            f"{directory} contains no adapter: it has no {_CONFIG}",
        )
    yield directory


def load_adapter(
    store: StoreLike,
    ref: Ref,
    model: Any = None,
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    **kwargs: Any,
) -> PeftModel:
    """Load an adapter, and its base as well unless `model` is given.

    Args:
        store: An open store, or the path or URL of one.
        ref: The version of the adapter.
        model: The base for the adapter, or a `PeftModel` to add it to; wrapped or not. By default
            the base is loaded from the version that the adapter's metadata names.
        adapter_name: The name of the adapter in the model.
        is_trainable: Whether to load the adapter for further training.
        **kwargs: Arguments for `casweights.integrations.transformers.from_pretrained`, to load
            the base.

    Returns:
        The model with the adapter; the `PeftModel` itself if `model` is one, or wraps one.

    Raises:
        NotFoundError: The version does not exist.
        InvalidInputError: The version is not an adapter, or it names no base and `model` is not
            given.
        IntegrityError: The store is damaged.
        StoreError: The store could not be read.
    """
    if model is not None and kwargs:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{', '.join(kwargs)}: these arguments load the base, but `model` is the base: leave "
            "them out",
        )
    with opened(store) as repository:
        snapshot = repository.snapshot(ref)
        if _CONFIG not in (file.path for file in snapshot.files):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"version {snapshot.id} is not an adapter: it has no {_CONFIG}",
            )
        if model is None:
            model = from_pretrained(repository, _base(repository, snapshot), **kwargs)
        with checked_out(repository, snapshot) as directory:
            present = as_peft(model)
            make_fit(directory, present or model)
            if present is not None:
                present.load_adapter(directory, adapter_name, is_trainable=is_trainable)
                return present
            return PeftModel.from_pretrained(
                model, directory, adapter_name=adapter_name, is_trainable=is_trainable
            )


def _base(repository: Repository, snapshot: Snapshot) -> Snapshot:
    """Return the version that an adapter's metadata names as its base."""
    name = snapshot.metadata.get("base")
    if not isinstance(name, str):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"the metadata of version {snapshot.id} names no base: pass `model`, or commit the "
            "adapter with commit_adapter",
        )
    return repository.snapshot(name)


def merged_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a model with merged adapters, under the names of its base.

    Publish it to replicas that support no adapters. As in `casweights.Publisher`, names lose the
    prefixes of wrappers (``torch.compile``, data parallelism). No tensor is copied.

    Example:
        >>> model.merge_adapter()
        >>> publisher.publish(merged_state(model))
        >>> model.unmerge_adapter()

    Args:
        model: The `PeftModel`, or a wrapper of it, whose adapters are merged but not unloaded.

    Raises:
        InvalidInputError: `model` is no `PeftModel`, a layer has an adapter that is not merged, or
            two names become one.
    """
    inside = as_peft(model)
    if inside is None:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"pass a PeftModel, got {type(model).__name__}"
        )
    base: torch.nn.Module = inside.get_base_model()
    unwrap = unwrapper(base)
    moved: dict[str, str] = {}  # the new beginning for each beginning of names
    dropped: list[str] = []  # beginnings of names of tensors that are not part of the base
    for path, module in base.named_modules():
        at = f"{plain}." if (plain := unwrap(path)) else ""
        if isinstance(module, BaseTunerLayer):
            if not getattr(module, "merged", False):
                raise InvalidInputError(
                    ErrorCode.BAD_ARGUMENT,
                    f"the adapter of {path!r} is not merged: call model.merge_adapter() first",
                )
            moved[f"{at}base_layer."] = at
            dropped += [f"{at}{name}." for name in module.adapter_layer_names]
        elif isinstance(module, ModulesToSaveWrapper):
            dropped += [f"{at}modules_to_save.{name}." for name in module.modules_to_save]
            moved[f"{at}modules_to_save.{module.active_adapters[0]}."] = at
            dropped.append(f"{at}original_module.")
    state = ((unwrap(name), tensor) for name, tensor in base.state_dict().items())
    return dict(plain_state(_renamed(state, moved, set(dropped) - moved.keys())))


def _renamed(
    state: Iterable[tuple[str, torch.Tensor]], moved: Mapping[str, str], dropped: set[str]
) -> dict[str, torch.Tensor]:
    """Replace or drop tensors by the beginnings of their names.

    Raises:
        InvalidInputError: Two names become one.
    """
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in state:
        beginnings = [name[: n + 1] for n, letter in enumerate(name) if letter == "."]
        if not dropped.isdisjoint(beginnings):
            continue
        start = next((b for b in beginnings if b in moved), "")
        short = moved.get(start, "") + name[len(start) :]
        if short in plain:
            raise InvalidInputError(
                ErrorCode.BAD_STATE, f"two tensors would get the name {short!r}"
            )
        plain[short] = tensor
    return plain
