"""Checks of a store after a chaos run: every result that a worker was given must still hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import casweights
from casweights import SnapshotId
from tests.faults.chaos_workers import Broken, check_version, read_journals
from tests.faults.sync_states import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Repository
    from tests.faults.chaos_workers import Place

_TRACES = ("Traceback", "this is a bug")


class Told:
    """The results that were reported to the workers, from their journals.

    Attributes:
        versions: Versions that the store must contain.
        on_branch: Versions that must be on a branch, for each branch that is never deleted.
        refs: For each ref with a single owner, the versions that it may name; None means that the
            ref may be missing.
    """

    def __init__(self, journal: list[dict[str, Any]]) -> None:
        self.versions: set[SnapshotId] = set()
        self.on_branch: dict[str, set[SnapshotId]] = {}
        self.refs: dict[str, set[str | None]] = {}
        for line in journal:
            if line["done"] and (version := line.get("version")):
                self.versions.add(SnapshotId.from_hex(version))
                if line["what"] in ("commit", "publish"):
                    branch = self.on_branch.setdefault(line["ref"], set())
                    branch.add(SnapshotId.from_hex(version))
            if line["what"] in ("make", "move", "delete"):
                self._note_ref(line)

    def _note_ref(self, line: dict[str, Any]) -> None:
        before = self.refs.get(line["ref"], {None})
        # An interrupted commit may have moved its branch to a version that was not reported.
        new = {line["at"]} if "at" in line else {"anywhere"}
        self.refs[line["ref"]] = new if line["done"] else before | new


def find_problems(place: Place) -> list[str]:
    """Return descriptions of all problems. No worker may be running."""
    journal = read_journals(place.folder / "journal")
    told = Told(journal)
    problems = [*_traces(place)]
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _wrong_refs(place, told),
        lambda: _lost_versions(place, told),
        lambda: _damage(place),
        lambda: _failed_repack(place, told),
        lambda: _failed_copies(place, told),
    ]
    for check in checks:
        try:
            problems += check()
        except (casweights.CasweightsError, Broken) as error:
            problems.append(f"{type(error).__name__}: {error}")
    return problems


def _traces(place: Place) -> Iterator[str]:
    for path in sorted(place.folder.glob("*.stderr")):
        text = path.read_text()
        if any(trace in text for trace in _TRACES):
            yield f"{path.name}: {text[-800:].strip()}"


def _wrong_refs(place: Place, told: Told) -> Iterator[str]:
    with place.opened() as repo:
        found = {f"branch {name}": str(at) for name, at in repo.branches().items()}
        found |= {f"tag {name}": str(at) for name, at in repo.tags().items()}
        for branch, versions in told.on_branch.items():
            log = {snapshot.id for snapshot in repo.log(branch)}
            yield from (f"{version} is not on {branch}" for version in versions - log)
    for ref, allowed in told.refs.items():
        at = found.get(ref)
        if at not in allowed and (at is None or "anywhere" not in allowed):
            yield f"{ref} is at {at}, not at {' or '.join(map(str, allowed))}"
    owned = told.refs.keys() | {f"branch {branch}" for branch in told.on_branch}
    known = owned | {"branch main", "branch live"}
    yield from (f"no worker made {ref}" for ref in found.keys() - known)


def _lost_versions(place: Place, told: Told) -> Iterator[str]:
    with place.opened() as repo:
        yield from _broken_versions(repo, told.versions)


def _broken_versions(repo: Repository, versions: set[SnapshotId]) -> Iterator[str]:
    for version in sorted(versions):
        try:
            check_version(repo, version)
        except (casweights.CasweightsError, Broken) as error:
            yield f"{version} in {repo.url}: {error}"


def _damage(place: Place) -> Iterator[str]:
    with place.opened() as repo:
        yield from (f"verify: {problem}" for problem in repo.verify().problems)


def _failed_repack(place: Place, told: Told) -> Iterator[str]:
    with place.opened() as repo:
        repo.repack()
    yield from _damage(place)
    yield from _lost_versions(place, told)


def _failed_copies(place: Place, told: Told) -> Iterator[str]:
    """Push everything to the store that the workers pushed to, and to a new one; check both."""
    pushed = place.folder / "pushed"
    for target, verb in ((pushed, "push"), (place.folder / "copied", "copy")):
        with (
            place.opened() as repo,
            casweights.open(target, create=True, config=CONFIG, workers=2) as there,
        ):
            repo.push(there, unnamed=verb != "push")
            yield from (f"{verb}: {problem}" for problem in there.verify().problems)
            if verb == "copy":
                yield from _broken_versions(there, told.versions)
