"""What trainers that were killed have uploaded twice, and what of that nobody could avoid.

A step that is published again from the same parent has the same packs, so they are not uploaded
again. A small step is one object, whose ID has the time, so its frames may be stored again.
A trainer that skips steps may leave a pack of a step that its successor publishes from another
parent. Then some of its frames do not differ: the list of chunks, which has no base, or a chunk
that is the same in both parents. Looking for a few bytes of them would cost more than it saves.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import KiB
from casweights.content.torch_types import patterns
from casweights.database.packs import list_packs, read_pack_index
from casweights.ids import CarriedPackId, SnapshotId
from tests.faults.sync_states import CONFIG, MODEL, state, step_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights import Repository
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

_MOVING = "moments"  # a tensor whose elements all change at each step
_COSTLY_SHARE, _MAX_COSTLY = 1 / 8, 64 * KiB  # as in docs/design/027

assert MODEL[_MOVING].period == 1


class Made(NamedTuple):
    """What a pack was made for.

    Attributes:
        steps: Its step, together with each step that a frame of the moving tensor has as its base:
            the parent, and an earlier one if the chain was shortened.
        is_published: Whether this step with this parent is part of the branch. For frames that a
            snapshot carries: whether that snapshot is.
    """

    steps: frozenset[tuple[int, int | None]]
    is_published: bool


def check_uploads(repo: Repository) -> None:
    """Check that nothing was uploaded twice that a trainer could know to be in the store."""
    frames = _frames(repo)
    shared: dict[tuple[PackId, PackId], list[Location]] = defaultdict(list)
    for found in frames.values():
        for first, second in combinations(found, 2):
            shared[first.pack, second.pack].append(second)
    made = _made(repo, frames)
    for (one, other), repeated in shared.items():
        story = f"{made[one]} and {made[other]} share {_described(repo, repeated)}"
        assert one != other, f"a pack has a frame twice: {story}"
        is_carried = isinstance(one, CarriedPackId) or isinstance(other, CarriedPackId)
        is_same = made[one].steps == made[other].steps
        assert is_carried or not is_same, f"a step was uploaded twice: {story}"
        both = made[one].is_published and made[other].is_published
        assert not both, f"a published chunk was uploaded twice: {story}"
        assert _costly_bytes(repeated) < _MAX_COSTLY, f"a look would have paid: {story}"


def _frames(repo: Repository) -> dict[tuple[ChunkId, ChunkId | None], list[Location]]:
    """Return all frames in the store by their chunk and base."""
    store, found = repo.database.store, defaultdict(list)
    for info in list_packs(store):
        for location in read_pack_index(store, info):
            found[location.frame.chunk, location.frame.base].append(location)
    return found


def _made(
    repo: Repository, frames: dict[tuple[ChunkId, ChunkId | None], list[Location]]
) -> dict[PackId, Made]:
    """Return what each pack was made for."""
    log = [step_of(version) for version in repo.log()]
    published = set(zip(log, [*log[1:], None], strict=True))
    last = max(log) + 1  # killed trainers never got further than the goal, which was reached
    step_with = {_moving_chunk(repo, step): step for step in range(last)}
    steps: dict[PackId, set[tuple[int, int | None]]] = defaultdict(set)
    for (chunk, base), found in frames.items():
        for location in found:
            made = steps[location.pack]
            if chunk in step_with:
                made.add((step_with[chunk], None if base is None else step_with[base]))
    versions = {version.id for version in repo.log()}

    def is_published(pack: PackId) -> bool:
        if isinstance(pack, CarriedPackId):
            return SnapshotId(pack) in versions
        return not published.isdisjoint(steps[pack])

    return {pack: Made(frozenset(made), is_published(pack)) for pack, made in steps.items()}


def _moving_chunk(repo: Repository, step: int) -> ChunkId:
    """Return the first chunk of the moving tensor at a step."""
    raw = patterns(state(step)[_MOVING]).numpy().tobytes()
    return repo.database.hasher(memoryview(raw)[: CONFIG.chunk_size])


def _costly_bytes(repeated: Iterable[Location]) -> int:
    sizes = [(at.frame.size, at.frame.raw_size) for at in repeated]
    return sum(size for size, raw_size in sizes if size > _COSTLY_SHARE * raw_size)


def _described(repo: Repository, repeated: Sequence[Location]) -> str:
    """Describe frames and the versions of the branch that have their chunks."""
    log = list(repo.log())
    return "; ".join(
        f"{at.frame} of steps {[step_of(v) for v in log if at.frame.chunk in v.stored_chunks()]}"
        f"{' (structure)' if any(at.frame.chunk in v.structure() for v in log) else ''}"
        for at in repeated
    )
