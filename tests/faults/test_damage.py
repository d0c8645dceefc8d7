"""Every flipped bit, missing byte and extra byte in any object of a store is found and named.

A sample of them in the suite, all in the long form.
"""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

import casweights
from casweights import CasweightsError, ErrorCode, IntegrityError, StoreConfig
from casweights.config import DigestName, KiB
from casweights.format import names
from casweights.format.dtypes import DTYPES
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.pack import TRAILER_SIZE, index_span, parse_index
from casweights.format.safetensors import build_header
from casweights.format.snapshot import end_span
from casweights.ids import PackId
from casweights.operations.archiving import archive
from casweights.stores.memory import MemoryStore
from tests.large_versions import packs_apart
from tests.lengths import choose, spread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.format.pack import Frame

DIGESTS: tuple[DigestName, ...] = ("blake3", "xxh3-128")
FLIPS, CUTS = 30, 8  # of each object, in the suite
PAYLOAD_FLIPS = 150  # of the frames of an object, in the long form

Objects = dict[str, bytes]
Version = dict[str, bytes]


@dataclass(frozen=True)
class Sample:
    """A small store with objects of every kind, and the expected content of its versions."""

    objects: Objects
    versions: dict[SnapshotId, Version]
    latest: SnapshotId
    older: SnapshotId


def model(seed: int) -> Version:
    """Return files that are stored with each of the encodings."""
    numbers = np.random.default_rng(seed)
    weights = numbers.normal(0, 0.02, 2048).astype("<f4").tobytes()
    header = build_header([("weights", DTYPES["F32"], (2048,))], {"format": "pt"})
    return {
        "model.safetensors": header + weights,
        "sub/noise.bin": numbers.bytes(700),
        "text.txt": f"version {seed} ".encode() * 100,
        "empty": b"",
        "common.txt": b"in every version" * 50,
    }


def write_files(folder: Path, files: Version) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read_files(folder: Path) -> Version:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def contents(store: MemoryStore) -> Objects:
    return {info.name: store.get(info.name) for info in store.list()}


def store_of(objects: Objects) -> MemoryStore:
    store = MemoryStore()
    for name, content in objects.items():
        store.put(name, [content])
    return store


@pytest.fixture(scope="module", params=DIGESTS)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    config = StoreConfig(digest=request.param, chunk_size=64 * KiB)
    store, versions = MemoryStore(), {}
    with casweights.open(store, create=True, config=config) as repo:
        for seed, branch in enumerate(["main", "side/x", "main"]):
            folder = tmp_path_factory.mktemp("model")
            write_files(folder, model(seed))
            parent = "main" if branch == "side/x" else None
            with packs_apart() if seed == 1 else nullcontext():
                snapshot = repo.commit(
                    folder, branch=branch, parent=parent, metadata={"seed": seed}
                )
            versions[snapshot.id] = model(seed)
        repo.tag("v1", "main~1")
        latest = names.snapshot_name(snapshot.id)
        old = [info for info in store.list(names.SNAPSHOTS) if info.name != latest]
        archive(repo.database, old)
        assert set(repo.stats().encodings) == {"raw", "zstd", "planes"}
        assert repo.verify().problems == ()
        return Sample(contents(store), versions, repo.resolve("main"), repo.resolve("main~1"))


def damages(name: str, data: bytes) -> Iterator[bytes]:
    """Yield damaged forms of an object: one bit flipped, truncated, or one byte longer."""
    chance = random.Random(name)
    for place in spread(flipped_places(name, data, chance), FLIPS, name):
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        yield bytes(damaged)
    yield from (data[:length] for length in spread(range(len(data)), CUTS, name))
    yield data + b"\0"
    yield data + b"x"
    yield data + data


def flipped_places(name: str, data: bytes, chance: random.Random) -> list[int]:
    """Return the offsets at which to flip a bit: all, but only a sample within frames."""
    if not name.startswith((names.PACKS, names.SNAPSHOTS)):
        return list(range(len(data)))
    span = index_span if name.startswith(names.PACKS) else end_span
    start, _ = span(data[-TRAILER_SIZE:], len(data), name)
    frames = range(PREFIX_SIZE, start)
    sample = chance.sample(frames, min(len(frames), PAYLOAD_FLIPS))
    return [*range(PREFIX_SIZE), *sample, *range(start, len(data))]


def problems(objects: Objects, *, quick: bool) -> tuple[CasweightsError, ...]:
    try:
        with casweights.open(store_of(objects), workers=1) as repo:
            return repo.verify(quick=quick).problems
    except CasweightsError as error:
        return (error,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", [names.CONFIG, names.PACKS, names.SNAPSHOTS, names.ARCHIVES, "refs/"]
)
def test_verify_names_every_damaged_object(sample: Sample, prefix: str) -> None:
    kind = [name for name in sample.objects if name.startswith(prefix)]
    assert kind
    for name in kind:
        for number, damaged in enumerate(damages(name, sample.objects[name])):
            found = problems({**sample.objects, name: damaged}, quick=number % 4 == 0)
            assert found, (name, number)
            assert any(name in str(problem) for problem in found), (name, number, found)
            assert all(isinstance(problem, IntegrityError) for problem in found), found


def frames_of(sample: Sample, version: SnapshotId, pack: str) -> list[Frame]:
    """Return the frames of a pack that a version needs."""
    data = sample.objects[pack]
    start, stop = index_span(data[-TRAILER_SIZE:], len(data), pack)
    pack_id = PackId.from_hex(pack.removeprefix(names.PACKS))
    frames = parse_index(data[:PREFIX_SIZE], data[start:stop], start, pack_id, pack)
    with casweights.open(store_of(sample.objects), workers=1) as repo:
        needed = {chunk for chunk, _ in repo.snapshot(version).pieces()}
    return [frame for frame in frames if frame.chunk in needed]


def vital_damages(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Yield damaged objects that the latest version needs, even next to an older checkout."""
    chance = random.Random(1)
    for name in (names.snapshot_name(sample.latest), names.move_name(names.HEADS, "main", 2)):
        kinds = list(damages(name, sample.objects[name]))
        yield from ((name, damaged) for damaged in chance.sample(kinds, 20))
    for name, data in sample.objects.items():
        if not name.startswith(names.PACKS):
            continue
        there = frames_of(sample, sample.older, name)
        for frame in frames_of(sample, sample.latest, name):
            if frame not in there:
                for place in (0, frame.size - 1, *(chance.randrange(frame.size) for _ in range(6))):
                    damaged = bytearray(data)
                    damaged[frame.offset + place] ^= 1 << chance.randrange(8)
                    yield name, bytes(damaged)
                yield name, data[: frame.offset + chance.randrange(frame.size)]


def read_everything(repo: Repository, version: str, files: Version) -> None:
    for file in files:
        b"".join(repo.read(version, file))


def test_checkout_from_a_damaged_store_touches_nothing(sample: Sample, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_files(old, sample.versions[sample.older])
    for name, damaged in vital_damages(sample):
        store = store_of({**sample.objects, name: damaged})
        for target in (old, new):
            with casweights.open(store, workers=1) as repo:
                with pytest.raises(IntegrityError, match=name):
                    repo.checkout("main", target)
                with pytest.raises(IntegrityError, match=name):
                    read_everything(repo, "main", sample.versions[sample.latest])
        assert read_files(old) == sample.versions[sample.older]
        assert read_files(new) == {}


def try_checkout(store: MemoryStore, version: SnapshotId, folder: Path) -> IntegrityError | None:
    try:
        with casweights.open(store, workers=1) as repo:
            # Files in the folder may be of the damaged version, and so be in no readable one.
            repo.checkout(version, folder, delete=True, overwrite=True)
    except IntegrityError as error:
        return error
    return None


def test_damage_never_leads_to_wrong_bytes(sample: Sample, tmp_path: Path) -> None:
    """If the damage does no harm, as in the index of a pack, the bytes read are right."""
    survived = 0
    for name, data in sample.objects.items():
        kinds = list(damages(name, data))
        for damaged in random.Random(name).sample(kinds, choose(12, len(kinds))):
            store = store_of({**sample.objects, name: damaged})
            for version, files in sample.versions.items():
                failure = try_checkout(store, version, tmp_path)
                assert failure is not None or read_files(tmp_path) == files
                assert failure is None or name in str(failure)
                survived += failure is None
    assert survived


def test_versions_that_do_not_need_a_damaged_pack_can_be_read(
    sample: Sample, tmp_path: Path
) -> None:
    for name in sample.objects:
        if not name.startswith(names.PACKS):
            continue
        store = store_of({**sample.objects, name: bytes(len(sample.objects[name]))})
        with casweights.open(store, workers=1) as repo:
            for version, files in sample.versions.items():
                if not frames_of(sample, version, name):
                    repo.checkout(version, tmp_path, delete=True)
                    assert read_files(tmp_path) == files


def in_place(sample: Sample) -> Objects:
    """Leave out what lies aside, which takes the place of what is missing."""
    return {n: data for n, data in sample.objects.items() if not n.startswith(names.ASIDE)}


def test_missing_object_is_reported(sample: Sample) -> None:
    for name in sample.objects:
        if not name.startswith((names.PACKS, names.SNAPSHOTS)):
            continue
        rest = {other: data for other, data in in_place(sample).items() if other != name}
        found = problems(rest, quick=False)
        assert {problem.code for problem in found} == {ErrorCode.MISSING_CHUNK}
        if name.startswith(names.SNAPSHOTS):  # other versions may need frames that it carries
            digits = name.removeprefix(names.SNAPSHOTS)
            assert any(digits in str(problem) for problem in found)


def test_commit_replaces_a_pack_that_cannot_be_read(sample: Sample, tmp_path: Path) -> None:
    """Versions that need it become readable again; the rest of the pack is not touched."""
    for version, files in sample.versions.items():
        write_files(tmp_path / str(version), files)
    for name, data in sample.objects.items():
        if name.startswith(names.PACKS):
            store = store_of({**sample.objects, name: data[:-1]})
            with casweights.open(store, workers=1) as repo:
                for version in sample.versions:
                    repo.commit(tmp_path / str(version), branch="again")
                (problem,) = repo.verify().problems
                assert name in str(problem)
                assert store.get(name) == data[:-1]
            with casweights.open(store, workers=1) as repo:
                for version, files in sample.versions.items():
                    assert {path: b"".join(repo.read(version, path)) for path in files} == files
