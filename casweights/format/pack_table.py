"""Pack tables: the packs that contained a version's chunks when it was written.

A table is not part of a version's identity: it saves readers from searching all packs, and if it is
out of date, they search them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casweights.format.unpack import Unpacker
from casweights.ids import CarriedPackId, ChunkId, PackId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_ID = 32  # bytes
_OPTIONAL = frozenset({"carried", "places", "shallow", "structure"})


class PackTable(NamedTuple):
    """The packs that contained a version when it was written.

    Attributes:
        packs: All of these packs: those of the chunks' own frames, and those of the frames that
            these build on. The pack that the version's own object carries is the first.
        chunks: The pack of each chunk's own frame.
        places: Locators of packs, in stores that implement `SupportsLocators`.
        shallow: Whether the version was copied without its history, so that parents may be missing.
        structure: How many of `packs`, from the first, the version's structure chunks need; None if
            that may be any of them.
    """

    packs: list[PackId]
    chunks: dict[ChunkId, PackId]
    places: dict[PackId, bytes] = {}  # noqa: RUF012  never changed
    shallow: bool = False
    structure: int | None = None

    @classmethod
    def collect(
        cls,
        found: Iterable[tuple[ChunkId, Sequence[PackId]]],
        structure: int,
        first: Iterable[PackId] = (),
    ) -> PackTable:
        """Return the table of a version from the chains of its chunks.

        Args:
            found: Each of `Manifest.stored_chunks` with the packs of its chain, beginning with that
                of its own frame. Packs that an earlier chunk has brought may be left out after it.
            structure: How many of them are structure chunks.
            first: Packs that come first.
        """
        packs, chunks, needed = dict.fromkeys(first), dict[ChunkId, PackId](), 0
        for number, (chunk, own) in enumerate(found, 1):
            chunks[chunk] = own[0]
            packs.update(dict.fromkeys(own))
            if number == structure:
                needed = len(packs)
        return cls(list(packs), chunks, structure=needed)

    def own_part(self, chunks: Iterable[ChunkId]) -> PackTable:
        """Return the part of the table that names the packs of these chunks' own frames."""
        own = {chunk: self.chunks[chunk] for chunk in chunks}
        return self._replace(packs=list(dict.fromkeys(own.values())), chunks=own)


class PackNumbers(NamedTuple):
    """A pack table as it is stored: by the order of the chunks in the version, without their IDs.

    Attributes:
        packs: As in `PackTable`.
        numbers: For each of `Manifest.stored_chunks`, the number of its pack in `packs`.
        places: As in `PackTable`.
        shallow: As in `PackTable`.
        structure: As in `PackTable`.
    """

    packs: list[PackId]
    numbers: list[int]
    places: dict[PackId, bytes]
    shallow: bool
    structure: int | None

    def of(self, chunks: Iterable[ChunkId]) -> PackTable:
        """Return the table, given all chunks of the version, as from `Manifest.stored_chunks`.

        Raises:
            ValueError: The number of chunks is not that of the table.
        """
        stored = tuple(chunks)
        if len(stored) != len(self.numbers):
            raise ValueError(f"it has {len(self.numbers)} numbers for {len(stored)} chunks")
        packs = {c: self.packs[n] for c, n in zip(stored, self.numbers, strict=True)}
        return PackTable(self.packs, packs, self.places, self.shallow, self.structure)

    def merged(self, into: Mapping[PackId, PackId]) -> PackNumbers:
        """Return the table after packs were merged, without locators.

        Args:
            into: For each pack that was merged, the pack that has its frames now.
        """
        now = [into.get(pack, pack) for pack in self.packs]
        number = {pack: n for n, pack in enumerate(dict.fromkeys(now))}
        structure = None if self.structure is None else len(set(now[: self.structure]))
        numbers = [number[now[n]] for n in self.numbers]
        return PackNumbers(list(number), numbers, {}, self.shallow, structure)

    def of_structure(self, chunks: Iterable[ChunkId]) -> PackTable:
        """Return the part of the table for structure chunks, given all of these in order."""
        own = {c: self.packs[n] for c, n in zip(chunks, self.numbers, strict=False)}
        packs = list(dict.fromkeys([*self.packs[: self.structure], *own.values()]))
        places = {pack: self.places[pack] for pack in packs if pack in self.places}
        return PackTable(packs, own, places)


def encode_table(table: PackTable, chunks: Iterable[ChunkId], own: CarriedPackId | None) -> bytes:
    """Encode a pack table.

    Args:
        table: The table.
        chunks: The version's chunks, as from `Manifest.stored_chunks`.
        own: The pack that the version's object carries; None if it carries no frames.
    """
    number = {pack: n for n, pack in enumerate(table.packs)}
    numbers = [number[table.chunks[chunk]] for chunk in chunks]
    return encode_numbers(PackNumbers(table.packs, numbers, *table[2:]), own)


def encode_numbers(table: PackNumbers, own: CarriedPackId | None) -> bytes:
    """Encode a pack table, as `encode_table` does."""
    mine = [] if own is None else [own]
    others = [pack for pack in table.packs if pack != own]
    numbers: dict[PackId, int] = {pack: n for n, pack in enumerate((*mine, *others))}
    encoded_number = [numbers[pack] for pack in table.packs]
    fields: dict[str, Any] = {
        "packs": b"".join(others),
        "pack": [encoded_number[n] for n in table.numbers],
    }
    if carried := [numbers[pack] for pack in others if isinstance(pack, CarriedPackId)]:
        fields["carried"] = carried
    if table.places:
        fields["places"] = {numbers[pack]: place for pack, place in table.places.items()}
    if table.shallow:
        fields["shallow"] = True
    if table.structure is not None:
        own_is_counted = own is None or own in table.packs[: table.structure]
        fields["structure"] = table.structure + (not own_is_counted)
    encoded: bytes = msgpack.packb(fields)
    return encoded


def decode_table(encoded: bytes, own: CarriedPackId | None) -> PackNumbers:
    """Decode a pack table; raise one of `MALFORMED` if it is not valid.

    Args:
        encoded: The encoded table.
        own: The pack that the version's object carries; None if it carries no frames.
    """
    data = Unpacker(encoded)
    readers: dict[str, Callable[[], Any]] = {
        "packs": lambda: data.scalar(bytes),
        "pack": data.ints,
        "carried": data.ints,
        "places": lambda: {data.scalar(int): data.scalar(bytes) for _ in data.pairs(len(encoded))},
        "shallow": lambda: data.scalar(bool),
        "structure": lambda: data.scalar(int),
    }
    table = data.fields(readers, optional=_OPTIONAL)
    data.finish()
    numbers, carried, places = table["pack"], table.get("carried", []), table.get("places", {})
    packs = _packs(table["packs"], carried, own)
    if min([*numbers, *places], default=0) < 0:
        raise ValueError("it has a negative pack number")
    if max([*numbers, *places], default=-1) >= len(packs):
        raise ValueError("it has a number without a pack")
    structure = table.get("structure")
    if structure is not None and not 0 <= structure <= len(packs):
        raise ValueError(f"it has {structure} packs of structure chunks among {len(packs)}")
    placed = {packs[n]: place for n, place in places.items()}
    return PackNumbers(packs, numbers, placed, table.get("shallow", False), structure)


def _packs(joined: bytes, carried: list[int], own: CarriedPackId | None) -> list[PackId]:
    """Return the packs by number: first the one of the object itself, then those listed."""
    packs: list[PackId] = [] if own is None else [own]
    first = len(packs)
    packs += [PackId(joined[n : n + _ID]) for n in range(0, len(joined), _ID)]
    for number in carried:
        if not first <= number < len(packs):
            raise ValueError("it has the number of a carried pack that it does not list")
        packs[number] = CarriedPackId(packs[number])
    return packs
