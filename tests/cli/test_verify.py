"""The verb ``verify``, and the errors of other verbs in a damaged store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casweights.database.packs import read_pack_index
from casweights.errors import ErrorCode, StoreError
from casweights.format.codecs import Encoding
from casweights.format.hashing import checksum
from casweights.format.pack import build_index
from casweights.stores.base import ObjectInfo
from casweights.stores.local import LocalStore
from casweights.testing.trees import read_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.system.buffers import Buffer
    from tests.cli.conftest import Json, Run

pytestmark = pytest.mark.usefixtures("both_forms")


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def with_frames(store: Path) -> list[Path]:
    """Return the files that may contain frames."""
    return [*store.glob("packs/*"), *store.glob("snapshots/*")]


@pytest.fixture
def damaged(store: Path) -> Path:
    """A store with a flipped bit in the first frame of its largest object."""
    damage(max(with_frames(store), key=lambda path: path.stat().st_size), 100)
    return store


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_verify_of_a_sound_store_finds_no_problems(
    run: Run, run_json: Json, store: Path, options: tuple[str, ...]
) -> None:
    text = run("verify", *options).stdout
    assert text.startswith("no problems in 2 versions, 2 packs, 13 frames, ")
    assert run("verify", "-q", *options).stdout == ""
    checked = sum(path.stat().st_size for path in with_frames(store))
    assert run_json("verify", *options) == [
        {
            "message_type": "summary",
            "problems": 0,
            "quick": bool(options),
            "versions": 2,
            "packs": 2,
            "checked_frames": 13,
            "frames": 13,  # of 10 chunks, a header, and two lists of chunks
            "checked_bytes": checked,
            "archives": 0,
            "damaged": 0,
            "noted": None,
            "lost": 0,
        }
    ]


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_verify_lists_each_problem_and_exits_with_13(
    run: Run, run_json: Json, damaged: Path, options: tuple[str, ...]
) -> None:
    *printed, summary = run_json("verify", *options, status=13)
    problems = [line for line in printed if line["message_type"] != "progress"]  # of slow machines
    assert {problem["message_type"] for problem in problems} == {"problem"}
    assert {problem["code"] for problem in problems} == {"corrupt-object", "missing-chunk"}
    assert summary["problems"] == len(problems) == 3  # the frame, and both versions that need it
    lines = run("verify", *options, status=13).stdout.splitlines()
    assert lines[:-2] == [f"Problem: {problem['message']}" for problem in problems]
    assert lines[-2].startswith(f"1 damaged part noted in {damaged}: `casweights repair`")
    assert lines[-1].startswith("3 problems in 2 versions")
    assert (summary["damaged"], summary["noted"]) == (1, str(damaged))
    quiet = run("verify", *options, "-q", status=13)
    assert quiet.stdout.splitlines() == lines[:-2]
    assert quiet.stderr == ""


@pytest.mark.parametrize("notes", [True, False])
def test_damage_of_a_read_only_store_is_noted_on_this_machine(
    run: Run,
    run_json: Json,
    damaged: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    notes: bool,
) -> None:
    put = LocalStore.put

    def refuse(self: LocalStore, name: str, parts: Sequence[Buffer]) -> bool:
        if not notes or self.root == damaged:
            raise StoreError(ErrorCode.NO_PERMISSION, f"cannot write {name}")
        return put(self, name, parts)

    monkeypatch.setattr(LocalStore, "put", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "caches"))
    folder = work / "caches" / "casweights" / "notes" if notes else None
    *_, summary = run_json("verify", status=13)
    assert (summary["damaged"], summary["noted"]) == (1, str(folder) if folder else None)
    line = run("verify", status=13).stdout.splitlines()[-2]
    assert line.startswith(f"1 damaged part noted {f'in {folder}' if folder else 'nowhere'}: ")
    assert not (damaged / "damaged").exists()


@pytest.mark.usefixtures("packs_apart")
def test_quick_does_not_find_a_forged_frame(run: Run, store: Path) -> None:
    """Only decoding finds a frame that was forged together with its checksum."""
    forge(max((store / "packs").iterdir(), key=lambda path: path.stat().st_size))
    run("verify", "--quick")
    run("verify", status=13)


def forge(pack: Path) -> None:
    """Change a byte of a pack, its checksums and its name."""
    info = ObjectInfo(f"packs/{pack.name}", pack.stat().st_size)
    frames = [place.frame for place in read_pack_index(LocalStore(pack.parent.parent), info)]
    data = pack.read_bytes()[: frames[-1].offset + frames[-1].size]
    raw = next(n for n, frame in enumerate(frames) if frame.encoding == Encoding.RAW)
    start, end = frames[raw].offset, frames[raw].offset + frames[raw].size
    forged = bytes([data[start] ^ 1]) + data[start + 1 : end]
    frames[raw] = frames[raw]._replace(checksum=checksum(forged))
    name, ending = build_index(frames)
    pack.unlink()
    (pack.parent / str(name)).write_bytes(data[:start] + forged + data[end:] + ending)


def test_checkout_and_cat_of_damaged_content_exit_with_13(run: Run, damaged: Path) -> None:
    result = run("checkout", "main", "out", status=13)
    assert "casweights verify" in result.stderr
    assert not Path("out").exists() or read_tree(Path("out")) == {}
    result = run("checkout", "main", "out", "--json", status=13)
    assert result.stdout == ""
    error = json.loads(result.stderr)
    assert (error["code"], error["exit_code"]) == ("corrupt-object", 13)
    run("cat", "main", "model.safetensors", status=13)
    run("cat", "main", "config.json")


@pytest.mark.parametrize("verb", ["log", "show", "ls", "stats", "tag"])
def test_a_damaged_snapshot_exits_with_13(run: Run, store: Path, verb: str) -> None:
    snapshot = run("show", "v1", "-q").stdout.strip()
    damage(store / "snapshots" / snapshot, -30)
    run(verb, *(["v1"] if verb in ("log", "show", "ls") else []), status=13)


def test_a_damaged_store_file_exits_with_13(run: Run, store: Path) -> None:
    (store / "casweights.json").chmod(0o644)
    (store / "casweights.json").write_text("{}")
    for verb in ("log", "init", "verify"):
        run(verb, status=13)
