"""The state of the prose: no phrase that reads badly, no long line, no public name unexplained.

`python -m tools.prose PATH...` lists what is wrong, and what to write instead.
"""

from __future__ import annotations

import pytest

from tools.prose import ROOT, Fault, comment_share, docstrings, faults, phrases, tracked

MIN_COMMENTS, MAX_COMMENTS = 0.03, 0.06  # per line of code in the package


def test_no_text_reads_badly() -> None:
    assert [str(fault) for fault in faults(tracked(["."]))] == []


def test_comments_are_few_and_present() -> None:
    package = [path for path in tracked(["casweights"]) if path.suffix == ".py"]
    counts = [comment_share((ROOT / path).read_text()) for path in package]
    share = sum(comments for comments, _ in counts) / sum(code for _, code in counts)
    assert MIN_COMMENTS <= share <= MAX_COMMENTS


PATH = tracked(["casweights/errors.py"])[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# packs are read anew\n", ["anew"]),
        ("# there are as\n# far as we know none\n", ["as # far as"]),
        ('"""Whoever reads."""\n', ["Whoever"]),
        ("# the renewed lease\n", []),
    ],
)
def test_a_banned_phrase_is_found_also_across_lines(text: str, found: list[str]) -> None:
    assert [fault.text.split('"')[1] for fault in phrases(PATH, text)] == found


def test_a_public_name_without_a_docstring_is_found() -> None:
    text = '"""Doc."""\ndef shown():\n    pass\ndef _hidden():\n    pass\n'
    assert list(docstrings(PATH, text)) == [Fault(PATH, 2, "errors.shown has no docstring")]


def test_a_docstring_that_only_points_elsewhere_is_found() -> None:
    text = '"""Doc."""\ndef shown():\n    """See `other`."""\n'
    assert [fault.line for fault in docstrings(PATH, text)] == [2]
