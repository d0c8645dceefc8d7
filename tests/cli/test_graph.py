"""``log --graph``, ``commit --base``, and what ``show`` says of lineage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import casweights
from casweights.cli._graph import Columns, children_first
from casweights.config import KiB, StoreConfig
from casweights.format.lineage import Origin
from casweights.format.manifest import EncodedSnapshot
from casweights.ids import SnapshotId
from tests.cli.test_scripting_page import check
from tests.histories import step, weights
from tests.operations.test_lineage import forge

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    import torch

    from casweights import Repository, Snapshot
    from tests.cli.conftest import Json, Run

TIME = datetime(2026, 8, 1, 12, tzinfo=UTC)
NOBODY = SnapshotId(b"n" * 32)
Parents = dict[SnapshotId, list[SnapshotId]]


def version(number: int) -> SnapshotId:
    return SnapshotId(number.to_bytes(32, "big"))


@st.composite
def graphs(draw: st.DrawFn) -> Parents:
    """Versions with up to three parents, each of which comes later in the list."""
    count = draw(st.integers(1, 12))
    return {
        version(n): [
            version(parent)
            for parent in draw(st.lists(st.integers(n + 1, count), max_size=3, unique=True))
            if parent < count
        ]
        for n in range(count)
    }


def drawing(parents: Parents) -> tuple[list[str], dict[int, SnapshotId]]:
    """Return the lines of a graph, and the version whose star each line has."""
    columns, lines, stars = Columns(), list[str](), dict[int, SnapshotId]()
    for one in children_first(parents):
        drawn = columns.draw(one, parents[one])
        assert len(drawn.head) == len(drawn.under) == len(drawn.found)
        stars[len(lines)] = one
        lines += [drawn.head, drawn.under, *drawn.edges]
    return lines, stars


def below(line: str, at: int) -> set[int]:
    """Return where the edge at a position continues after a line."""
    line = f" {line}".ljust(2 * at + 100)
    at, found = at + 1, set()
    if line[at] in "|*":
        found.add(at)
    for sign, slash in ((-1, "/"), (1, "\\")):
        if line[at + sign] == slash:
            end = at + 2 * sign
            while end + sign > 0 and line[end + sign] == "_":
                end += 2 * sign
            found.add(end)
    return {end - 1 for end in found}


def reached(lines: list[str], stars: dict[int, SnapshotId], start: int) -> list[SnapshotId]:
    """Follow the edges that leave a star."""
    found, front = [], {lines[start].index("*")}
    for number, line in enumerate(lines[start + 1 :], start + 1):
        if number in stars and (star := line.index("*")) in front:
            found.append(stars[number])
            front.discard(star)
        front = {end for at in front for end in below(line, at)}
    assert not front - {at for at in range(0, len(lines[-1]), 2) if lines[-1][at] == "|"}
    return found


@given(graphs())
def test_lines_lead_from_each_version_to_its_parents(parents: Parents) -> None:
    lines, stars = drawing(parents)
    assert sorted(stars.values()) == sorted(parents)
    for number, one in stars.items():
        assert sorted(reached(lines, stars, number)) == sorted(parents[one])


@given(graphs(), st.randoms())
def test_children_come_first_in_any_case(parents: Parents, random: Random) -> None:
    mixed = list(parents.items())
    random.shuffle(mixed)
    order = children_first(dict(mixed))
    assert sorted(order) == sorted(parents)
    place = {one: number for number, one in enumerate(order)}
    assert all(place[one] < place[parent] for one, found in parents.items() for parent in found)


def test_a_circle_of_parents_is_drawn_and_ends() -> None:
    """Only records that are forged could lead in one."""
    circle = {version(0): [version(1)], version(1): [version(2)], version(2): [version(1)]}
    lines, stars = drawing(circle)
    assert sorted(stars.values()) == sorted(circle)
    assert len(lines) < 20


def model(seed: int, names: str = "abc") -> dict[str, torch.Tensor]:
    return {name: weights(1, seed=seed * 100 + n) for n, name in enumerate(names)}


def tuned(seed: int, of: int) -> dict[str, torch.Tensor]:
    return {name: step(tensor, 0.02, seed) for name, tensor in model(of).items()}


@pytest.fixture
def merged(work: Path) -> dict[str, Snapshot]:
    """A store with a base, two branches that a merge joins, and a variant of the base."""
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(work / ".casweights", create=True, config=config) as repo:
        made: dict[str, Snapshot] = {}

        def commit(
            name: str,
            state: dict[str, torch.Tensor],
            hour: int,
            branch: str = "main",
            parent: str | None = None,
            base: str | None = None,
        ) -> None:
            time = TIME + timedelta(hours=hour)
            made[name] = repo.commit(
                state, message=name, branch=branch, parent=parent, base=base, time=time
            )

        commit("base", model(1), 0, branch="base")
        commit("later", model(2), 1, branch="base")
        commit("one", model(3), 2)
        commit("two", {**tuned(5, 3), "x": weights(1, 5)}, 3)
        commit("side", tuned(6, 3), 4, branch="side", parent="main~1")
        commit("tuned", {**tuned(7, 1), "y": weights(1, 6)}, 5, branch="tuned", base="base~1")
        made["merge"] = merge(repo, made["two"], made["side"])
        repo.tag("v1", made["one"])
    return made


def merge(repo: Repository, left: Snapshot, right: Snapshot) -> Snapshot:
    """Only libraries create versions with several parents."""
    fields = replace(
        left, parents=(left.id, right.id), number=3, message="merge", time=TIME + timedelta(hours=6)
    )
    found, encoded = EncodedSnapshot.of(fields)
    repo.database.snapshots.save(*repo.database.snapshots.encode(found, encoded))
    repo.branch("main", found, force=True)
    return found


def without_ids(text: str, versions: dict[str, Snapshot]) -> str:
    for name, one in versions.items():
        text = text.replace(str(one.id)[:12], f"<{name}>")
    return text


def test_graph_draws_branches_merges_and_found_bases(run: Run, merged: dict[str, Snapshot]) -> None:
    text = without_ids(run("log", "--graph", TZ="UTC").stdout, merged)
    assert text.splitlines() == [
        "* <merge>  2026-08-01 18:00  262.5 kB  (main) merge",
        "|\\",
        "| | * <tuned>  2026-08-01 17:00  262.5 kB  (tuned) tuned",
        "| | :   74.9% from base~1 (<base>)",
        "| |",
        "| * <side>  2026-08-01 16:00  196.8 kB  (side) side",
        "* | <two>  2026-08-01 15:00  262.5 kB  two",
        "|/",
        "* <one>  2026-08-01 14:00  196.8 kB  (tag v1) one",
        "",
        "* <later>  2026-08-01 13:00  196.8 kB  (base) later",
        "* <base>  2026-08-01 12:00  196.8 kB  base",
    ]


def test_graph_draws_the_refs_that_are_given(run: Run, merged: dict[str, Snapshot]) -> None:
    assert run("log", "--graph", "side", "base~1", "-q").stdout.split() == [
        str(merged[name].id) for name in ("side", "one", "base")
    ]
    assert "several" in run("log", "side", "base", status=2).stderr


def test_graph_has_at_most_n_versions(run: Run, merged: dict[str, Snapshot]) -> None:
    listed = run("log", "--graph", "-n", "3", "-q").stdout.split()
    assert listed == [str(merged[name].id) for name in ("merge", "tuned", "side")]


def test_graph_without_a_number_says_what_it_leaves_out(
    run: Run, merged: dict[str, Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casweights.cli.log.MOST", 3)
    result = run("log", "--graph")
    assert result.stdout.count("*") == 3
    assert "newest 3 versions" in result.stderr
    assert "newest" not in run("log", "--graph", "-n", "3").stderr


def test_graph_has_the_documented_fields(run_json: Json, merged: dict[str, Snapshot]) -> None:
    rows = {row["message"]: row for row in run_json("log", "--graph")}
    assert len(rows) == len(merged)
    for row in rows.values():
        check("`log --graph`", row)
        for origin in row["lineage"]:
            check("`log --graph`, `show`: `lineage`", origin)
    assert rows["merge"]["leads_to"] == [str(merged[name].id) for name in ("two", "side")]
    [origin] = rows["tuned"]["lineage"]
    assert (origin["id"], origin["names"]) == (str(merged["base"].id), ["base~1"])
    assert (origin["parent"], origin["state"]) == (False, "present")
    shown = run_json("show", "tuned")
    check("`show`", shown)
    assert shown["lineage"] == [{**origin, "names": []}]


def test_show_lists_what_a_version_was_made_from(run: Run, merged: dict[str, Snapshot]) -> None:
    text = without_ids(run("show", "tuned").stdout, merged)
    assert "made    74.9% from <base>\n" in text
    assert "made" not in run("show", "side").stdout


def test_commit_takes_a_base(run: Run, run_json: Json, model: Path) -> None:
    run("init")
    first = run_json("commit", "model", "--branch", "base")[-1]
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    second = run_json("commit", "model", "--base", "base", "-m", "second")[-1]
    assert second["parents"] == []
    [origin] = run_json("show")["lineage"]
    assert (origin["id"], origin["names"], origin["parent"]) == (first["id"], ["base"], False)
    result = run("commit", "model", "--base", "nowhere", "--branch", "new", status=1)
    assert "nowhere" in result.stderr
    assert [row["name"] for row in run_json("branch")] == ["base", "main"]


def test_forged_lineage_is_shown_and_nothing_hangs(
    run: Run, merged: dict[str, Snapshot], work: Path
) -> None:
    """Versions that list each other, and one that does not exist."""
    with casweights.open(work / ".casweights") as repo:
        forge(repo, "tuned", [Origin(merged["side"].id, 9), Origin(NOBODY, 8)])
        forge(repo, "side", [Origin(merged["tuned"].id, merged["side"].size)])
    text = without_ids(run("log", "--graph").stdout, merged)
    lines = [line.strip(" |:") for line in text.splitlines()]
    assert "100.0% from tuned (<tuned>)" in lines
    assert f"0.0% from {str(NOBODY)[:12]}, missing" in lines
    assert text.count("*") == len(merged)


def test_graph_leads_past_expired_versions(run: Run, work: Path) -> None:
    with casweights.open(work / ".casweights", create=True) as repo:
        for n in range(5):
            repo.commit({"n": n}, message=f"step {n}", time=TIME + timedelta(hours=n))
        repo.commit(tuned(3, 1), branch="tuned", base="main~1", time=TIME + timedelta(hours=9))
        repo.tag("first", "main~4")
        repo.expire([casweights.Keep(last=1)], apply=True)
    lines = run("log", "--graph", "main").stdout.splitlines()
    assert [line[:1] for line in lines] == ["*", "|", "*"]
    assert "3 versions expired" in lines[1]
