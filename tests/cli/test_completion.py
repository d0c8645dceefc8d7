"""Completion in the shell."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from casweights.cli._session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run


def complete(run: Run, line: str) -> list[str]:
    """Return the completions that bash gets for the last word of `line`."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    text = run(_CASWEIGHTS_COMPLETE="bash_complete", **words).stdout
    return [item.partition(",")[2] for item in text.splitlines() if item]


def test_the_completion_script_is_printed(run: Run) -> None:
    assert "_casweights_completion" in run(_CASWEIGHTS_COMPLETE="bash_source").stdout


def test_verbs_complete(run: Run) -> None:
    assert complete(run, "casweights c") == ["commit", "checkout", "cat"]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("casweights log ", ["main", "v1", "v2"]),
        ("casweights log v", ["v1", "v2"]),
        ("casweights diff v1 ma", ["main"]),
        ("casweights checkout v", ["v1", "v2"]),
        ("casweights commit model --branch ", ["main"]),
        ("casweights commit model --parent v2", ["v2"]),
        ("casweights tag --delete ", ["v1", "v2"]),
        ("casweights undelete ", ["lost"]),
        ("casweights branch --delete ", ["main"]),
        ("casweights branch new v", ["v1", "v2"]),
        ("casweights --store nowhere log ", []),
        ("casweights log --store nowhere ", []),
        ("casweights log nothing", []),
    ],
)
def test_branches_and_tags_complete(run: Run, line: str, offered: list[str]) -> None:
    run("tag", "v2")
    run("tag", "lost")
    run("tag", "lost", "--delete")
    assert complete(run, line) == offered


def test_names_of_the_store_option_complete(run: Run, store: Path) -> None:
    shutil.move(store, "elsewhere")
    assert complete(run, "casweights log ") == []
    assert complete(run, "casweights --store elsewhere log ") == ["main", "v1"]
    assert complete(run, "casweights --store file://elsewhere log ") == ["main", "v1"]


def test_completion_opens_no_remote_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_it(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(Session, "open", open_it)
    assert complete(run, "casweights --store hf://buckets/a/b log ") == []


def test_nothing_completes_without_a_store(run: Run) -> None:
    assert complete(run, "casweights log ") == []
