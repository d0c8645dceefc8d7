"""The command line does what ``docs/scripting.md`` documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.cli import _progress
from casweights.cli._app import VERBS
from casweights.cli._errors import MEANINGS, Exit
from casweights.operations import maintain, merging
from casweights.stores.local import LocalStore
from tests.ages import DAY, GRACE, age
from tests.cli.test_verify import damage, with_frames
from tests.operations.collecting import expired_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.cli.conftest import Json, Run


PAGE = (Path(__file__).parents[2] / "docs" / "scripting.md").read_text()
TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "string or null": lambda value: value is None or isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) is float,
    "integer or null": lambda value: value is None or type(value) is int,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "object or null": lambda value: value is None or isinstance(value, dict),
    "array of strings": lambda value: all(isinstance(item, str) for item in value),
    "array of integers": lambda value: all(type(item) is int for item in value),
    "array of objects": lambda value: all(isinstance(item, dict) for item in value),
}


def documented(heading: str) -> dict[str, str]:
    """Return the fields in the table below a heading, with their types."""
    section = PAGE.split(f"\n### {heading}\n", 1)[1].split("\n### ", 1)[0]
    fields = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", section, re.MULTILINE)
    assert fields
    return dict(fields)


def check(heading: str, data: Mapping[str, Any]) -> None:
    """Check that data has exactly the documented fields, with the documented types."""
    fields = documented(heading)
    assert sorted(data) == sorted(fields)
    for name, kind in fields.items():
        assert TYPES[kind](data[name]), (name, kind, data[name])


def test_short_commands_have_the_documented_fields(run_json: Json, store: Path) -> None:
    check("`init`", run_json("init"))
    check("`info`", run_json("info"))
    check("`log`", run_json("log")[0])
    check("`show`", run_json("show"))
    check("`diff`", run_json("diff", "v1", "main"))
    for row in run_json("ls"):
        check("`ls`", row)
    for row in run_json("ls", "--tensors"):
        check("`ls --tensors`", row)
    for row in run_json("diff", "v1", "main")["changes"]:
        check("`diff`: `changes`", row)
    [similar] = run_json("similar", "model")
    check("`similar`", similar)
    for row in similar["tensors"]:
        check("`similar`: tensors", row)


def test_stats_have_the_documented_fields(run_json: Json, store: Path) -> None:
    stats = run_json("stats", "--versions")
    for row in stats.pop("by_version"):
        check("`stats --versions`", row)
    check("`stats`", stats)


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_tag_and_branch_have_the_documented_fields(run_json: Json, store: Path, kind: str) -> None:
    check("`tag NAME`, `branch NAME`", run_json(kind, "new"))
    for row in run_json(kind):
        check(f"`{kind}`", row)
    check("`tag --delete`, `branch --delete`", run_json(kind, "new", "--delete"))
    check("`tag --deleted`, `branch --deleted`", run_json(kind, "--deleted")[0])
    check("`undelete`", run_json("undelete", "new"))


def test_gc_and_undelete_have_the_documented_fields(run: Run, run_json: Json, store: Path) -> None:
    check("`gc`", run_json("gc")[-1])
    run("branch", "lost", "v1")
    run("commit", "model", "--branch", "lost")
    run("branch", "lost", "--delete")
    age(LocalStore(store), GRACE + DAY)
    done = run_json("gc", "--apply")[-1]
    check("`gc`", done)
    use = run_json("stats", "--reclaimable")
    check("`stats --reclaimable`", use)
    check("`stats --reclaimable`: `aside`", use["aside"][0])
    for row in done["objects"]:
        check("`gc`: `objects`", row)
    for row in done["pending"]:
        check("`gc`: `pending`", row)
    check("`undelete`: `collections`", run_json("undelete", done["collection"]))


def test_long_commands_have_the_documented_fields(run_json: Json, store: Path) -> None:
    check("`commit`", run_json("commit", "model")[-1])
    check("`checkout`", run_json("checkout", "main", "out")[-1])
    check("`repack`", run_json("repack")[-1])
    check("`maintain`", run_json("maintain")[-1])
    check("`verify`", run_json("verify")[-1])
    check("`repair`", run_json("repair")[-1])
    check("`push`, `pull`", run_json("push", "there", "--create")[-1])
    check("`push`, `pull`", run_json("pull", "there")[-1])
    min((store / "snapshots").iterdir()).unlink()
    *problems, summary = run_json("verify", status=13)
    check("`verify`", summary)
    for problem in problems:
        check("`verify`: problems", problem)
    lost, summary = run_json("repair", status=13)
    check("`repair`", summary)
    check("`repair`: lost versions", lost)


# Arguments for each verb. The order matters: `pull` reads the store that `push` makes.
RUNS: dict[str, tuple[str, ...]] = {
    "init": (),
    "info": (),
    "log": (),
    "show": (),
    "ls": (),
    "diff": ("v1", "main"),
    "similar": ("model",),
    "cat": ("main", "config.json"),
    "tag": (),
    "branch": (),
    "undelete": ("lost",),
    "stats": (),
    "commit": ("model", "--branch", "other"),
    "checkout": ("main", "out"),
    "verify": (),
    "repair": ("--from", "model", "--apply"),
    "maintain": (),
    "gc": ("--apply", "--store", "expired"),
    "repack": (),
    "expire": ("--keep-last", "1"),
    "push": ("there", "--create"),
    "pull": ("there", "--store", "part", "--create"),
}


@pytest.mark.usefixtures("packs_apart")
def test_progress_has_the_documented_fields_and_stages(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_INTERVAL", 0.0)
    monkeypatch.setattr(maintain, "_RECENT_PACKS", 0)  # so that there is something to merge
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(merging, "LEVELS", (1 << 30,))
    # `undelete` of a tag; that of a collection is in `test_gc`.
    assert sorted(RUNS) == sorted(VERBS)
    run("tag", "lost")
    run("tag", "lost", "--delete")
    expired_run(LocalStore(Path("expired")))
    section = PAGE.split("\n### Progress\n")[1].split("\n### ")[0]
    stages, reporting = set(), set()
    for verb, args in RUNS.items():
        if verb == "repair":
            damage(max(with_frames(store), key=lambda path: path.stat().st_size), 100)
        for line in run(verb, *args, "--json").stdout.splitlines():
            if '"progress"' in line:
                progress = json.loads(line)
                check("Progress", progress)
                stages.add(progress["stage"])
                reporting.add(verb)
    assert reporting == set(re.findall(r"`(\w+)`", section.split(":", 1)[0]))
    (row,) = re.findall(r"^\| `stage` .*", section, re.MULTILINE)
    assert stages == set(re.findall(r"`(\w+)`", row)) - {"stage"}


def test_errors_have_the_documented_fields(run: Run) -> None:
    check("Errors", json.loads(run("log", "--json", status=10).stderr))


def test_every_verb_is_documented() -> None:
    assert set(VERBS) - {"cat"} == {
        verb
        for heading in re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
        for verb in re.findall(r"`(\w+)[^`]*`", heading)
    } - {"aside", "changes", "collections", "expired", "folded", "lineage", "objects", "pending"}
    for verb in VERBS:
        assert f"`{verb}`" in PAGE.split("## Quiet output")[1].split("## JSON output")[0]


def test_every_exit_status_is_documented() -> None:
    listed = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE))
    assert {int(status) for status in listed} == {*map(int, Exit), 3}
    for status, meaning in MEANINGS.items():
        assert listed[str(int(status))].startswith(meaning)


def test_every_variable_is_documented() -> None:
    folder = Path(casweights.__file__).parent / "cli"
    source = "".join(path.read_text() for path in folder.rglob("*.py"))
    variables = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', source)) | {"COLUMNS", "TERM", "TZ"}
    assert variables == set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE))
