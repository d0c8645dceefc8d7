"""Second part of the demo: the same versions in a bucket of a local Hugging Face Hub.

The commands use the real huggingface_hub and hf_xet; only the Hub is local, and counts requests and
bytes. For comparison, the same files are uploaded and downloaded with plain ``hf``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from casweights.testing.hub import LocalHubProcess
from tools.demos.common import (
    BASE,
    MODELS,
    RECIPES,
    WIDTH,
    Recipe,
    check,
    compare_files,
    heading,
    megabytes,
    say,
    size_on_disk,
)
from tools.models import variants

TOKEN = "hf_demo"
BUCKET, FOLDER = "demo/models", "run"
STORE = f"hf://buckets/{BUCKET}/{FOLDER}"
PLAIN = "demo/plain"
# The refs of the versions, once all are committed.
REFS = {recipe.name: recipe.branch for recipe in RECIPES} | {BASE: "main~1"}
NEW = "frozen-fp16"
DAMAGED = 13  # exit status (docs/scripting.md)


@dataclass(frozen=True)
class Spent:
    """The Hub's counts of requests and of bytes of bodies.

    Attributes:
        sent: Bytes sent to the Hub.
        read: Bytes read from the Hub.
        requests: Number of requests of all kinds.
    """

    sent: int = 0
    read: int = 0
    requests: int = 0

    def __add__(self, other: Spent) -> Spent:
        requests = self.requests + other.requests
        return Spent(self.sent + other.sent, self.read + other.read, requests)


@dataclass(frozen=True)
class Done:
    """Exit status, output and costs of a command."""

    status: int
    output: str
    spent: Spent

    @property
    def version(self) -> str:
        """The first digits of the ID with which the output begins."""
        return self.output.split()[0]


@dataclass(frozen=True)
class Machine:
    """A simulated machine, which shares nothing with others but the Hub.

    Attributes:
        hub: The Hub.
        work: Working directory of its commands.
        home: Folder of the caches of huggingface_hub and casweights.
    """

    hub: LocalHubProcess
    work: Path
    home: Path

    def run(self, program: str, *arguments: str, status: int = 0) -> Done:
        """Run a command, and check its exit status."""
        drop = ("HF_", "HUGGING", "CASWEIGHTS_")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(drop) and not name.lower().endswith("_proxy")
        }
        environment |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # the check would query a package index
            "CASWEIGHTS_STORE": STORE,
        }
        self.hub.reset_counters()
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        counts = self.hub.counters()
        command = command_line(program, *arguments)
        check(
            done.returncode == status,
            f"{command} ended with exit status {done.returncode}, not {status}:\n{done.stdout}",
        )
        spent = Spent(counts.bytes_in, counts.bytes_out, counts.total)
        return Done(done.returncode, done.stdout.rstrip(), spent)

    def show(self, *arguments: str, status: int = 0) -> Done:
        """Run ``casweights``, and print the command and its output."""
        say(command_line("casweights", *arguments))
        done = self.run("casweights", *arguments, status=status)
        for line in done.output.splitlines():
            say(textwrap.fill(line, WIDTH) if len(line) > WIDTH else line)
        return done


@dataclass
class Row:
    """A version and its costs, with casweights and with plain ``hf``."""

    name: str
    size: int
    commit: Spent = Spent()
    upload: Spent = Spent()
    checkout: Spent = Spent()
    download: Spent = Spent()


class Story:
    """The steps of this part of the demo.

    Args:
        hub: An empty Hub.
        models: The directory of the versions.
        work: Working directory of the machines.
    """

    def __init__(self, hub: LocalHubProcess, models: Path, work: Path) -> None:
        self.hub = hub
        self.models = models
        self.work = work
        self.rows = {r.name: Row(r.name, size_on_disk(models / r.name)) for r in RECIPES}
        self.ids: dict[str, str] = {}
        (work / MODELS).symlink_to(models)

    def machine(self, name: str) -> Machine:
        return Machine(self.hub, self.work, self.work / "homes" / name)

    def run(self) -> None:
        trainer, reader = self.machine("trainer"), self.machine("reader")
        self.commit_all(trainer)
        self.look(trainer)
        self.check_out_all(reader)
        self.work_offline(trainer, reader)
        self.clone()
        self.copy_plainly()
        self.damage()
        self.print_table()

    def commit_all(self, trainer: Machine) -> None:
        heading("9. Commit the same versions to a bucket of a local Hugging Face Hub")
        say(f"$ export HF_ENDPOINT={self.hub.url} HF_TOKEN={TOKEN} CASWEIGHTS_STORE={STORE}")
        trainer.show("init", STORE)
        for recipe in RECIPES:
            arguments = commit_arguments(recipe)
            say(command_line("casweights", *arguments))
            done = trainer.run("casweights", *arguments)
            row = self.rows[recipe.name]
            row.commit = done.spent
            self.ids[recipe.name] = done.version
            say(f"{done.version}  {megabytes(row.size)} of files: {sentence(done.spent)}")

    def look(self, trainer: Machine) -> None:
        heading("10. Show the store, and the history of the fp16 model")
        trainer.show("info")
        history = [line.split()[0] for line in trainer.show("log", "fp16").output.splitlines()]
        expected = [self.ids[name] for name in ("fp16", "tuned", BASE)]
        check(history == expected, "the history in the bucket differs")

    def check_out_all(self, reader: Machine) -> None:
        heading("11. Check out on another machine with an empty cache, and compare SHA-256")
        for name, row in self.rows.items():
            done = self.check_out(reader, REFS[name], self.models / name)
            check(done.version == self.ids[name], f"{REFS[name]} is not {name}")
            row.checkout = done.spent
        first, second = self.rows[BASE], self.rows["tuned"]
        check(second.checkout.read < second.size / 2, "a neighbouring version was read as a whole")
        say(
            f"{len(self.rows)} versions are identical. The first one was read as a whole "
            f"({megabytes(first.checkout.read)}), the next as a difference "
            f"({megabytes(second.checkout.read)})."
        )

    def check_out(self, machine: Machine, ref: str, original: Path, *options: str) -> Done:
        """Check out a version to an empty directory, and compare it with the original."""
        with tempfile.TemporaryDirectory(dir=self.work) as target:
            done = machine.run("casweights", *options, "checkout", ref, target)
            files = compare_files(original, Path(target))
        say(command_line("casweights", *options, "checkout", ref, "copy"))
        say(f"{done.version}  {len(files)} files are identical; {sentence(done.spent)}")
        return done

    def work_offline(self, trainer: Machine, reader: Machine) -> None:
        heading("12. Copy the store to a directory, commit there offline, and pull the new version")
        taken = reader.show("push", "backup", "--create")
        say(f"Transferred: {sentence(taken.spent)}.")
        new = self.work / NEW
        variants.convert_to_half(self.models / "frozen", new)
        options = ("--branch", NEW, "--parent", "frozen", "-m", "Rounded to fp16")
        offline = reader.show("--store", "backup", "commit", NEW, *options)
        check(offline.spent == Spent(), "a commit to a directory sent requests to the Hub")
        back = trainer.show("pull", "backup")
        say(f"Transferred: {sentence(back.spent)}.")
        check(back.spent.sent < 1.1 * size_on_disk(new), "more was sent back than the new version")
        done = self.check_out(reader, NEW, new)
        check(done.version == offline.version, "the ID of the version changed in the transfer")

    def clone(self) -> None:
        heading("13. Pull a single version to a store of its own, on a third machine")
        third, original = self.machine("third"), self.models / "vocabulary"
        done = third.show("pull", STORE, "vocabulary", "--shallow", "--create", "--store", "one")
        say(f"Transferred: {sentence(done.spent)}.")
        self.check_out(third, "vocabulary", original, "--store", "one")

    def copy_plainly(self) -> None:
        heading(
            "14. For comparison: upload and download the plain files (hf_xet also deduplicates)"
        )
        url = f"hf://buckets/{PLAIN}"
        self.hub.create_bucket(PLAIN)
        uploader, downloader = self.machine("uploader"), self.machine("downloader")
        say(f"$ hf buckets sync {MODELS}/VERSION {url}/VERSION")
        for name, row in self.rows.items():
            done = uploader.run("hf", "buckets", "sync", f"{MODELS}/{name}", f"{url}/{name}")
            row.upload = done.spent
        say(f"$ hf buckets sync {url}/VERSION copy")
        for name, row in self.rows.items():
            with tempfile.TemporaryDirectory(dir=self.work) as target:
                done = downloader.run("hf", "buckets", "sync", f"{url}/{name}", target)
                compare_files(self.models / name, Path(target))
            row.download = done.spent
        say(f"{len(self.rows)} versions are identical.")

    def damage(self) -> None:
        heading("15. Flip one bit in the bucket, and try to check out on a new machine")
        packs = (self.work / "backup" / "packs").iterdir()  # with the same names as in the bucket
        pack = max(packs, key=lambda path: path.stat().st_size)
        self.hub.corrupt_object(BUCKET, f"{FOLDER}/packs/{pack.name}", pack.stat().st_size // 2)
        self.machine("new").show("checkout", REFS[BASE], "damaged", status=DAMAGED)
        files = list((self.work / "damaged").rglob("*"))
        check(not any(map(Path.is_file, files)), "files were written from damaged bytes")
        say("No file was written.")

    def print_table(self) -> None:
        heading("16. Bytes and requests of six versions, as counted by the Hub")
        titles = ("commit", "hf upload", "checkout", "hf download")
        say(f"{'':<20}" + f"{titles[0]:>27}" + "".join(f"{title:>17}" for title in titles[1:]))
        columns = f"{'sent':>10}{'read':>10}{'req.':>7}" + f"{'sent':>10}{'req.':>7}"
        say(f"{'':<11}{'MB':>9}{columns}" + 2 * f"{'read':>10}{'req.':>7}")
        rows = list(self.rows.values())
        total = Row(
            "total",
            sum(row.size for row in rows),
            sum((row.commit for row in rows), Spent()),
            sum((row.upload for row in rows), Spent()),
            sum((row.checkout for row in rows), Spent()),
            sum((row.download for row in rows), Spent()),
        )
        for row in (*rows, total):
            say(table_row(row))
        say("")
        say("Columns: MB, plain size; sent, read: MB of bodies; req.: requests of all kinds.")
        say("A commit reads the base of its differences if the cache of the machine lacks it.")
        say("All commits ran on one machine, in this order, and all checkouts on another one.")
        check(total.commit.sent < total.upload.sent, "commits sent more than plain uploads")
        check(total.checkout.read < total.download.read, "checkouts read more than plain downloads")


def table_row(row: Row) -> str:
    def number(nbytes: int, width: int = 10) -> str:
        return f"{nbytes / 1e6:>{width}.2f}"

    return (
        f"{row.name:<11}{number(row.size, 9)}"
        f"{number(row.commit.sent)}{number(row.commit.read)}{row.commit.requests:>7}"
        f"{number(row.upload.sent)}{row.upload.requests:>7}"
        f"{number(row.checkout.read)}{row.checkout.requests:>7}"
        f"{number(row.download.read)}{row.download.requests:>7}"
    )


def commit_arguments(recipe: Recipe) -> list[str]:
    """Return the arguments that commit a version; a new branch begins at its parent."""
    arguments = ["commit", f"{MODELS}/{recipe.name}", "-m", recipe.message]
    if recipe.branch != "main":
        arguments += ["--branch", recipe.branch, "--parent", REFS[recipe.parent or BASE]]
    return arguments


def sentence(spent: Spent) -> str:
    moved = {"sent": spent.sent, "read": spent.read}
    parts = [f"{megabytes(nbytes)} {what}" for what, nbytes in moved.items() if nbytes > 5000]
    return ", ".join([*parts, f"{spent.requests} requests"])


def command_line(program: str, *arguments: str) -> str:
    quoted = (shlex.quote(part) if " " in part else part for part in (program, *arguments))
    return f"$ {' '.join(quoted)}"


def run(work: Path) -> None:
    """Run this part with the versions in the folder `MODELS` of a directory; leave nothing."""
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        LocalHubProcess(Path(folder) / "hub", {TOKEN: "write"}) as hub,
    ):
        Story(hub, work / MODELS, Path(folder)).run()
