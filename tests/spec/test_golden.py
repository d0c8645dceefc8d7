"""Every version of the library reads the golden stores that the first one wrote.

The stores in ``golden/`` are replaced only together with the format: run ``python
-m tools.spec.golden tests/golden`` in the commit that changes ``docs/format.md``, and in no other.
``expected.json`` lists their content. It was made from the input and not from the output, except
for the file of a state dict.
"""

from __future__ import annotations

import importlib
import json
import shutil
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import msgpack
import pytest
import xxhash

import casweights
from casweights import Keep
from casweights.content.states import StateFile
from casweights.content.trees import CARRIED
from casweights.database.packs import list_packs, read_pack
from casweights.format.safetensors import TREE_KEY
from casweights.stores.local import LocalStore
from tests.spec.forging import read_parts
from tests.spec_states import describe_read

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
STORES: dict[str, dict[str, Any]] = json.loads(
    (GOLDEN / "expected.json").read_text(encoding="utf-8")
)
VERSIONS = [(name, version) for name, store in STORES.items() for version in store["versions"]]
versions = pytest.mark.parametrize(
    ("store", "version"), VERSIONS, ids=[f"{store}-{version[:8]}" for store, version in VERSIONS]
)
states = pytest.mark.parametrize(
    ("store", "version"),
    [(name, version) for name, version in VERSIONS if "state" in STORES[name]["versions"][version]],
)
stores = pytest.mark.parametrize("store", STORES)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The program that made the stores, as a module."""
    return importlib.import_module("tools.spec.golden")


def test_golden_stores_of_both_digests_exist() -> None:
    assert sorted(STORES) == ["blake3", "xxh3-128"]


@versions
def test_library_checks_version_out(
    store: str, version: str, maker: ModuleType, tmp_path: Path
) -> None:
    with casweights.open(GOLDEN / store) as repository:
        repository.checkout(version, tmp_path)
    assert maker.hash_files(tmp_path) == STORES[store]["versions"][version]["files"]


@versions
def test_spec_reader_checks_version_out(
    store: str, version: str, maker: ModuleType, tmp_path: Path
) -> None:
    arguments = map(str, (GOLDEN / store, version, tmp_path / "out"))
    command = [sys.executable, "-sE", "-m", "tools.spec.reader", *arguments]
    subprocess.run(command, check=True, cwd=ROOT)
    assert maker.hash_files(tmp_path / "out") == STORES[store]["versions"][version]["files"]


@versions
def test_manifest_says_what_was_committed(store: str, version: str, maker: ModuleType) -> None:
    expected = STORES[store]["versions"][version]
    with casweights.open(GOLDEN / store) as repository:
        assert maker.describe_version(repository.snapshot(version), expected["files"]) == {
            key: value for key, value in expected.items() if key != "state"
        }


@stores
def test_state_dict_comes_back(store: str, maker: ModuleType) -> None:
    states = {
        version: expected["state"]
        for version, expected in STORES[store]["versions"].items()
        if "state" in expected
    }
    assert states
    with casweights.open(GOLDEN / store) as repository:
        for version, expected in states.items():
            state = repository.load(version)
            assert maker.describe(state) == expected
        state = repository.load("states/run_1")
        assert state["model"]["wte"] is state["model"]["lm_head"]


@states
def test_spec_reader_rebuilds_the_state_dict(store: str, version: str) -> None:
    state = importlib.import_module("tools.spec.state").read_state(GOLDEN / store, version)
    expected = STORES[store]["versions"][version]["state"]
    assert json.loads(json.dumps(describe_read(state))) == expected


def test_the_states_have_every_kind_of_node(maker: ModuleType) -> None:
    files = [StateFile(make()) for make in (maker.make_state, maker.make_state_of_all_kinds)]
    text = "".join(file.outline.header.metadata[TREE_KEY] for file in files)
    kinds = ("tensor", "dict", "list", "tuple", "value", *CARRIED)
    assert [kind for kind in kinds if f'["{kind}",' not in text] == []


@stores
def test_branches_and_tags_are_as_expected(store: str) -> None:
    with casweights.open(GOLDEN / store) as repository:
        branches = {name: str(target) for name, target in repository.branches().items()}
        tags = {name: str(target) for name, target in repository.tags().items()}
        history = [str(snapshot.id) for snapshot in repository.log("main")]
    assert branches == STORES[store]["branches"]
    assert tags == STORES[store]["tags"]
    assert branches["recreated"] == tags["recreated"] == tags["v1.0"]
    assert history == [branches["main"], tags["v1.0"]]


@stores
def test_deleted_branches_and_tags_are_as_expected(store: str, tmp_path: Path) -> None:
    with casweights.open(GOLDEN / store) as repository:
        deleted = {name: str(target) for name, target in repository.deleted().items()}
    assert deleted == STORES[store]["deleted"]
    assert deleted.keys() == {f"{k}/{n}" for k in ("heads", "tags") for n in ("deleted", "trimmed")}
    logs = {
        name: [path.name for path in (GOLDEN / store / "refs" / name).iterdir()] for name in deleted
    }
    assert [len(logs[f"{kind}/trimmed"]) for kind in ("heads", "tags")] == [1, 1]
    reader = importlib.import_module("tools.spec.reader")
    for name in ("deleted", "trimmed"):
        with pytest.raises(reader.StoreError, match="there is no branch or tag"):
            reader.find_snapshot(GOLDEN / store, name)
    again = reader.find_snapshot(GOLDEN / store, "recreated")
    assert again == STORES[store]["branches"]["recreated"]


@stores
def test_store_is_sound_and_has_every_encoding(store: str) -> None:
    with casweights.open(GOLDEN / store) as repository:
        assert repository.verify().problems == ()
        stats = repository.stats()
        assert set(stats.encodings) == {
            *("raw", "zstd", "planes", "dense", "sparse", "parts", "derived"),
            *("low_rank", "records"),
        }
        assert max(version.longest_chain for version in stats.versions) > 2


@stores
def test_store_has_derived_frames_by_every_rule(store: str) -> None:
    chunks = importlib.import_module("tools.spec.chunks")
    folders = [GOLDEN / store / name for name in ("packs", "snapshots")]
    names = [f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir()]
    frames = [frame for name in names for frame in chunks.read_index(GOLDEN / store, name)]
    rules = {
        (GOLDEN / store / frame.name).read_bytes()[frame.offset]
        for frame in frames
        if frame.encoding == 6
    }
    assert rules == {0, 1, 2}


@stores
def test_store_has_packs_of_two_generations(store: str) -> None:
    objects = LocalStore(GOLDEN / store)
    assert {read_pack(objects, info).generation for info in list_packs(objects)} == {0, 1}


@stores
def test_store_has_a_segment_as_the_page_says(store: str) -> None:
    """The expected rows are those that the independent reader finds in the packs."""
    chunks = importlib.import_module("tools.spec.chunks")
    [path] = (GOLDEN / store / "segments").iterdir()
    data = path.read_bytes()
    size, magic = struct.unpack("<I4s", data[-8:])
    index = data[-8 - size : -8]
    assert (data[:8], magic) == (b"caswi\2\0\0", b"cidx")
    assert blake3.blake3(data[:8] + index).hexdigest() == path.name
    rows, packs, bits, generation = struct.unpack("<4I", index[-16:])
    assert generation == 0
    covered = list(struct.iter_unpack("<32sBI", index[8 << bits : -16]))
    assert len(covered) == packs
    assert {kind for _, kind, _ in covered} == {0, 1}
    expected = []
    for number, (pack, kind, own) in enumerate(covered):
        name = f"{('packs', 'snapshots')[kind]}/{pack.hex()}"
        keys = {frame.chunk[:16] for frame in chunks.read_index(GOLDEN / store, name)}
        assert len(keys) == own
        expected += [key + struct.pack("<I", number) for key in keys]
    content = data[8 : -8 - size]
    assert content == b"".join(sorted(expected))
    assert rows == len(expected)
    start = 0
    for bucket, (end, check) in enumerate(struct.iter_unpack("<I4s", index[: 8 << bits])):
        own_rows = content[20 * start : 20 * end]
        assert xxhash.xxh3_64_digest(own_rows)[:4] == check
        leading = {int.from_bytes(own_rows[n : n + 2], "big") for n in range(0, len(own_rows), 20)}
        assert {number >> 16 - bits for number in leading} <= {bucket}
        start = end
    assert start == rows


@stores
def test_store_has_headers_and_lists_of_several_structure_chunks(store: str) -> None:
    with casweights.open(GOLDEN / store) as repository:
        [row] = (file.row(repository.config) for file in repository.snapshot("wide").files)
    assert min(len(row.header), len(row.pages)) > 1


@stores
def test_store_has_a_page_stored_as_a_difference(store: str) -> None:
    chunks = importlib.import_module("tools.spec.chunks")
    names = [info.name for info in list_packs(LocalStore(GOLDEN / store))]
    frames = [frame for name in names for frame in chunks.read_index(GOLDEN / store, name)]
    differences = {frame.chunk for frame in frames if frame.base is not None}
    with casweights.open(GOLDEN / store) as repository:
        for version in [*repository.log("wide")][:-1]:  # the first has no page to differ from
            assert differences & set(version.files[0].row(repository.config).pages)


@stores
@pytest.mark.parametrize("branch", ["states/all_kinds", "wide"])
def test_pack_tables_say_where_chunks_are(store: str, branch: str, tmp_path: Path) -> None:
    """The IDs are in the order of the page; structure chunks need only the first packs."""
    reader, chunks = map(importlib.import_module, ("tools.spec.reader", "tools.spec.chunks"))
    root, version = GOLDEN / store, STORES[store]["branches"][branch]
    chunking = reader.read_config(root)
    manifest, table = read_parts(root / "snapshots" / version)
    structure = [
        chunk for row in manifest["files"] for chunk in reader.parse_row(chunking, *row).structure
    ]
    files, _ = reader.read_snapshot(root, version, chunking)
    listed = [*structure, *(chunk for file in files for chunk in file.chunks)]
    own = f"snapshots/{version}"
    carries = [own] if chunks.read_index(root, own) else []
    packs, _ = reader.parse_pack_table(msgpack.packb(table), carries)
    indexes = [{frame.chunk for frame in chunks.read_index(root, name)} for name in packs]
    for (chunk, _), pack in zip(dict.fromkeys(listed), table["pack"], strict=True):
        assert chunk in indexes[pack]
    for name in packs[: table["structure"]]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    read = chunks.ChunkReader(tmp_path, chunking.digest, chunking.chunk_size, []).read
    assert all(len(read(*chunk)) == chunk[1] for chunk in structure)


@stores
def test_versions_are_numbered(store: str) -> None:
    versions = STORES[store]["versions"]
    for version in versions.values():
        numbers = [versions[parent]["number"] for parent in version["parents"]]
        assert version["number"] == 1 + (numbers[0] if numbers else 0)
    assert max(version["number"] for version in versions.values()) > 2


@stores
def test_lineage_lists_what_frames_were_made_from(store: str) -> None:
    reader, lineage = map(importlib.import_module, ("tools.spec.reader", "tools.spec.lineage"))
    for version, expected in STORES[store]["lineage"].items():
        name, index, _ = reader.read_version(GOLDEN / store, version)
        manifest = reader.expand(index["manifest"], index["manifest_size"], 1 << 20, name)
        nbytes = sum(row[1] for row in msgpack.unpackb(manifest)["files"])
        found = lineage.parse_lineage(index, version, nbytes, name)
        assert [list(row) for row in found] == expected
        with casweights.open(GOLDEN / store) as repository:
            stored = repository.database.snapshots.load_stored(repository.resolve(version))
        assert [[str(one.snapshot), one.nbytes] for one in stored.lineage] == expected
        assert " in versions/" in name  # archives keep it


@stores
def test_history_has_the_expired_versions(store: str) -> None:
    """The library and the independent reader list the same history, with the same records."""
    history = importlib.import_module("tools.spec.history")
    expected = STORES[store]["tuned"]
    assert [row[1:] for row in expected] == [
        [5],
        [4, "2025-01-09T12:30:15.250000+00:00", "last 1"],
        [3, "2025-01-08T12:30:15.250000+00:00", "last 2"],
        [2],
        [1],
    ]
    found = []
    for snapshot, number, row in history.read_history(GOLDEN / store, "tuned"):
        found.append([snapshot, number])
        if row is not None:
            time = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row.time)
            found[-1] += [time.isoformat(), row.policy]
    assert found == expected
    listed = []
    with casweights.open(GOLDEN / store) as repository:
        for version, gap in repository.history("tuned"):
            listed.append([str(version.id), version.number])
            listed += [[str(row.id), row.number, row.time.isoformat(), row.policy] for row in gap]
    assert listed == expected
    assert len(list((GOLDEN / store / "expired").iterdir())) == 2


@stores
def test_store_has_a_policy(store: str) -> None:
    history = importlib.import_module("tools.spec.history")
    assert history.read_policy(GOLDEN / store) == [
        {"branches": "t*", "every": 5, "where": "eval > 0.5"},
        {"branches": "*", "within": 86_400_000_000},
    ]
    with casweights.open(GOLDEN / store) as repository:
        assert repository.policy() == (
            Keep(branches="t*", every=5, where="eval > 0.5"),
            Keep(within=timedelta(days=1)),
        )


def test_same_input_still_has_the_same_ids(maker: ModuleType, tmp_path: Path) -> None:
    """Chunks, digests, manifests and the files of state dicts have not changed."""
    assert json.loads(json.dumps(maker.make_all(tmp_path))) == STORES
