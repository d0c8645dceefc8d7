"""List the history of a version of a casweights store, by docs/format.md alone; see `reader`.

    python -m tools.spec.history STORE REF

writes a line of JSON for each version, newest first. Expired ones say when they expired, in
microseconds since 1970, and which rules did not keep them. The policy of the store comes last.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from blake3 import blake3

from tools.spec.chunks import FAILURES, MAX_INT, POSITION, StoreError, ints, is_text, need, split
from tools.spec.reader import (
    FIRST_TIME,
    LAST_TIME,
    MAX_MANIFEST,
    MAX_TABLE,
    expand,
    find_snapshot,
    parse_manifest,
    read_config,
    read_ref,
    read_version,
    unseal,
)

MAX_RECORD, MAX_ROWS, MAX_RUNS, MAX_RULES = 33_554_432, 131_072, 65_536, 2_000
MAX_POLICY, MAX_ENTRIES, MAX_TEXT = 65_536, 64, 1_000
MAX_WITHIN = 3_652_059 * 86_400_000_000
POLICY = re.compile(f"policies/{POSITION}-[0-9a-f]{{16}}")
COUNTS = {"last", "every", "hourly", "daily", "weekly", "monthly", "yearly"}


class Expired(NamedTuple):
    number: int
    parents: list[str]
    time: int
    policy: str


def parse_record(store: Path, name: str) -> dict[str, Expired]:
    """Return the rows of a record by the ID of the version, in hex."""
    data = (store / name).read_bytes()
    fields = msgpack.unpackb(unseal(store, name, b"e", MAX_RECORD))
    need(name == f"expired/{blake3(data).hexdigest()}", f"{name} has another ID")
    ids = [found.hex() for found in split(fields["id"], 32, name)]
    need(0 < len(ids) <= MAX_ROWS, f"{name} has {len(ids)} versions")
    need(all(a < b for a, b in itertools.pairwise(ids)), f"{name} is not in order")
    numbers = ints(fields["number"], 1, MAX_INT, name)
    counts = ints(list(fields["parent_count"]), 0, 16, name)
    parents = iter([found.hex() for found in split(fields["parents"], 32, name)])
    runs = [parse_run(name, *run) for run in fields["runs"]]
    need(0 < len(runs) <= MAX_RUNS, f"{name} has {len(runs)} runs")
    run_of = ints(fields["run"], 0, len(runs) - 1, name)
    own = [list(itertools.islice(parents, count)) for count in counts]
    fits = [len(part) for part in own] == counts and next(parents, None) is None
    need(fits, f"{name}: the parents do not fit")
    rows = zip(ids, numbers, own, run_of, strict=True)
    return {found: Expired(number, before, *runs[run]) for found, number, before, run in rows}


def parse_run(name: str, time: Any, policy: Any) -> tuple[int, str]:
    ints([time], FIRST_TIME, LAST_TIME, name)
    need(is_text(policy) and len(policy) <= MAX_RULES, f"{name}: malformed rules")
    return time, policy


def read_expired(store: Path) -> dict[str, Expired]:
    """Return the rows of all records that are not damaged, of several for a version the first."""
    found: dict[str, Expired] = {}
    for path in sorted((store / "expired").glob("*")):
        try:
            rows = parse_record(store, f"expired/{path.name}")
        except FAILURES:
            continue
        for snapshot, row in rows.items():
            known = found.get(snapshot, row)
            found[snapshot] = min(known, row, key=lambda row: (row.time, row.policy))
    return found


def read_named(store: Path) -> set[str]:
    """Return the versions that branches and tags name."""
    logs = {path.parent for path in (store / "refs").rglob("*") if path.is_file()}
    return {read_ref(store, log.relative_to(store).as_posix()) for log in logs} - {""}


def read_history(store: Path, ref: str) -> Iterator[tuple[str, int, Expired | None]]:
    """Yield the ID and number of a version and of all before it; also the row of expired ones."""
    chunking, expired, named = read_config(store), read_expired(store), read_named(store)
    current: str | None = find_snapshot(store, ref)
    number, gone, shallow = 0, False, False
    seen: set[str] = set()
    while current is not None and current not in seen:
        seen.add(current)
        row = expired.get(current)
        if row is not None and current not in named and row.number == number - 1:
            yield current, row.number, row
            number, parents, gone = row.number, row.parents, True
        else:
            try:
                name, index, _ = read_version(store, current)
            except StoreError:
                if shallow:  # the history was left out when its newest version was copied
                    return
                raise
            manifest = expand(index["manifest"], index["manifest_size"], MAX_MANIFEST, name)
            need(blake3(manifest).hexdigest() == current, f"{name} contains another version")
            parse_manifest(manifest, chunking)
            fields = msgpack.unpackb(manifest)
            need(not gone or fields["number"] == number - 1, f"the record before {name} is wrong")
            number, parents = fields["number"], [parent.hex() for parent in fields["parents"]]
            table = expand(index["table"], index["table_size"], MAX_TABLE, name)
            shallow = msgpack.unpackb(table, strict_map_key=False).get("shallow", False)
            yield current, number, None
            gone = False
        current = next(iter(parents), None)


def read_policy(store: Path) -> list[dict[str, Any]]:
    """Return the entries of the policy; none without one."""
    found = [f"policies/{path.name}" for path in (store / "policies").glob("*")]
    policies = sorted(name for name in found if POLICY.fullmatch(name))
    if not policies:
        return []
    name = policies[-1]
    fields = msgpack.unpackb(unseal(store, name, b"k", MAX_POLICY))
    need(fields.keys() == {"time", "keep"}, f"{name} has wrong keys")
    ints([fields["time"]], -MAX_INT, MAX_INT, name)
    need(len(fields["keep"]) <= MAX_ENTRIES, f"{name} has too many entries")
    for entry in fields["keep"]:
        check_entry(entry, name)
    entries: list[dict[str, Any]] = fields["keep"]
    return entries


def check_entry(entry: dict[str, Any], name: str) -> None:
    rules = entry.keys() - {"branches"}
    need("branches" in entry and bool(rules), f"{name}: an entry keeps nothing")
    need(rules <= COUNTS | {"within", "where"}, f"{name} has an unknown rule")
    for key in rules & COUNTS:
        ints([entry[key]], 1, MAX_INT, name)
    if "within" in rules:
        ints([entry["within"]], 1, MAX_WITHIN, name)
    for key in entry.keys() & {"branches", "where"}:
        need(is_text(entry[key]) and len(entry[key]) <= MAX_TEXT, f"{name}: malformed text")


def main() -> int:
    parser = argparse.ArgumentParser(description="List the history of a version.")
    parser.add_argument("store", type=Path)
    parser.add_argument("ref", help="a full snapshot ID, a branch or a tag")
    args = parser.parse_args()
    try:
        for snapshot, number, row in read_history(args.store, args.ref):
            when = {} if row is None else {"time": row.time, "policy": row.policy}
            print(json.dumps({"id": snapshot, "number": number, **when}))
        print(json.dumps({"policy": read_policy(args.store)}))
    except FAILURES as error:
        print(f"error: {error!r:.500}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
