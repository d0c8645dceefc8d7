"""A running model as the target of a sync: its tensors, their names and their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from casweights.content.plain_names import common_prefix, plain_names
from casweights.content.torch_types import code_of, element_shape, identity
from casweights.content.trees import carried_names, tied_names
from casweights.errors import ErrorCode, InvalidInputError
from casweights.sync.changes import ChunkRef
from casweights.sync.live import LiveTensor, check_writable
from casweights.sync.live_spans import LiveSpan, content, covering, held_chunks, own_spans
from casweights.sync.models import named_tensors, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from casweights.content.spans import TensorContents
    from casweights.content.weights import Weight, Weights
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId
    from casweights.system.buffers import Buffer
    from casweights.system.threads import Workers

KeyMap = Mapping[str, str] | Callable[[str], str]

_MAX_LISTED = 5  # problems of each kind in an error message; more would hide the advice


class Fit(NamedTuple):
    """A live tensor and its wanted content.

    Attributes:
        live: The tensor.
        name: Its plain name in the version, see `plain_names`.
        weight: The tensor of the version.
    """

    live: LiveTensor
    name: str
    weight: Weight

    @property
    def place(self) -> tuple[str, int]:
        """The file, and the number of the tensor's first chunk in it."""
        return self.weight.file.path, self.weight.stored.first

    def spans(self) -> Iterator[LiveSpan]:
        """Yield the tensor's chunks, each with its wanted content."""
        for number, span in enumerate(self.weight.stored.spans()):
            yield LiveSpan(ChunkRef(self.live, number), span)

    def wanted(self) -> Iterator[LiveSpan]:
        """Yield the chunks that do not hold their wanted content."""
        held = self.live.holds
        for number, span in enumerate(self.weight.stored.spans()):
            if held[number] != span:
                yield LiveSpan(ChunkRef(self.live, number), span)


class Target:
    """The tensors of a running model, and the known content of their chunks.

    Call `bind` first, then `fit` and `identify`. Before `identify`, `Fit.wanted` also yields
    chunks whose content is unknown.

    Args:
        chunk_size: Bytes of a chunk.
        hasher: Returns the ID of a chunk's bytes.
        workers: Threads for hashing.
        weights: Finds the weights of versions.
        key_map: Maps a name in the target to the name in the version.
        strict: Whether target and version must have the same tensors.
    """

    def __init__(
        self,
        chunk_size: int,
        hasher: Callable[[Buffer], ChunkId],
        workers: Workers,
        *,
        weights: Weights,
        key_map: KeyMap | None,
        strict: bool,
    ) -> None:
        self._chunk_size = chunk_size
        self._hasher = hasher
        self._workers = workers
        self._weights = weights
        self._strict = strict
        self._key_map = _to_function(key_map)
        self._source: torch.nn.Module | Mapping[str, Any] | None = None
        # Tied parameters are one tensor with several names; the key is its identity.
        self._live: dict[tuple[Any, ...], LiveTensor] = {}
        self._names: dict[tuple[Any, ...], list[str]] = {}
        self._plain: dict[str, str] = {}  # the plain name for each name

    @property
    def tensors(self) -> list[LiveTensor]:
        """The tensors, without duplicates."""
        return list(self._live.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(live.nbytes for live in self._live.values())

    def bind(self, source: torch.nn.Module | Mapping[str, Any] | None = None) -> bool:
        """Look at the tensors of a model, by default those of the last one.

        The content of tensors to which other code wrote becomes unknown.

        Returns:
            Whether the tensors are the same as before, and no other code wrote to them.

        Raises:
            InvalidInputError: No model was given yet, or `source` is not a model.
        """
        source = self._source if source is None else source
        if source is None:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, "there is no target yet: pass a module or a state dict"
            )
        known = self._live
        live: dict[tuple[Any, ...], LiveTensor] = {}
        names: dict[tuple[Any, ...], list[str]] = {}
        tensors = named_tensors(state_of(source))
        plain = plain_names(tensors, source)
        for name, tensor in tensors.items():
            check_writable(tensor, name)
            key = identity(tensor) if tensor.numel() else (name, tensor.dtype, tensor.shape)
            live[key] = known.get(key) or LiveTensor(tensor, self._chunk_size)
            names.setdefault(key, []).append(name)
        same = live.keys() == known.keys() and names == self._names
        self._source, self._live, self._names, self._plain = source, live, names, plain
        for one in live.values():
            if one.was_touched():
                one.forget()
                same = False
        return same

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Do not count writes in this block as writes of other code."""
        # Views of one tensor share a count: a write to one would mark all of them as touched.
        untouched = [live for live in self._live.values() if not live.was_touched()]
        try:
            yield
        finally:
            for live in untouched:
                live.recount()

    def identify(self, fits: Sequence[Fit]) -> None:
        """Hash the chunks whose content is unknown, and record what they hold.

        Small tensors that share a chunk in the version are hashed together. If the target lacks
        one of them, the content of the others stays unknown.

        Args:
            fits: The tensors that the version has.
        """
        unknown = {id(live) for live in self._live.values() if None in live.holds}
        joint = [fit for fit in fits if not fit.weight.stored.is_alone] if unknown else []
        places = {fit.place for fit in joint if id(fit.live) in unknown}
        shared: dict[tuple[str, int], list[LiveSpan]] = {place: [] for place in places}
        for fit in joint:
            if fit.place in shared:
                shared[fit.place] += fit.spans()
        apart = unknown - {id(fit.live) for fit in joint}
        self._hash([whole for group in shared.values() if (whole := covering(group))])
        self._hash([[one] for live in self.tensors if id(live) in apart for one in own_spans(live)])

    def _hash(self, groups: list[list[LiveSpan]]) -> None:
        """Record what the live tensors hold, given spans that cover one chunk each."""
        unknown = [group for group in groups if any(one.is_unknown for one in group)]
        ids = self._workers.map(lambda group: self._hasher(content(group)), unknown)
        for group, found in zip(unknown, ids, strict=True):
            for one in group:
                one.hold(one.span._replace(chunk=found))

    def chunks(self) -> dict[ChunkId, list[LiveSpan]]:
        """Return the known chunks of the target by ID, each as the spans that cover it."""
        return held_chunks(self._live.values())

    def fit(self, version: Snapshot) -> list[Fit]:
        """Match the tensors of the target with those of a version.

        Returns:
            Each tensor of the target that the version has, with its wanted content.

        Raises:
            InvalidInputError: Target and version do not fit each other; the message names the
                tensors. Or the version has several candidates for its weight files.
            NotFoundError: No weights match the included patterns.
        """
        weights, contents = self._weights.of(version), self._weights.contents(version)
        stored = weights.tensors
        ties: dict[str, str] = {}
        carried: set[str] = set()
        for file in weights.files.values():
            ties |= tied_names(file.header.metadata) if file.header else {}
            carried |= carried_names(file.header.metadata) if file.header else set()
        plain = plain_names([*ties, *stored])
        name_of = self._finder(ties | {name: name for name in stored}, plain)
        found: list[Fit] = []
        missing, different, used = [], [], set()
        for key, live in self._live.items():
            found_names = map(name_of, self._names[key])
            known = list(dict.fromkeys(name for name in found_names if name in stored))
            used.update(known)
            if not known:
                missing.append(self._names[key][0])
                continue
            problem = _difference(live.tensor, known, stored, contents)
            if problem:
                different.append(problem)
            found.append(Fit(live, plain[known[0]], stored[known[0]]))
        extra = [name for name in stored if name not in used and name not in carried]
        _check_fit(different, missing if self._strict else [], extra if self._strict else [])
        return found

    def _finder(
        self, known: Mapping[str, str], plain: Mapping[str, str]
    ) -> Callable[[str], str | None]:
        """Return a function from a name in the target to the name of that tensor in a version.

        The function returns None for a tensor that the version lacks.

        Args:
            known: For each name in the version, the name under which the tensor is stored.
            plain: The plain name for each name in the version.
        """
        shortened = {plain[name]: stored for name, stored in known.items()}
        by_rule, by_key_map = {**known, **shortened}, {**shortened, **known}
        mapped = {name: self._key_map(name) for name in self._plain}
        dropped = common_prefix(mapped.values())

        def find(name: str) -> str | None:
            given, short = mapped[name], self._key_map(self._plain[name])
            # A name that the key map changed is meant literally; others follow the plain names.
            table = by_key_map if given != name or short != self._plain[name] else by_rule
            first = (given, short) if given != name else (short, given)
            wanted = (*first, given.removeprefix(dropped))
            return next((table[one] for one in wanted if one in table), None)

        return find


def _difference(
    tensor: torch.Tensor,
    names: list[str],
    stored: Mapping[str, Weight],
    contents: TensorContents,
) -> str | None:
    """Return why a tensor cannot hold the version's tensor of these names; None if it can."""
    here = code_of(tensor), element_shape(tensor)
    for name in names:
        info = stored[name].info
        if (info.dtype.code, info.shape) != here:
            return (
                f"{name!r} is {info.dtype.code} {list(info.shape)} in the version and {here[0]} "
                f"{list(here[1])} in the target"
            )
        if not contents.same(stored[name].stored, stored[names[0]].stored):
            return (
                f"{names[0]!r} and {name!r} are one tensor in the target, but differ in the version"
            )
    return None


def _check_fit(different: list[str], missing: list[str], extra: list[str]) -> None:
    """Raise an error that lists all problems, if there are any."""
    problems = [
        _listed("", different),
        _listed("the version lacks ", [repr(name) for name in missing]),
        _listed("the target lacks ", [repr(name) for name in extra]),
    ]
    said = "; ".join(problem for problem in problems if problem)
    if said:
        hint = " (strict=False ignores them, key_map renames)" if missing or extra else ""
        raise InvalidInputError(
            ErrorCode.TARGET_MISMATCH, f"the version does not fit the target: {said}{hint}"
        )


def _listed(what: str, items: list[str]) -> str:
    """Join the first items after a heading; an empty string without items."""
    if not items:
        return ""
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return what + ", ".join(items[:_MAX_LISTED]) + more


def _to_function(key_map: KeyMap | None) -> Callable[[str], str]:
    """Return a key map as a function; None as the identity."""
    if key_map is None:
        return lambda name: name
    if isinstance(key_map, Mapping):
        names = dict(key_map)
        return lambda name: names.get(name, name)
    return key_map
