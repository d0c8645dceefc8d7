"""The verbs that show versions and stores: ``log``, ``show``, ``ls``, ``diff``, ``stats``."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

import casweights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Json, Run


def test_log_prints_one_line_per_version(run: Run, store: Path) -> None:
    run("branch", "dev", "v1")
    lines = run("log").stdout.splitlines()
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"[0-9a-f]{{12}}  {moment}  242\.3 kB  \(main\) second", lines[0])
    assert re.fullmatch(rf"[0-9a-f]{{12}}  {moment}  242\.3 kB  \(dev, tag v1\) first", lines[1])
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        ((), ["second\n\nwith a body", "first"]),
        (("-n", "1"), ["second\n\nwith a body"]),
        (("-n", "9"), ["second\n\nwith a body", "first"]),
        (("v1",), ["first"]),
        (("main~1",), ["first"]),
        (("heads/main", "-n1"), ["second\n\nwith a body"]),
    ],
)
def test_log_lists_the_history_of_a_ref(
    run_json: Json, store: Path, args: tuple[str, ...], messages: list[str]
) -> None:
    assert [row["message"] for row in run_json("log", *args)] == messages


def test_log_json_is_an_array_with_one_version_per_line(run: Run, store: Path) -> None:
    text = run("log", "--json").stdout
    assert len(text.splitlines()) == len(json.loads(text)) == 2


def test_log_of_an_empty_store_is_an_error(run: Run) -> None:
    run("init")
    assert "main" in run("log", status=1).stderr


def test_log_refuses_a_limit_of_zero(run: Run, store: Path) -> None:
    assert "-n" in run("log", "-n", "0", status=2).stderr


def test_a_prefix_of_four_digits_names_a_version(run: Run, store: Path) -> None:
    full = run("show", "v1", "-q").stdout.strip()
    assert run("show", full[:12], "-q").stdout.strip() == full
    assert run("show", full[:4].upper(), "-q").stdout.strip() == full
    run("show", full[:3], status=1)


def test_show_prints_aligned_fields_and_the_message(run: Run, store: Path) -> None:
    ids = run("log", "-q").stdout.split()
    lines = run("show").stdout.splitlines()
    assert lines[0] == f"{ids[0]} (main)"
    shown = dict(line.split(maxsplit=1) for line in lines[1 : lines.index("")])
    time = datetime.strptime(shown.pop("time"), "%Y-%m-%d %H:%M:%S %z")
    with casweights.open(store) as repository:
        assert time == repository.snapshot("main").time.replace(microsecond=0)
    assert shown == {
        "parent": ids[1],
        "author": "Ada",
        "size": "242.3 kB in 3 files, 3 tensors, 8 chunks",
        "chunks": "up to 64 KiB, blake3",
        "metadata": "step = 10",
    }
    assert lines[lines.index("") + 1 :] == ["    second", "", "    with a body"]


def test_show_json_has_the_fields_of_the_snapshot(run_json: Json, store: Path) -> None:
    row = run_json("show")
    with casweights.open(store) as repository:
        snapshot = repository.snapshot("main")
    assert row["id"] == str(snapshot.id)
    assert row["parents"] == [str(parent) for parent in snapshot.parents]
    assert datetime.fromisoformat(row["time"]) == snapshot.time
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", row["time"])
    assert row["metadata"] == {"step": 10}
    assert (row["branches"], row["tags"]) == (["main"], [])
    assert (row["size"], row["files"], row["tensors"]) == (snapshot.size, 3, 3)


def test_infinities_and_nan_are_strings_in_json(run_json: Json, model: Path) -> None:
    with casweights.open(".casweights", create=True) as repository:
        numbers = {"a": float("nan"), "b": [float("inf"), float("-inf")], "c": {"d": 1e300}}
        repository.commit(model, metadata=numbers)
    assert run_json("show")["metadata"] == {
        "a": "NaN",
        "b": ["Infinity", "-Infinity"],
        "c": {"d": 1e300},
    }


def test_ls_lists_files_with_sizes_and_tensors(
    run: Run, run_json: Json, store: Path, model: Path
) -> None:
    size = (model / "model.safetensors").stat().st_size
    assert run("ls").stdout.splitlines() == [
        "    19 B  config.json",
        "242.3 kB  model.safetensors  3 tensors",
        "     4 B  vocab.txt",
    ]
    assert run_json("ls") == [
        {"path": "config.json", "size": 19, "tensors": None},
        {"path": "model.safetensors", "size": size, "tensors": 3},
        {"path": "vocab.txt", "size": 4, "tensors": None},
    ]
    assert run("ls", "v1", "-q").stdout.split() == [
        "config.json",
        "model.safetensors",
        "notes/readme.md",
    ]


def test_ls_tensors_lists_types_and_shapes(run: Run, run_json: Json, store: Path) -> None:
    assert run("ls", "--tensors").stdout.splitlines() == [
        "160.0 kB  F32  [40, 1000]  embed.weight",
        " 80.0 kB  F32  [1000, 20]  head.weight",
        "  2.0 kB  F16  [1000]      head.bias",
    ]
    assert run_json("ls", "--tensors")[2] == {
        "file": "model.safetensors",
        "name": "head.bias",
        "dtype": "F16",
        "shape": [1000],
        "size": 2000,
    }
    assert run("ls", "v1", "--tensors", "-q").stdout.split() == [
        "embed.weight",
        "head.weight",
        "head.bias",
    ]


def test_ls_tensors_of_several_files_names_the_files(run: Run, model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "b.safetensors").write_bytes((model / "a.safetensors").read_bytes())
    run("init")
    run("commit", "model")
    lines = run("ls", "--tensors").stdout.splitlines()
    assert lines[0] == "160.0 kB  F32  [40, 1000]  a.safetensors  embed.weight"
    assert lines[5] == "  2.0 kB  F16  [1000]      b.safetensors  head.bias"


def test_an_empty_listing_prints_nothing_or_an_empty_array(run: Run, run_json: Json) -> None:
    run("init")
    assert run("tag").stdout == ""
    assert run_json("tag") == []


def test_diff_prints_one_line_per_change(run: Run, store: Path) -> None:
    assert run("diff", "v1", "main").stdout.splitlines() == [
        "~ model.safetensors",
        "  ~   2.0 kB  head.bias  F16 [1000]",
        "-           notes/readme.md  8 bytes",
        "+      4 B  vocab.txt  4 bytes",
        "1 added, 1 removed, 1 changed, 4 unchanged; 2.0 kB new",
    ]
    assert run("diff", "main", "main").stdout == "no difference, 6 unchanged\n"


def test_diff_prints_a_new_file_in_one_line(run: Run, model: Path) -> None:
    run("init")
    run("commit", "model/config.json")
    run("commit", "model")
    assert run("diff", "main~1", "main").stdout.splitlines()[0] == (
        "+ 242.0 kB  model.safetensors  242272 bytes"
    )


def test_diff_prints_changed_shapes_and_metadata(run: Run, model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    run("init")
    run("commit", "model")
    tensors = load_file(model / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"][:10]
    save_file(tensors, model / "model.safetensors", metadata={"format": "np"})
    run("commit", "model")
    lines = run("diff", "main~", "main").stdout.splitlines()
    assert re.fullmatch(r"~     20 B  model\.safetensors  242272 bytes -> \d+ bytes", lines[0])
    assert lines[1] == "  ~     20 B  head.bias  F16 [1000] -> F16 [10]"


def test_diff_says_where_tensors_were(run: Run, model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    run("init")
    run("commit", "model")
    file = model / "model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("head", "lm_head"): tensors[name] for name in tensors}, file)
    run("commit", "model")
    lines = run("diff", "main~1", "main").stdout.splitlines()
    assert lines[1] == (
        "  >      0 B  lm_head.bias  F16 [1000]  renamed from head.bias, same content"
    )
    assert lines[-1].startswith("1 changed, 2 renamed, ")
    file.rename(model / "weights.safetensors")
    run("commit", "model")
    paths = ["model.safetensors", "weights.safetensors"]
    assert run("diff", "main~1", "main", "-q").stdout.split() == paths


def test_diff_json_lists_the_changes(run: Run, run_json: Json, store: Path) -> None:
    new, old = run("log", "-q").stdout.split()
    diff = run_json("diff", "v1", "main")
    assert (diff["old"], diff["new"]) == (old, new)
    assert diff["files"] == ["model.safetensors", "notes/readme.md", "vocab.txt"]
    assert diff["changes"][0] == {
        "kind": "changed",
        "file": "model.safetensors",
        "tensor": "head.bias",
        "old": "F16 [1000]",
        "new": "F16 [1000]",
        "old_file": None,
        "old_tensor": None,
        "sources": [],
        "same_content": False,
        "new_bytes": 2000,
    }
    assert [change["kind"] for change in diff["changes"]] == ["changed", "removed", "added"]
    assert (diff["unchanged"], diff["new_bytes"]) == (4, 2004)


def test_diff_quiet_lists_the_files_that_differ(run: Run, store: Path) -> None:
    paths = ["model.safetensors", "notes/readme.md", "vocab.txt"]
    assert run("diff", "v1", "main", "-q").stdout.splitlines() == paths
    assert run("diff", "v1", "v1", "-q").stdout == ""


@pytest.mark.usefixtures("packs_apart")
def test_stats_compare_the_store_with_plain_copies(run: Run, run_json: Json, store: Path) -> None:
    stats = run_json("stats")
    assert (stats["versions"], stats["packs"], stats["chunks"]) == (2, 2, 10)
    files = [path.stat().st_size for path in (store / "packs").iterdir()]
    assert stats["pack_bytes"] == sum(files)
    parts = ("pack_bytes", "snapshot_bytes", "segment_bytes")
    assert stats["stored_bytes"] == sum(stats[part] for part in parts)
    assert sum(stats["encodings"].values()) == stats["chunks"]
    assert "by_version" not in stats
    lines = run("stats").stdout.splitlines()
    assert lines[0] == "versions   2, 484.6 kB as plain copies"
    assert re.fullmatch(r"stored     \d+\.\d kB in 2 packs, \d\d\.\d % of plain copies", lines[1])
    assert run("stats", "-q").stdout == f"{stats['stored_bytes']}\n"


def test_stats_versions_list_each_version_oldest_first(
    run: Run, run_json: Json, store: Path
) -> None:
    ids = run("log", "-q").stdout.split()[::-1]
    by_version = run_json("stats", "--versions")["by_version"]
    assert [row["id"] for row in by_version] == ids
    assert by_version[1]["new_bytes"] == 2004
    lines = run("stats", "--versions").stdout.splitlines()
    assert lines[0].split() == ["VERSION", "SIZE", "NEW", "STORED", "READ", "CHAIN"]
    assert [line.split()[0] for line in lines[1:3]] == [full[:12] for full in ids]


def test_stats_of_an_empty_store_are_zero(run: Run) -> None:
    run("init")
    assert run("stats").stdout.splitlines() == [
        "versions  0, 0 B as plain copies",
        "stored    0 B in 0 packs",
        "chunks    0, 0 B before encoding",
    ]


def test_stats_of_a_store_larger_than_plain_copies_print_a_factor(run: Run, model: Path) -> None:
    run("init")
    run("commit", "model/config.json")
    line = run("stats").stdout.splitlines()[1]
    assert re.fullmatch(
        r"stored     [\d,]+ B in 1 pack, \d\d\.\d times the size of plain copies", line
    )
