"""Directories come back as they were: every name, every byte."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import safetensors
from hypothesis import strategies as st

import casweights
from casweights.config import Compression, DigestName, KiB, StoreConfig
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.testing.strategies import contents, file_names, trees
from casweights.testing.trees import Link, Tree, read_tree, resolve_links, write_tree
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

compressions = st.sampled_from(["auto", "fast", "small"])


@contextmanager
def workspace(digest: DigestName = "blake3") -> Iterator[tuple[casweights.Repository, Path]]:
    """Provide a store with small chunks, and an empty folder to work in."""
    config = StoreConfig(digest=digest, chunk_size=64 * KiB)
    with (
        tempfile.TemporaryDirectory() as folder,
        casweights.open("memory://", create=True, config=config, workers=2) as repo,
    ):
        yield repo, Path(folder)


@pytest.mark.parametrize("digest", ["blake3", "xxh3-128"])
@hypothesis.settings(max_examples=examples(15))
@hypothesis.given(tree=trees(), compression=compressions)
def test_any_directory_comes_back(digest: DigestName, tree: Tree, compression: Compression) -> None:
    with workspace(digest) as (repo, folder):
        write_tree(tree, folder / "in")
        snapshot = repo.commit(folder / "in", compression=compression)
        repo.checkout(snapshot, folder / "out")
        expected = resolve_links(tree)
        assert read_tree(folder / "out") == expected
        assert {f.path: b"".join(repo.read(snapshot, f.path)) for f in snapshot.files} == expected
        assert not repo.verify().problems
        assert repo.commit(folder / "out", branch="again").files == snapshot.files


@st.composite
def disturbed(draw: st.DrawFn, tree: Tree) -> Tree:
    """Draw a tree as it is after local changes."""
    result: Tree = {}
    for path, content in resolve_links(tree).items():
        kind = draw(st.sampled_from(["same", "edited", "cut", "longer", "other", "link", "gone"]))
        if kind == "edited" and content:
            place = draw(st.integers(0, len(content) - 1))
            result[path] = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        elif kind == "cut":
            result[path] = content[: len(content) // 2]
        elif kind == "longer":
            result[path] = content + b"more"
        elif kind == "other":
            result[path] = draw(contents())
        elif kind == "link" and result:
            result[path] = Link(draw(st.sampled_from(sorted(result))))
        elif kind != "gone":
            result[path] = content
    result.update({f"extra/{name}": b"theirs" for name in draw(st.lists(file_names(), max_size=2))})
    return result


@hypothesis.settings(max_examples=examples(20))
@hypothesis.given(data=st.data(), tree=trees(), delete=st.booleans())
def test_checkout_over_other_files_restores_the_version(
    data: st.DataObject, tree: Tree, delete: bool
) -> None:
    there = data.draw(disturbed(tree))
    with workspace() as (repo, folder):
        write_tree(tree, folder / "in")
        write_tree(there, folder / "out")
        expected = resolve_links(tree)
        kept = {} if delete else {p: c for p, c in resolve_links(there).items() if p not in tree}
        snapshot = repo.commit(folder / "in")
        repo.checkout(snapshot, folder / "out", delete=delete, overwrite=True)
        assert read_tree(folder / "out") == expected | kept
        assert not any((folder / "out" / path).is_symlink() for path in tree)


@hypothesis.settings(max_examples=examples(15))
@hypothesis.given(old=trees(), new=trees())
def test_checkout_over_another_version_restores_the_version(old: Tree, new: Tree) -> None:
    with workspace() as (repo, folder):
        write_tree(old, folder / "old")
        write_tree(new, folder / "new")
        repo.checkout(repo.commit(folder / "old"), folder / "out")
        second = repo.commit(folder / "new")
        if lies_inside(old, new) or lies_inside(new, old):
            with pytest.raises(InvalidInputError, match="in the way") as caught:
                repo.checkout(second, folder / "out", delete=True)
            assert caught.value.code is ErrorCode.BAD_PATH
            assert read_tree(folder / "out") == resolve_links(old)
        else:
            repo.checkout(second, folder / "out", delete=True)
            assert read_tree(folder / "out") == resolve_links(new)


def lies_inside(folders: Tree, files: Tree) -> bool:
    """Return whether some path is a file in one tree and a folder in the other."""
    return any(path.startswith(f"{file}/") for path in folders for file in files)


def tensors_of(file: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Return type, shape and bytes of every tensor, read without the code under test."""
    length = int.from_bytes(file[:8], "little")
    table = json.loads(file[8 : 8 + length])
    table.pop("__metadata__", None)
    data = file[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in table.items()
    }


def is_model(file: bytes) -> bool:
    """Return whether a file is safetensors by its content."""
    try:
        safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


@hypothesis.settings(max_examples=examples(20))
@hypothesis.given(data=st.data(), tree=trees())
def test_checkout_of_a_part_writes_only_that_part(data: st.DataObject, tree: Tree) -> None:
    files = resolve_links(tree)
    tables = {path: tensors_of(content) for path, content in files.items() if is_model(content)}
    names = sorted({name for table in tables.values() for name in table} | files.keys())
    literal = st.sampled_from(names).map(lambda name: name.replace("[", "[[]"))
    wild = st.sampled_from(["*", "layers.*", "*.weight", "*.safetensors", "model-00001*", "a*"])
    include = data.draw(st.lists(st.one_of(literal, wild), max_size=3))

    def chosen(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in include)

    whole = {path for path in files if chosen(path)}
    parts = {
        path: {name: tensor for name, tensor in table.items() if chosen(name)}
        for path, table in tables.items()
        if path not in whole and any(map(chosen, table))
    }
    with workspace() as (repo, folder):
        write_tree(tree, folder / "in")
        snapshot = repo.commit(folder / "in")
        if not whole and not parts:
            with pytest.raises(NotFoundError):
                repo.checkout(snapshot, folder / "out", include=include)
            return
        repo.checkout(snapshot, folder / "out", include=include)
        out = read_tree(folder / "out")
        assert out.keys() == whole | parts.keys()
        assert all(out[path] == files[path] for path in whole)
        assert {path: tensors_of(out[path]) for path in parts} == parts
