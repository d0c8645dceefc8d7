"""Stores that `tools/spec/writer.py` wrote from `docs/format.md` alone are like any other store.

Its author knew nothing but the page, so each store here asks whether the page says all that a
writer has to know, and whether the library reads all that the page allows.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

import casweights
from tests.lengths import examples
from tests.spec.readers import read, tree
from tools.spec.cutting import BITS, SafetensorsFile, Tensor, safetensors_file
from tools.spec.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights import Repository
    from tools.spec.writer import File

NAMES = [f"h.{n}.{part}" for n in range(3) for part in "abc"] + ["embed", "x.12.y.7", "norm.w"]
COUNTS = [2000, 300, 60, 0, 1, 9000]  # of four elements each, so that every dtype has whole bytes
TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


class History(NamedTuple):
    """Versions of a directory, and how each of them is written."""

    digest: Any
    frames_a_pack: int
    versions: list[dict[str, File]]
    places: list[Any]
    encodings: list[int]
    archived: int
    segment: int | None


def chances(draw: st.DrawFn) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32)))


def some_bytes(draw: st.DrawFn, size: int) -> bytes:
    most = draw(st.sampled_from([4, 40, 1, 256]))
    return chances(draw).integers(0, most, size, dtype="u1").tobytes()


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[str]) -> list[Tensor]:
    names = draw(st.permutations(NAMES))[: draw(st.sampled_from([8, 5, 12, 0]))]
    few = draw(st.permutations(dtypes))[:2]
    result = []
    for name in names:
        dtype, count = draw(st.sampled_from(few)), draw(st.sampled_from(COUNTS))
        data = some_bytes(draw, count * BITS[dtype] // 2)
        if dtype == "BOOL":
            data = bytes(byte & 1 for byte in data)
        result.append(Tensor(name, dtype, (count, 4), data))
    return result


@st.composite
def files(draw: st.DrawFn, dtypes: list[str]) -> File:
    if draw(st.booleans()):
        return some_bytes(draw, draw(st.sampled_from([0, 1, 100, 65536, 150_000])))
    return packed(draw, draw(tensors(dtypes)))


def packed(draw: st.DrawFn, members: list[Tensor]) -> SafetensorsFile:
    return safetensors_file(
        members,
        draw(st.sampled_from([None, {}, {"format": "pt"}])),
        listed=draw(st.permutations(range(len(members)))),
        arrays=draw(st.booleans()),
    )


def edited(draw: st.DrawFn, file: File) -> File:
    """A file as the next version has it: some bytes differ, and perhaps a tensor is new or gone."""
    if isinstance(file, bytes):
        return touched(draw, file)
    members = list(file.tensors)
    how = draw(st.sampled_from(["touch", "touch", "touch", "drop", "reverse"]))
    if how == "touch":
        return SafetensorsFile(
            file.header,
            tuple(
                t if t.dtype == "BOOL" else t._replace(data=touched(draw, t.data)) for t in members
            ),
        )
    return packed(draw, members[1:] if how == "drop" else members[::-1])


def touched(draw: st.DrawFn, content: bytes) -> bytes:
    changed = np.frombuffer(content, "u1").copy()
    share, most = draw(st.sampled_from([0.01, 0.3, 0])), draw(st.sampled_from([2, 256]))
    dice = chances(draw)
    where = dice.random(changed.size) < share
    changed[where] += dice.integers(0, most, where.sum(), dtype="u1")
    return changed.tobytes()


@st.composite
def histories(draw: st.DrawFn) -> History:
    paths = ["model.safetensors", "a/b.bin", "a/ä", "notes"]
    versions: list[dict[str, File]] = [
        {"model.safetensors": packed(draw, draw(tensors(list(TORCH))))}
    ]
    for path in draw(st.lists(st.sampled_from(paths[1:]), unique=True)):
        versions[0][path] = draw(files(list(BITS)))
    for _ in range(draw(st.integers(1, 2))):
        versions.append({path: edited(draw, file) for path, file in versions[-1].items()})
        if draw(st.booleans()):
            versions[-1]["copy"] = versions[-1]["model.safetensors"]
    places = st.sampled_from(["carried", "packs", "whole"])
    count = len(versions)
    return History(
        digest=draw(st.sampled_from(["blake3", "xxh3-128"])),
        frames_a_pack=draw(st.sampled_from([1, 3, 65536])),
        versions=versions,
        places=draw(st.lists(places, min_size=count, max_size=count)),
        encodings=draw(st.permutations(range(6))),
        archived=draw(st.integers(0, count)),
        segment=draw(st.none() | st.integers(0, 6)),
    )


def content_of(files: dict[str, File]) -> dict[str, bytes]:
    return {p: f if isinstance(f, bytes) else f.content for p, f in files.items()}


def write(history: History, root: Path) -> tuple[StoreWriter, list[str]]:
    """Write a history to branch main, its first version also as tag v1; return the IDs."""
    writer = StoreWriter(
        root, digest=history.digest, chunk_size=65536, frames_a_pack=history.frames_a_pack
    )
    metadata = {"z": None, "loss": 0.5, "b": [1, {"c": "ü"}]}
    ids = [
        writer.commit("main", files, place, history.encodings, metadata)
        for files, place in zip(history.versions, history.places, strict=True)
    ]
    writer.tag("v1", ids[0])
    distinct = list(dict.fromkeys(ids))
    movable = [
        name
        for name in distinct
        if writer.versions[name].bare and (root / f"snapshots/{name.hex()}").exists()
    ]
    if movable[: history.archived]:
        writer.archive(movable[: history.archived])
    if history.segment is not None:
        writer.segment(history.segment)
    return writer, [name.hex() for name in ids]


@contextmanager
def written(history: History) -> Iterator[tuple[Repository, Path, list[str]]]:
    with tempfile.TemporaryDirectory() as folder:
        _, ids = write(history, Path(folder, "store"))
        with casweights.open(Path(folder, "store"), workers=2) as repo:
            yield repo, Path(folder), ids


def assert_reads(repo: Repository, ids: list[str], history: History) -> None:
    for name, files in zip(ids, history.versions, strict=True):
        expected = content_of(files)
        snapshot = repo.snapshot(name)
        assert {f.path: b"".join(repo.read(name, f.path)) for f in snapshot.files} == expected
    assert not repo.verify().problems


@hypothesis.settings(max_examples=examples(12))
@hypothesis.given(history=histories())
def test_the_library_reads_what_the_page_makes_a_writer_write(history: History) -> None:
    with written(history) as (repo, folder, ids):
        assert [str(s.id) for s in repo.log()] == ids[::-1]
        assert [s.number for s in repo.log()] == list(range(len(ids), 0, -1))
        assert str(repo.resolve("v1")) == ids[0]
        assert repo.snapshot("main").metadata == {"z": None, "loss": 0.5, "b": [1, {"c": "ü"}]}
        assert_reads(repo, ids, history)
        for name, files in zip(ids, history.versions, strict=True):
            repo.checkout(name, folder / name)
            found = {p: c for p, c in tree(folder / name).items() if c is not None}
            assert found == content_of(files)
            assert_loads(repo, name, files["model.safetensors"])


def assert_loads(repo: Repository, name: str, file: File) -> None:
    assert isinstance(file, SafetensorsFile)
    loaded = repo.load(name)
    assert loaded.keys() == {tensor.name for tensor in file.tensors}
    for tensor in file.tensors:
        its = loaded[tensor.name]
        assert (its.dtype, tuple(its.shape)) == (TORCH[tensor.dtype], tensor.shape)
        assert bytes(its.reshape(-1).view(torch.uint8).numpy()) == tensor.data


@hypothesis.settings(max_examples=examples(4))
@hypothesis.given(history=histories())
def test_the_independent_reader_agrees(history: History) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(history, Path(folder, "store"))
        for ref, files in (("main", history.versions[-1]), ("v1", history.versions[0])):
            result = read(Path(folder, "store"), ref, Path(folder, ref))
            assert result.returncode == 0, result.stderr
            found = {p: c for p, c in tree(Path(folder, ref)).items() if c is not None}
            assert found == content_of(files)


@hypothesis.settings(max_examples=examples(6))
@hypothesis.given(history=histories())
def test_the_library_writes_on_top_and_keeps_the_store_in_order(history: History) -> None:
    with written(history) as (repo, folder, ids):
        head = repo.checkout("main", folder / "out")
        again = repo.commit(folder / "out", message="the same")
        assert again.files == head.files, "the library cuts files as the page says"
        chunks = repo.stats().chunks
        assert again.parents == (head.id,)
        (folder / "out/extra").write_bytes(b"more")
        repo.commit(folder / "out")
        assert repo.stats().chunks == chunks + 1, "and stores none of their chunks again"
        repo.branch("old", ids[0])
        repo.maintain()
        repo.repack()
        assert_reads(repo, ids, history)
        repo.gc(apply=True, grace=timedelta(0), confirm=repo.url)
        repo.gc(apply=True, grace=timedelta(0), confirm=repo.url)
        assert_reads(repo, ids, history)
        result = read(folder / "store", ids[-1], folder / "again")
        assert result.returncode == 0, result.stderr
