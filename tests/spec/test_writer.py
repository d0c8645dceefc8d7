"""What the page allows a writer, and what it forbids.

The stores are those of `tools/spec/writer.py`, which was written from `docs/format.md` alone, so
that these tests ask the page and not the library what is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import casweights
from casweights.errors import IntegrityError
from tests.spec.readers import read, tree
from tools.spec import encoders, writer
from tools.spec.cutting import Tensor, safetensors_file
from tools.spec.writer import NOWHERE, TIME, StoreWriter, sealed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tools.spec.writer import File, Place

MAIN = "refs/heads/main"


def model(step: int) -> File:
    """A few small tensors; some of their bytes depend on the step."""
    values = bytes(range(40, 80)) * 100
    moved = bytes(b + step if n % 17 == 0 else b for n, b in enumerate(values))
    layers = [(f"h.{n}.{part}", values if part == "b" else moved) for n in (0, 1) for part in "abc"]
    return safetensors_file([Tensor(name, "BF16", (2000,), data) for name, data in layers])


VERSIONS: list[dict[str, File]] = [
    {"model": model(step), "notes": b"same", "zeros": bytes(70_000) + bytes([step])}
    for step in range(3)
]
CHANGED = (
    encoders.SPARSE,
    encoders.DENSE,
    encoders.PARTS,
    encoders.LOW_RANK,
    encoders.RECORDS,
)


def write(root: Path, kind: type[StoreWriter] = StoreWriter) -> tuple[StoreWriter, list[str]]:
    made = kind(root, frames_a_pack=3)
    encodings = [(encoders.ZSTD, encoders.PLANES), CHANGED, CHANGED[::-1]]
    places: tuple[Place, ...] = ("packs", "carried", "packs")
    how = zip(VERSIONS, places, encodings, strict=True)
    ids = [made.commit("main", files, place, codes) for files, place, codes in how]
    return made, [name.hex() for name in ids]


def problems(root: Path) -> list[str]:
    with casweights.open(root) as repo:
        return [str(problem) for problem in repo.verify().problems]


def assert_reads(root: Path, ids: list[str], out: Path) -> None:
    """The library and the independent reader read every version, and nothing is amiss."""
    with casweights.open(root) as repo:
        assert [str(snapshot.id) for snapshot in repo.log()] == ids[::-1]
        for name, files in zip(ids, VERSIONS, strict=True):
            for path, file in files.items():
                content = file if isinstance(file, bytes) else file.content
                assert b"".join(repo.read(name, path)) == content
    assert problems(root) == []
    result = read(root, "main", out)
    assert result.returncode == 0, result.stderr
    assert tree(out)["zeros"] == VERSIONS[-1]["zeros"]


def longest(value: Any) -> bytes:
    """MessagePack that spends the most bytes on every length and number."""
    if isinstance(value, dict):
        pairs = b"".join(longest(k) + longest(v) for k, v in value.items())
        return b"\xdf" + len(value).to_bytes(4, "big") + pairs
    if isinstance(value, (list, tuple)):
        return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(longest, value))
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4, "big") + value
    if isinstance(value, str):
        return b"\xdb" + len(value.encode()).to_bytes(4, "big") + value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    return packed(value)


def packed(value: Any) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def reversed_keys(value: Any) -> bytes:
    return packed(dict(reversed(value.items())) if isinstance(value, dict) else value)


def unknown_keys(value: dict[str, Any]) -> bytes:
    return packed(value if "files" in value else {"later": [1, {"x": None}], **value})


def nine_bytes(value: int) -> bytes:
    """A varint of the most bytes."""
    return bytes((value >> 7 * n) & 127 | (128 if n < 8 else 0) for n in range(9))


@pytest.mark.parametrize(
    ("module", "name", "other"),
    [
        (writer, "_msgpack", longest),
        (writer, "_msgpack", reversed_keys),
        (writer, "_msgpack", unknown_keys),
        (writer, "_prefix", lambda kind: b"casw" + kind.encode() + b"\2\7\xff"),
        (encoders, "varint", nine_bytes),
    ],
    ids=["longest", "key-order", "unknown-keys", "reserved-bytes", "long-varints"],
)
def test_a_writer_is_free_in_how_it_spells(
    module: Any, name: str, other: Callable[..., bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, name, other)
    made, ids = write(tmp_path / "store")
    made.segment(2)
    assert_reads(tmp_path / "store", ids, tmp_path / "out")


def changed_table(change: Callable[[dict[str, Any]], dict[str, Any]]) -> type[StoreWriter]:
    class Changed(StoreWriter):
        def _table(self, *arguments: Any, **more: Any) -> bytes:
            return packed(change(msgpack.unpackb(super()._table(*arguments, **more))))

    return Changed


def test_a_pack_table_that_is_out_of_date_is_only_a_hint(tmp_path: Path) -> None:
    gone = {"packs": bytes(range(32)), "structure": 0, "carried": []}
    kind = changed_table(lambda table: gone | {"pack": [0] * len(table["pack"])})
    assert_reads(tmp_path / "store", write(tmp_path / "store", kind)[1], tmp_path / "out")


@pytest.mark.parametrize("more", [-1, 1])
def test_a_pack_table_of_another_length_is_reported(more: int, tmp_path: Path) -> None:
    def change(table: dict[str, Any]) -> dict[str, Any]:
        numbers = table["pack"]
        return table | {"pack": [*numbers, 0] if more > 0 else numbers[:-1]}

    write(tmp_path, changed_table(change))
    found = problems(tmp_path)
    assert len(found) == 3
    assert all(" numbers for " in problem for problem in found)


def test_large_headers_and_lists_are_structure_chunks_that_files_share(tmp_path: Path) -> None:
    """A header of four chunks, and 4,200 chunks in two pages; two files have the same of both."""
    tensors = [Tensor(f"t.{n}", "IU"[n % 2] + "8", (2,), bytes([n % 251, 7])) for n in range(4200)]
    file = safetensors_file(tensors)
    assert len(file.header) > 3 * 65536
    made = StoreWriter(tmp_path / "store")
    made.commit("main", {"a": file, "b": file, "page": b"x"})
    (version,) = made.versions.values()
    assert version.rows[0].structure == version.rows[1].structure
    pages = [chunk for chunk in version.rows[0].structure if chunk.raw not in file.header]
    assert [len(page.raw) // 32 for page in pages] == [4096, 104]
    made.commit("main", {"a": file, "b": file, "page": pages[1].raw})  # a page and a file at once
    with casweights.open(tmp_path / "store") as repo:
        for path in "ab":
            assert b"".join(repo.read("main", path)) == file.content
        assert b"".join(repo.read("main", "page")) == pages[1].raw
        repo.checkout("main", tmp_path / "out")
        assert repo.commit(tmp_path / "out").files == repo.snapshot("main~1").files
    assert problems(tmp_path / "store") == []
    assert read(tmp_path / "store", "main", tmp_path / "again").returncode == 0
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_positions_begin_at_1(tmp_path: Path) -> None:
    _, ids = write(tmp_path)
    head = (tmp_path / MAIN / "000000000003.ref").read_bytes()
    (tmp_path / "refs/heads/other").mkdir()
    (tmp_path / "refs/heads/other/000000000000.ref").write_bytes(head)
    with casweights.open(tmp_path) as repo:
        assert {name: str(head) for name, head in repo.branches().items()} == {"main": ids[-1]}
    (problem,) = problems(tmp_path)
    assert "no move of a branch or tag has such a name" in problem
    assert "there is no" in read(tmp_path, "other", tmp_path / "out").stderr


def test_no_part_of_a_ref_ends_as_the_names_of_moves_do(tmp_path: Path) -> None:
    made, _ = write(tmp_path / "store")
    (head,) = (ref.head for ref in made._refs.values())
    for name in ("x.ref", "x.step/y", "x.off"):
        made.tag(name, head)
        result = read(tmp_path / "store", name, tmp_path / "out")
        assert result.returncode == 1, f"{name} is read"
    assert len(problems(tmp_path / "store")) == 3


def test_nothing_follows_the_last_position_of_a_policy(tmp_path: Path) -> None:
    made, _ = write(tmp_path)
    last = f"policies/999999999999-{'a' * 16}"
    made._put(last, sealed("k", packed({"time": TIME, "keep": []})))
    with (
        casweights.open(tmp_path) as repo,
        pytest.raises(IntegrityError, match=f"{last}.*the last one"),
    ):
        repo.set_policy(casweights.Keep(last=1))


def test_a_deletion_says_what_was_deleted(tmp_path: Path) -> None:
    made, _ = write(tmp_path)
    made.delete_branch("main")
    assert problems(tmp_path) == []
    with casweights.open(tmp_path) as repo:
        assert list(repo.deleted()) == ["heads/main"]
    path = tmp_path / MAIN / "000000000004.ref"
    path.write_bytes(sealed("r", packed({"snapshot": NOWHERE, "time": TIME})))
    (problem,) = problems(tmp_path)
    assert "lacks before" in problem


def test_segments_of_the_last_generation_are_merged_all_the_same(tmp_path: Path) -> None:
    made, ids = write(tmp_path / "store")
    made._packs[bytes(32)] = tuple(bytes([n]) * 32 for n in range(99))  # of a pack that is gone
    made.segment(0, generation=2**32 - 1)
    with casweights.open(tmp_path / "store") as repo:
        assert repo.maintain().segment_bytes > 0
        assert repo.stats().segment_rewrites == 2**32 - 1
    assert_reads(tmp_path / "store", ids, tmp_path / "out")


def test_packs_of_the_last_generation_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forge(value: dict[str, Any]) -> bytes:
        return packed(value | {"generation": 2**32 - 1} if "generation" in value else value)

    monkeypatch.setattr(writer, "_msgpack", forge)
    _, ids = write(tmp_path / "store")
    with (
        casweights.open(tmp_path / "store") as repo,
        pytest.raises(IntegrityError, match="forged, and nothing can replace it"),
    ):
        repo.repack()
    assert_reads(tmp_path / "store", ids, tmp_path / "out")
