"""The independent reader and the library agree on valid and forged differences."""

from __future__ import annotations

import importlib
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import casweights
from casweights import IntegrityError, StoreConfig
from casweights.database.chains import MAX_LINKS
from casweights.format.codecs import Encoding, decode
from casweights.format.names import pack_name
from casweights.format.parts import Part, join
from casweights.format.planes import encode_planes
from casweights.format.zstd import compress
from casweights.kernels import (
    dense_decode,
    dense_encode,
    sparse_decode,
    sparse_encode,
)
from casweights.kernels.kinds import ElementKind
from casweights.operations.shortcuts import Schedule
from casweights.stores.local import LocalStore
from tests.forged_chains import (
    NAME,
    READ,
    REFUSED,
    A,
    B,
    C,
    Link,
    add_pack,
    add_version,
    chain,
    chunk,
    create,
    difference,
    whole,
)
from tests.histories import CHUNK, ELEMENTS, history, step, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from casweights import Repository, SnapshotId

KERNELS = {"sparse": (sparse_encode, sparse_decode), "dense": (dense_encode, dense_decode)}

encodings = pytest.mark.parametrize("encoding", KERNELS)
kinds = pytest.mark.parametrize("kind", ElementKind)


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    return importlib.import_module("tools.spec.reader")


@pytest.fixture(scope="module")
def differences() -> ModuleType:
    return importlib.import_module("tools.spec.differences")


def pair(kind: ElementKind, count: int, share: float, largest: int) -> tuple[bytes, bytes]:
    """Return elements of all exponents, and a copy with a share moved by up to `largest`."""
    numbers = np.random.default_rng(count)
    base = np.frombuffer(numbers.bytes(count * kind.width), f"<u{kind.width}")
    steps = numbers.integers(1, largest, count, dtype=np.uint64, endpoint=True)
    moves = np.where(numbers.random(count) < share, steps, np.uint64(0)).astype(base.dtype)
    signs = numbers.random(count) < 0.5
    return base.tobytes(), np.where(signs, base + moves, base - moves).tobytes()


@kinds
@encodings
@pytest.mark.parametrize(
    ("share", "largest"), [(0, 1), (0.01, 1), (0.01, 2**64 - 1), (0.7, 1), (1, 300), (1, 2**64 - 1)]
)
def test_the_reader_decodes_what_the_kernels_encode(
    differences: ModuleType, encoding: str, kind: ElementKind, share: float, largest: int
) -> None:
    encode, _ = KERNELS[encoding]
    decode = getattr(differences, f"decode_{encoding}")
    for count in (1, 2, 63, 1000):
        base, new = pair(kind, count, share, largest)
        assert decode(encode(base, new, kind), base) == new


@kinds
@encodings
def test_the_reader_decodes_several_segments(
    differences: ModuleType, encoding: str, kind: ElementKind
) -> None:
    encode, _ = KERNELS[encoding]
    for count in (16_384, 16_385, 40_000):
        base, new = pair(kind, count, 0.05, 40)
        assert getattr(differences, f"decode_{encoding}")(encode(base, new, kind), base) == new


def attempt(decode: Callable[[bytes, bytes], bytes], payload: bytes, base: bytes) -> bytes | None:
    try:
        return decode(payload, base)
    except ValueError:
        return None


@given(
    st.sampled_from(sorted(KERNELS)),
    st.sampled_from(ElementKind),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.binary(max_size=2)), max_size=3),
)
@pytest.mark.usefixtures("differences")
def test_reader_and_kernels_refuse_the_same_payloads(
    encoding: str, kind: ElementKind, edits: list[tuple[int, int, bytes]]
) -> None:
    """The payloads are valid ones with bytes replaced, inserted and removed."""
    encode, kernel = KERNELS[encoding]

    def by_kernel(data: bytes, base: bytes) -> bytes:
        out = bytearray(base)
        kernel(data, out)
        return bytes(out)

    base, new = pair(kind, 64, 0.2, 9)
    payload = encode(base, new, kind)
    for at, removed, inserted in edits:
        payload = payload[:at] + inserted + payload[at + removed :]
    by_reader = getattr(importlib.import_module("tools.spec.differences"), f"decode_{encoding}")
    assert attempt(by_reader, payload, base) == attempt(by_kernel, payload, base)


def in_parts(first: int, second: int) -> tuple[bytes, bytes, bytes]:
    """Return a difference in three parts with these encodings and 0, its base, and its chunk."""
    nbytes, kind = 80, ElementKind.BFLOAT_16
    base, new = pair(kind, 3 * nbytes // 2, 0.3, 9)
    codes = Encoding(first), Encoding(second), Encoding.RAW
    own = [slice(nbytes * n, nbytes * (n + 1)) for n in range(3)]
    stored = [stored_as(code, base[s], new[s], kind) for code, s in zip(codes, own, strict=True)]
    parts = [Part(code, nbytes, payload) for code, payload in zip(codes, stored, strict=True)]
    return join(parts), base, new


def stored_as(encoding: Encoding, base: bytes, new: bytes, kind: ElementKind) -> bytes:
    if encoding is Encoding.DENSE:
        return dense_encode(base, new, kind)
    if encoding is Encoding.SPARSE:
        return sparse_encode(base, new, kind)
    if encoding is Encoding.PLANES:
        return encode_planes(new, kind.width)
    return compress(new, 1) if encoding is Encoding.ZSTD else new


def decode_parts(payload: bytes, base: bytes) -> bytes:
    out = bytearray(base)
    decode(Encoding.PARTS, payload, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_both_decode_parts_of_every_encoding(first: int, second: int) -> None:
    chunks = importlib.import_module("tools.spec.chunks")
    payload, base, new = in_parts(first, second)
    assert decode_parts(payload, base) == new
    assert chunks.decode(payload, Encoding.PARTS, len(base), base) == new


@given(
    st.integers(0, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.binary(max_size=2)), max_size=3),
)
def test_both_refuse_the_same_parts(
    first: int, second: int, edits: list[tuple[int, int, bytes]]
) -> None:
    """The payloads are valid ones with bytes replaced, inserted and removed."""
    chunks = importlib.import_module("tools.spec.chunks")
    payload, base, _ = in_parts(first, second)
    for at, removed, inserted in edits:
        payload = payload[:at] + inserted + payload[at + removed :]
    try:
        by_reader = chunks.decode_parts(payload, base)
    except chunks.FAILURES:
        by_reader = None
    assert by_reader == attempt(decode_parts, payload, base)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "store")
    create(made)
    return made


def by_reader(reader: ModuleType, root: Path, version: SnapshotId | str) -> dict[str, bytes]:
    shutil.rmtree(root / "out", ignore_errors=True)
    reader.check_out(root / "store", str(version), root / "out")
    return {path.name: path.read_bytes() for path in (root / "out").iterdir()}


@pytest.mark.parametrize("links", REFUSED.values(), ids=REFUSED)
def test_both_refuse_forged_chains(
    reader: ModuleType, store: LocalStore, tmp_path: Path, links: list[Link]
) -> None:
    version = add_version(store, B, [add_pack(store, links)])
    with casweights.open(store) as repo, pytest.raises(IntegrityError):
        b"".join(repo.read(version, NAME))
    with pytest.raises(reader.StoreError):
        by_reader(reader, tmp_path, version)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("links", READ.values(), ids=READ)
def test_both_read_chains_around_forged_frames(
    reader: ModuleType, store: LocalStore, tmp_path: Path, links: list[Link]
) -> None:
    version = add_version(store, B, [add_pack(store, links)])
    with casweights.open(store) as repo:
        assert b"".join(repo.read(version, NAME)) == B
    assert by_reader(reader, tmp_path, version) == {NAME: B}


def test_both_read_the_longest_chain_and_refuse_a_longer_one(
    reader: ModuleType, store: LocalStore, tmp_path: Path
) -> None:
    pack = add_pack(store, chain(MAX_LINKS))
    longest = add_version(store, chunk(MAX_LINKS - 1), [pack])
    too_long = add_version(store, chunk(MAX_LINKS), [pack])
    assert by_reader(reader, tmp_path, longest) == {NAME: chunk(MAX_LINKS - 1)}
    with pytest.raises(reader.StoreError):
        by_reader(reader, tmp_path, too_long)
    with casweights.open(store) as repo:
        assert b"".join(repo.read(longest, NAME)) == chunk(MAX_LINKS - 1)
        with pytest.raises(IntegrityError):
            b"".join(repo.read(too_long, NAME))


def test_a_base_of_another_size_stays_readable(
    reader: ModuleType, store: LocalStore, tmp_path: Path
) -> None:
    pack = add_pack(store, REFUSED["longer base"])
    longer = REFUSED["longer base"][0].raw
    chunks = reader.ChunkReader(tmp_path / "store", "blake3", 65_536, [bytes.fromhex(str(pack))])
    ids = {raw: reader.DIGESTS["blake3"](raw) for raw in (B, longer)}
    with pytest.raises(reader.StoreError):
        chunks.read(ids[B], len(B))
    assert chunks.read(ids[longer], len(longer)) == longer


def test_both_read_bases_in_packs_that_the_table_does_not_name(
    reader: ModuleType, store: LocalStore, tmp_path: Path
) -> None:
    """The bases are in such packs, and so is another chain after the bases are gone."""
    first = add_pack(store, [difference(C, B)])
    second = add_pack(store, [difference(B, A), whole(A)])
    version = add_version(store, C, [first])
    assert by_reader(reader, tmp_path, version) == {NAME: C}
    add_pack(store, [whole(B)])
    store.delete(pack_name(second))
    assert by_reader(reader, tmp_path, version) == {NAME: C}


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    config = StoreConfig(chunk_size=CHUNK)
    return casweights.open(tmp_path / "store", create=True, config=config)


def assert_same(reader: ModuleType, repo: Repository, root: Path) -> None:
    """Assert that both check out the same files of every version."""
    for version in repo.log():
        (expected,) = (b"".join(repo.read(version, file.path)) for file in version.files)
        assert by_reader(reader, root, version.id) == {"model.safetensors": expected}


@pytest.mark.parametrize("density", [0.002, 0.3])
def test_both_read_the_same_of_a_history(
    reader: ModuleType,
    repo: Repository,
    tmp_path: Path,
    density: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Schedule, "passed", lambda *_: None)  # chains stay long
    with repo:
        for state in history(20 if density < 0.1 else 8, density, chunks=1):
            repo.commit(state)
        assert repo.stats().versions[-1].longest_chain > (15 if density < 0.1 else 1)
        assert_same(reader, repo, tmp_path)


def test_both_read_differences_of_every_dtype(
    reader: ModuleType, repo: Repository, tmp_path: Path
) -> None:
    """Each dtype has different bytes; a few of them change, then many."""
    dtypes = [
        *(torch.uint8, torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e8m0fnu),
        *(torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32),
        *(torch.int64, torch.float64, torch.complex64),
    ]
    with repo:
        for steps in range(3):
            state = {}
            for seed, dtype in enumerate(dtypes):
                tensor = weights(1, seed)[: ELEMENTS // 8]
                for n, density in enumerate((0.01, 0.4)[:steps]):
                    tensor = step(tensor, density, n)
                state[str(dtype)] = tensor.view(dtype)
            repo.commit(state)
        encodings = repo.stats().encodings
        assert min(encodings["sparse"], encodings["dense"]) >= len(dtypes) // 2
        assert_same(reader, repo, tmp_path)
