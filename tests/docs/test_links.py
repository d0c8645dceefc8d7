"""Links of all pages lead to files and headings that exist, and every page can be found."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

import pytest

from tests.docs.pages import ROOT, headings, pages, prose, read

LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: str) -> list[tuple[str, str]]:
    """The files of this repository, and the anchors in them, that a page links to."""
    found = []
    for target in LINK.findall(prose(page)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            folder = PurePosixPath(page).parent
            found.append((os.path.normpath(folder / path) if path else page, anchor))
    return found


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    broken = [
        f"{path}#{anchor}" if anchor else path
        for path, anchor in links(page)
        if not (ROOT / path).exists() or (anchor and anchor not in headings(path))
    ]
    assert broken == []


def test_the_readme_links_the_index_and_the_index_every_page() -> None:
    assert "docs/README.md" in {path for path, _ in links("README.md")}
    linked = {path for path, _ in links("docs/README.md")}
    assert {page for page in pages() if page.startswith("docs/")} <= {*linked, "docs/README.md"}
    assert {"CONTRIBUTING.md", "CHANGELOG.md"} <= linked


def test_the_readme_has_at_most_60_lines() -> None:
    assert len(read("README.md").splitlines()) <= 60


def test_the_changelog_has_nothing_but_additions_before_the_first_release() -> None:
    releases = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    kinds = re.findall(r"^### (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    assert releases != ["Unreleased"] or kinds == ["Added"]
