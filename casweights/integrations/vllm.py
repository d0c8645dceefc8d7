"""vLLM: replicas that load weights from a store, at the start and while they serve.

vLLM calls `register`, from the entry point group ``vllm.general_plugins``, in each of its
processes. ``--weight-transfer-config '{"backend": "casweights"}'`` then selects the engine, and
``--load-format casweights`` the loader.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from casweights.config import DEFAULT_BRANCH
from casweights.content.arguments import to_list
from casweights.content.plain_names import plain_names, unwrapper
from casweights.content.torch_types import allocate
from casweights.content.weights import Weights
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError, StaleError
from casweights.ids import SnapshotId
from casweights.integrations._loaders import holds
from casweights.opening import open_repository
from casweights.operations.load import load_each
from casweights.sync.subscriber import Subscriber

try:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.model_executor.model_loader.checkpoint_weight_patch import (
        CheckpointWeightPatch,
        load_checkpoint_weight_patches,
    )
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )
except ImportError as error:
    raise ImportError(
        "casweights.integrations.vllm needs vLLM 0.28 or newer: pip install 'casweights[vllm]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import TensorInfo
    from casweights.repository import Repository
    from casweights.sync.patches import Patch

BACKEND = "casweights"
_PATCHABLE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_BATCH_BYTES = 64 << 20  # changes in one call of vLLM; bounds the memory for a large version
_STAGING_BYTES = 64 << 20  # expanded patches on the device; vLLM's default is 512 MiB


def register() -> None:
    """Register the engine and the loader with vLLM. Further calls do nothing."""
    try:
        WeightTransferEngineFactory.register_engine(BACKEND, CasweightsWeightTransferEngine)
    except ValueError:  # registered already
        return
    register_model_loader(BACKEND)(CasweightsModelLoader)


@dataclass
class CasweightsInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """The source of versions, and how to write them.

    Attributes:
        store: Path or URL of the store, for example ``hf://buckets/me/weights``.
        branch: The branch whose head to fetch at the start, if the branch exists.
        sparse: Whether to write only changes if the model permits it.
        memory: Maximum bytes of changes to hold. A version with more changes is also verified
            before a weight is written; the tensors beyond the limit are then written whole.
        include: Patterns of files, or of tensors, to use weights from; by default the files that
            vLLM itself would load, see `casweights.Repository.load`.
    """

    store: str
    branch: str = DEFAULT_BRANCH
    sparse: bool = True
    memory: int = 1 << 30
    include: list[str] | None = None


@dataclass
class CasweightsUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The version of an update.

    Attributes:
        snapshot: The version's ID, as 64 hexadecimal digits.
        store: Path or URL of the store; None for the store that is open.
        expect: ID of the version that the model must hold before; None for any.
    """

    snapshot: str
    store: str | None = None
    expect: str | None = None


class _Source(NamedTuple):
    """An open store, with the rule that selects weights and the subscriber of the copy."""

    store: Repository
    weights: Weights
    subscriber: Subscriber


class CasweightsWeightTransferEngine(
    WeightTransferEngine[CasweightsInitInfo, CasweightsUpdateInfo]  # type: ignore[misc]
):
    """Brings a worker's model from version to version, in place.

    vLLM fuses, shards and pads the weights that it serves, so differences between versions cannot
    be applied to them. The engine keeps a copy of the version in host memory, in checkpoint layout
    and under plain names: one copy of the model in each worker process. All changes of an update
    are fetched, decoded and verified before a weight is written.

    Only changes are written (the model is *patched*) if the model's loader copies the bits of a
    checkpoint unchanged, and the model holds no tensors derived from them. The engine determines
    this once, by loading a version with a comparison in place of each write. All other models
    (quantized, or reordered for a kernel) are loaded whole from the copy at each update.

    vLLM calls `init_transfer_engine` first; then, for each update, `start_weight_update`,
    `receive_weights` and `finish_weight_update`; and `shutdown` at the end.
    """

    init_info_cls = CasweightsInitInfo
    update_info_cls = CasweightsUpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module
    ) -> None:
        """Create the engine of a loaded model; vLLM calls this."""
        super().__init__(config, vllm_config, device, model)
        self._source: _Source | None = None
        self._info = CasweightsInitInfo(store="")
        self._host: dict[str, torch.Tensor] = {}  # the copy, by plain name
        self._layout: dict[str, TensorInfo] = {}  # of the copy
        self._version: SnapshotId | None = None
        self._direct: bool | None = None  # whether the model can be patched; None if not known yet

    @property
    def version(self) -> SnapshotId | None:
        """The version that the model holds, bit for bit; None if it is unknown."""
        return self._version

    def init_transfer_engine(self, init_info: CasweightsInitInfo) -> None:
        """Open the store and fetch the head of the branch into the copy; no weight is written.

        Raises:
            NotFoundError: The store does not exist.
            IntegrityError: The store is damaged.
        """
        self.shutdown()
        self._info = init_info
        source = self._open(init_info.store)
        head = source.subscriber.head()
        if head is not None:
            self._has_room(source, head)
            source.subscriber.sync(self._host, to=head)
            self._adopt(head)

    def start_weight_update(self) -> None:
        """Do nothing: only `receive_weights` knows the changes, and so how to write them."""

    def finish_weight_update(self) -> None:
        """Do nothing: an update is complete when `receive_weights` returns."""

    @torch.no_grad()
    def receive_weights(self, update_info: CasweightsUpdateInfo) -> None:
        """Bring the model to a version.

        Raises:
            StaleError: The model does not hold `expect`. It is unchanged.
            NotFoundError: The version does not exist. The model is unchanged.
            IntegrityError: The store is damaged. The model is unchanged.
        """
        target = _parse_version(update_info.snapshot)
        if update_info.expect is not None and update_info.expect != str(self._version):
            raise StaleError(
                ErrorCode.STALE,
                f"the model is at {self._version or 'an unknown version'}, not at "
                f"{update_info.expect}: leave out `expect` to start from any version",
            )
        source = self._open(update_info.store or self._info.store)
        if target == self._version:
            return
        # Patches lead from the copy's version to the target, so the model must hold the former.
        in_step = self._has_room(source, target) and source.subscriber.version == self._version
        if in_step and self._version and self._direct and self._info.sparse:
            self._patch(source.subscriber, target)
            return
        source.subscriber.sync(self._host, to=target)
        # vLLM may have loaded these weights itself: then nothing has to be written.
        if self._version is None and self._adopt(target):
            return
        self._write_whole()
        if self._direct is None and self._info.sparse:
            self._direct = holds(self.model, self._host)
        self._version = target

    def shutdown(self) -> None:
        """Close the store and free the copy; the model is unchanged."""
        source, self._source = self._source, None
        self._host, self._layout, self._version = {}, {}, None
        if source is not None:
            source.subscriber.close()
            source.store.close()

    def _open(self, url: str) -> _Source:
        """Return the open store, or open another one in its place and drop the copy."""
        if self._source is None or url != self._info.store:
            if not url:
                raise InvalidInputError(
                    ErrorCode.BAD_STATE, "no store is open: initialize the engine, or name `store`"
                )
            self.shutdown()
            self._info = info = replace(self._info, store=url)
            store = open_repository(url)
            include = None if info.include is None else to_list(info.include)
            self._source = _Source(
                store,
                Weights(store.database, include),
                Subscriber(store, info.branch, memory=info.memory, include=include),
            )
        return self._source

    def _has_room(self, source: _Source, target: SnapshotId) -> bool:
        """Return whether the copy has the tensors of a version; allocate an empty copy if not."""
        tensors = source.weights.of(source.store.snapshot(target)).tensors
        layout = {plain: tensors[name].info for name, plain in plain_names(tensors).items()}
        if layout == self._layout:
            return True
        self._host, self._layout = {}, {}  # free the old copy first
        self._host = {name: allocate(info)[0] for name, info in layout.items()}
        self._layout = layout
        return False

    def _adopt(self, target: SnapshotId) -> bool:
        """Return whether the model holds the copy's version and can be patched; record it if so."""
        if self._direct is not False and self._info.sparse and holds(self.model, self._host):
            self._direct, self._version = True, target
            return True
        return False

    def _patch(self, subscriber: Subscriber, target: SnapshotId) -> None:
        """Write only the changes; the copy is complete before the first weight is written."""
        for batch in _batches(subscriber.patches(self._host, to=target)):
            self._version = None
            sparse = [patch for patch in batch if _is_sparse(patch)]
            load_checkpoint_weight_patches(
                self.model,
                [_to_vllm(patch, self.device) for patch in sparse],
                max_chunk_bytes=_STAGING_BYTES,
                validate_unique_indices=False,  # they ascend, so they are unique
            )
            whole = {patch.name for patch in batch} - {patch.name for patch in sparse}
            if whole:
                self.model.load_weights((name, self._host[name]) for name in sorted(whole))
        self._version = target

    def _write_whole(self) -> None:
        """Load the whole copy into the model."""
        self._version = None
        initialize_layerwise_reload(self.model)
        with _any_subset():
            self.model.load_weights(iter(self._host.items()))
        finalize_layerwise_reload(self.model, self.model_config)


class CasweightsModelLoader(BaseModelLoader):  # type: ignore[misc]
    """Loads a model from a version, tensor by tensor, and verifies each one before its use.

    ``--model-loader-extra-config '{"store": "hf://buckets/me/weights", "ref": "main"}'``

    It loads the same files as `casweights.Repository.load`, unless ``"include"``, a list of
    patterns, selects others.
    """

    def __init__(self, load_config: Any) -> None:
        """Read the extra config.

        Raises:
            InvalidInputError: The extra config names no store, or has unknown keys or values.
        """
        super().__init__(load_config)
        extra = dict(load_config.model_loader_extra_config or {})
        self._url, self._ref = extra.pop("store", ""), extra.pop("ref", DEFAULT_BRANCH)
        include = extra.pop("include", None)
        known = not extra and (include is None or _are_patterns(include))
        if not known or not isinstance(self._url, str) or not self._url:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                """--load-format casweights needs --model-loader-extra-config '{"store": "...", """
                f""""ref": "...", "include": [...]}}', got """
                f"{load_config.model_loader_extra_config!r}",
            )
        self._include = None if include is None else to_list(include)

    def download_model(self, model_config: Any) -> None:
        """Check that the version exists; the disk cache keeps the objects read.

        Raises:
            NotFoundError: The store or the version does not exist.
        """
        with open_repository(self._url) as store:
            self._find(store)

    def get_all_weights(
        self, model_config: Any, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the plain names and tensors of the version's weights, one at a time.

        Raises:
            InvalidInputError: The version has several candidates for its weight files.
        """
        with open_repository(self._url) as store:
            weights = Weights(store.database, self._include).of(self._find(store))
            plain = plain_names(weights.tensors)
            stored = [weights.tensors[name].stored for name in plain]
            yield from zip(plain.values(), load_each(store.database, stored), strict=True)

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Load the version's weights into a model.

        Raises:
            NotFoundError: The version does not exist, or lacks some of the model's weights.
            IntegrityError: The store is damaged.
        """
        loaded = model.load_weights(self.get_all_weights(model_config, model))
        if loaded is None or model_config.quantization is not None:
            return  # names are not reported, or are those of quantized tensors
        unwrap = unwrapper(model)
        wanted = {unwrap(name) for name, _ in model.named_parameters()}
        missing = wanted.difference(map(unwrap, loaded))
        if missing:
            raise NotFoundError(
                ErrorCode.TENSOR_NOT_FOUND,
                f"{self._ref!r} lacks {len(missing)} weights of the model, among them "
                f"{min(missing)!r}",
            )

    def _find(self, store: Repository) -> Snapshot:
        """Return the version to load.

        Several ranks need its ID: a branch may move before all of them have resolved it.
        """
        snapshot = store.snapshot(self._ref)
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        if not alone and str(snapshot.id) != self._ref:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"several ranks load {self._ref!r}, which may move between their reads: name the "
                f"version by its ID, for example {snapshot.id}",
            )
        return snapshot


def _are_patterns(value: object) -> bool:
    """Whether a value is a pattern or a list of patterns."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def _batches(patches: Iterable[Patch]) -> Iterator[list[Patch]]:
    """Group patches into batches of about `_BATCH_BYTES`, in order."""
    batch: list[Patch] = []
    nbytes = 0
    for patch in patches:
        batch.append(patch)
        nbytes += patch.values.nbytes + (0 if patch.indices is None else patch.indices.nbytes)
        if nbytes >= _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _parse_version(text: str) -> SnapshotId:
    """Return the ID in an update; raise an `InvalidInputError` if it is malformed."""
    try:
        return SnapshotId.from_hex(text)
    except ValueError as error:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"snapshot: {error}") from error


def _is_sparse(patch: Patch) -> bool:
    """Whether vLLM can write a patch element by element."""
    # vLLM marks elements that stay with NaN, so patches must not contain one.
    return (
        patch.indices is not None
        and patch.dtype in _PATCHABLE_DTYPES
        and not bool(torch.isnan(patch.values).any())
    )


def _to_vllm(patch: Patch, device: torch.device) -> CheckpointWeightPatch:
    """Return a patch in vLLM's own type, on a device."""
    return CheckpointWeightPatch(
        name=patch.name,
        shape=tuple(patch.shape),
        dtype=patch.dtype,
        values=patch.values.to(device),
        indices=None if patch.indices is None else patch.indices.to(device),
    )


@contextmanager
def _any_subset() -> Iterator[None]:
    """Accept versions without a model's extra prediction heads, as vLLM's own engines do."""
    try:
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
    except ImportError:  # before 0.33
        yield
    else:
        with disable_mtp_completeness_check():
            yield
