"""The verb ``expire``, and what other verbs say of expired versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights import Keep
from tests.cli.test_scripting_page import check

if TYPE_CHECKING:
    from tests.cli.conftest import Json, Run

RULES = ("--keep-last", "2", "--keep-every", "4")
ALL = [9, 8, 7, 6, 5, 4, 3, 2, 1]
STAY = [9, 8, 4]


@pytest.fixture
def ids(run: Run, work: Path) -> dict[int, str]:
    """A store with nine versions; their IDs by number."""
    run("init")
    with casweights.open(".casweights") as repo:
        return {n: str(repo.commit({"n": n}, metadata={"eval": n / 10}).id) for n in range(1, 10)}


def numbers(run_json: Json, ids: dict[int, str], *args: str) -> list[int]:
    by_id = {snapshot: number for number, snapshot in ids.items()}
    return [by_id[row["id"]] for row in run_json("log", *args)]


def test_a_dry_run_shows_each_version_with_its_reason_and_changes_nothing(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    run("tag", "v1", "main~7")
    result = run("expire", *RULES)
    lines = result.stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"stays  {ids[9][:12]}       9  20")
    assert lines[0].endswith("  head of main, last 2")
    assert lines[2].startswith("goes   ")
    assert lines[2].endswith("  not kept by last 2, every 4")
    assert lines[5].endswith("  every 4")
    assert lines[7].endswith("  tag v1")
    assert lines[-1] == "5 versions would expire, 4 versions stay"
    assert result.stderr == "Hint: nothing was changed: --apply records it\n"
    assert numbers(run_json, ids) == ALL
    gone = [ids[n] for n in (7, 6, 5, 3, 1)]
    assert run("expire", *RULES, "-q").stdout.split() == gone


@pytest.mark.usefixtures("ids")
def test_a_pattern_without_a_branch_is_no_silent_success(run: Run) -> None:
    result = run("expire", *RULES, "--branches", "run-*")
    assert result.stdout == "0 versions would expire, 0 versions stay\n"
    assert "no branch matches 'run-*'" in result.stderr
    assert run("expire", "--keep-last", "1").stdout.endswith(", 1 version stays\n")


def test_apply_records_what_goes_and_log_shows_the_gaps(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    assert run("expire", *RULES, "--apply").stdout.endswith("6 versions expired, 3 versions stay\n")
    lines = run("log").stdout.splitlines()
    assert [line[:12] for line in lines if not line.startswith("…")] == [ids[n][:12] for n in STAY]
    gaps = [line.split(" 20")[0] for line in lines if line.startswith("…")]
    assert gaps == ["… 3 versions expired"] * 2
    assert all(line.endswith("by policy (last 2, every 4)") for line in (lines[2], lines[4]))
    rows = run_json("log")
    for row in rows:
        check("`log`", row)
        if row["expired"]:
            check("`log`: `expired`", row["expired"])
    ranges = [row["expired"] and (row["expired"]["first"], row["expired"]["last"]) for row in rows]
    assert ranges == [None, (5, 7), (1, 3)]
    assert run("log", "-q").stdout.split() == [ids[n] for n in STAY]
    assert run("log", "-n", "2").stdout.count("\n") == 3
    assert run("expire", *RULES).stdout.endswith("0 versions would expire, 3 versions stay\n")
    assert "no problems" in run("verify").stdout


def test_the_error_for_an_expired_version_names_the_nearest_that_stayed(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    run("expire", *RULES, "--apply")
    result = run("show", "main~3", status=1)
    assert "'main~3' is version 6, which expired on 20" in result.stderr
    assert "(last 2, every 4): the nearest version that stayed is 'main~" in result.stderr
    assert f"Hint: its ID is {ids[6]}" in result.stderr
    error = json.loads(run("show", "main~3", "--json", status=1).stderr)
    assert error["code"] == "expired"
    assert run_json("show", "main~5")["id"] == ids[4]
    back = run("show", "main~20", status=1).stderr
    assert "'main' has 9 versions, and the oldest that stayed is 'main~5'" in back
    assert run_json("show", ids[6])["id"] == ids[6]  # nothing was deleted
    run("branch", "again", ids[6])
    assert numbers(run_json, ids) == [9, 8, 6, 4]


def test_json_has_the_documented_fields(run_json: Json, ids: dict[int, str]) -> None:
    *versions, summary = run_json("expire", *RULES, "--keep-within", "1w2d3h4m", "--apply")
    for row in versions:
        check("`expire`: versions", row)
    check("`expire`", summary)
    assert summary["policy"] == [
        {"branches": "*", "last": 2, "every": 4, "within": (9 * 24 + 3) * 3600.0 + 240}
    ]
    assert [row["number"] for row in versions] == ALL
    [dropped] = run_json("expire", "--drop-policy")
    check("`expire --drop-policy`", dropped)


def test_a_policy_is_kept_in_the_store_and_applied_by_maintain(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    assert "has no policy" in run("expire", status=1).stderr
    run("expire", *RULES, "--set-policy")
    assert numbers(run_json, ids) == ALL
    assert run("expire").stdout.endswith("6 versions would expire, 3 versions stay\n")
    assert run("maintain").stdout.endswith(". 6 versions expired\n")
    assert numbers(run_json, ids) == STAY
    assert run_json("maintain")[-1]["expired"] == 0
    assert run("expire", "--drop-policy").stdout == "The store has no policy any more\n"
    assert "has no policy" in run("expire", status=1).stderr


def test_a_file_has_rules_for_several_patterns(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    entries: list[dict[str, Any]] = [
        {"branches": "run-*", "last": 9},
        {"branches": "main", "within": "36h", "where": "eval >= 0.75"},
    ]
    Path("policy.json").write_text(json.dumps(entries))
    *_, summary = run_json("expire", "--policy", "policy.json", "--set-policy")
    assert summary["policy"][1]["within"] == 36 * 3600
    with casweights.open(".casweights") as repo:
        first, second = repo.policy()
        assert first == Keep(branches="run-*", last=9)
        assert (second.branches, second.where) == ("main", "eval >= 0.75")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("3", "it is no array"),
        ("[3]", "3 is no object"),
        ('[{"last": 0}]', "last"),
        ('[{"lost": 1}]', "'lost' is not one of branches, daily, every,"),
        ('[{"within": "x"}]', "'x' is not a span of time"),
        ("[{}]", "must keep something"),
        ('{"a": 1}', "it is no array"),
    ],
)
@pytest.mark.usefixtures("ids")
def test_a_file_that_is_no_policy_is_refused(run: Run, text: str, why: str) -> None:
    Path("policy.json").write_text(text)
    result = run("expire", "--policy", "policy.json", "--apply", status=1)
    assert "policy.json is not a policy: " in result.stderr
    assert why in result.stderr
    assert "no problems in 9 versions" in run("verify").stdout


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--set-policy",), "--set-policy needs at least one --keep rule"),
        (("--drop-policy", "--apply"), "--drop-policy goes with no other option"),
        (("--drop-policy", *RULES), "--drop-policy goes with no other option"),
        (("--branches", "x"), "--branches needs at least one --keep rule"),
        (("--keep-last", "0"), "--keep-last"),
        (("--keep-within", "7"), "'7' is not a span of time"),
        (("--keep-within", ""), "is not a span of time"),
        (("--keep-within", "9" * 30 + "d"), "is too long"),
    ],
)
def test_wrong_options_are_refused(
    run: Run, ids: dict[int, str], args: tuple[str, ...], why: str
) -> None:
    assert why in " ".join(run("expire", *args, status=2).stderr.split())


def test_a_file_and_rules_exclude_each_other(run: Run, ids: dict[int, str]) -> None:
    Path("policy.json").write_text('[{"last": 1}]')
    result = run("expire", "--policy", "policy.json", *RULES, status=2)
    assert "--policy goes with no --keep rule" in result.stderr


def test_a_wrong_condition_says_what_is_wrong(run: Run, ids: dict[int, str]) -> None:
    result = run("expire", "--keep-where", "eval >=", "--apply", status=1)
    assert "'eval >=' is not a condition: a name, a number or a string is expected" in result.stderr


def test_push_leaves_expired_versions_out_unless_told(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    run("expire", *RULES, "--apply")
    run("push", "there", "--create")
    assert numbers(run_json, ids, "--store", "there") == STAY
    assert "expired" in run("log", "--store", "there").stdout
    run("push", "all", "--create", "--with-expired")
    assert numbers(run_json, ids, "--store", "all") == ALL
    run("pull", "all")
    assert numbers(run_json, ids) == STAY


@pytest.mark.usefixtures("packs_apart")
def test_log_lists_expired_versions_that_are_still_there(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    run("expire", *RULES, "--apply")
    assert numbers(run_json, ids, "--expired") == ALL
    lines = run("log", "--expired").stdout.splitlines()
    assert ["(expired)" in line for line in lines] == [n not in STAY for n in ALL]
    for number in (6, 5, 2):
        Path(f".casweights/snapshots/{ids[number]}").unlink()
    rows = run_json("log", "--expired", ids[7])
    for row in rows:
        check("`log`", row)
    assert [row["id"] for row in rows] == [ids[n] for n in (7, 4, 3, 1)]
    assert [row["has_expired"] for row in rows] == [True, False, True, True]
    gaps = [row["expired"] and (row["expired"]["first"], row["expired"]["last"]) for row in rows]
    assert gaps == [(5, 6), None, (2, 2), None]
    assert numbers(run_json, ids, "--expired", "-n", "3") == [9, 8, 7]
    run("log", "--expired", "--graph", status=2)


@pytest.mark.usefixtures("packs_apart")
def test_a_pull_says_which_versions_this_side_had_let_go(
    run: Run, run_json: Json, ids: dict[int, str]
) -> None:
    run("push", "all", "--create")
    run("expire", *RULES, "--apply")
    gone = [number for number in ALL if number not in STAY]
    for number in gone:
        Path(f".casweights/snapshots/{ids[number]}").unlink()
    assert numbers(run_json, ids, "--expired") == STAY
    result = run("pull", "all", "--with-expired")
    assert "had let 6 versions of these expire: there, `casweights log --expired`" in result.stderr
    assert numbers(run_json, ids) == STAY
    assert numbers(run_json, ids, "--expired") == ALL
    Path(f".casweights/snapshots/{ids[7]}").unlink()
    (summary,) = run_json("pull", "all", "--with-expired")
    check("`push`, `pull`", summary)
    assert (summary["versions"], summary["expired"]) == (1, 1)


@pytest.mark.parametrize("verb", ["forget", "prune"])
def test_the_names_of_other_programs_lead_to_expire(run: Run, verb: str) -> None:
    assert "Did you mean 'expire'?" in run(verb, status=2).stderr
