"""Third part of the demo: a trainer publishes each step, and replicas follow through a bucket.

Trainer and replicas are processes, each like one on a machine of its own. They share only a bucket
of a local Hub: weights go one way, rollouts the other. This module starts them, kills one of them,
and prints the events from their journals, which serve only this report.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import mean

from casweights.testing.hub import Counts, LocalHubProcess
from tools.demos.common import check, heading, megabytes, say
from tools.demos.live.processes import TOKEN, Event, Processes
from tools.demos.live.wire import STORE

TRAINER, STEADY, KILLED = "trainer", "a", "b"
REPLICAS = (STEADY, KILLED)
STEPS = 100
EVERY = 5  # steps of a row of the table
KILL, REJOIN = 22, 43
LAG = range(67, 79)  # the steps that the steady replica skips
ENDS = 10  # number of first and last steps whose rewards are compared
MARGIN = 0.15  # minimum rise of the reward
SILENCE = 120.0  # seconds without events after which the run fails
TITLES = (
    f"{'step':>4}{'reward':>8}{'batches':>9}{'stale':>7}{'changed':>9}{'stored':>11}{'ratio':>7}"
    f"{'blocked':>9}{'durable':>9}{'pause a':>9}{'pause b':>9}"
)
LEGEND = (
    "reward: share of right digits. batches: of 128 rollouts. stale: versions that rollouts are\n"
    "behind. changed: share of elements, in bf16. stored: bytes of a version; ratio: bytes of a\n"
    "full upload divided by these. blocked: ms in publish(). durable: ms until a version is\n"
    "visible. pause: ms in which a replica's tensors are written. Rows are means of their steps."
)


class Story:
    """The steps of this part of the demo.

    Args:
        hub: An empty Hub.
        processes: Starts the processes.
    """

    def __init__(self, hub: LocalHubProcess, processes: Processes) -> None:
        self.hub = hub
        self.processes = processes
        self.steps: dict[int, Event] = {}
        self.versions: dict[int, Event] = {}
        self.syncs: dict[str, list[Event]] = {name: [] for name in REPLICAS}
        self.final: dict[str, Event] = {}
        self.rows = 0
        self.told = dict.fromkeys(REPLICAS, 0)  # number of syncs in the table so far

    def run(self) -> None:
        heading("17. Live sync: a trainer and two replicas that share only a bucket")
        say("A small Llama learns to sort digits. Two replicas generate answers with copies of it;")
        say("the trainer makes a step of policy gradients from them and publishes the weights.")
        say(f"$ casweights init {STORE}")
        say(self.processes.run("casweights", "init", STORE))
        self.processes.start("tools.demos.live.trainer", TRAINER, "--steps", str(STEPS))
        self.start_replica(STEADY, 1, "--lag", str(LAG.start), str(LAG.stop))
        self.start_replica(KILLED, 2)
        say("")
        say(TITLES)
        self.watch()
        say("")
        say(LEGEND)
        self.check_course()
        heading(
            "18. Check that the policy learned, and that the replicas hold the trainer's weights"
        )
        self.compare_rewards()
        self.compare_weights()
        self.count(self.hub.counters())

    def start_replica(self, name: str, seed: int, *arguments: str) -> None:
        options = ("--name", name, "--seed", str(seed), *arguments)
        self.processes.start("tools.demos.live.replica", name, *options)

    def watch(self) -> None:
        """Print events until all processes have ended."""
        heard = time.monotonic()
        ended = False
        while not ended:
            ended = self.processes.have_ended()
            for name, event in self.processes.news():
                heard = time.monotonic()
                self.hear(name, event)
            check(time.monotonic() < heard + SILENCE, f"no event for {SILENCE:.0f} s")
            time.sleep(0.02)

    def hear(self, name: str, event: Event) -> None:
        match event["event"]:
            case "step":
                self.steps[event["step"]] = event
            case "published":
                self.versions[event["step"]] = event
                self.see_version(event)
            case "synced":
                self.syncs[name].append(event)
                self.see_sync(name, event)
            case "done":
                self.final[name] = event
        self.print_rows()

    def see_version(self, version: Event) -> None:
        """Kill or start replicas as planned for the step of a version."""
        step = version["step"]
        if step == 0:
            stored, total = megabytes(version["stored_bytes"]), megabytes(version["total_bytes"])
            say(f"-- the first version is stored whole: {stored} for {total} of files")
        elif step == KILL:
            self.processes.kill(KILLED)
            say(f"-- {KILLED} is killed (SIGKILL) after step {step}")
        elif step == REJOIN:
            self.start_replica(KILLED, 3)
            say(f"-- {KILLED} is restarted after step {step}, with an empty disk")
        elif step == LAG.start:
            say(f"-- {STEADY} skips {len(LAG)} versions, and continues with old weights")

    def see_sync(self, name: str, sync: Event) -> None:
        took = (
            f"{megabytes(sync['fetched_bytes'])} in {sync['fetch']:.2f} s, "
            f"and a pause of {1000 * sync['pause']:.1f} ms"
        )
        if sync["first"]:
            say(f"-- {name} starts without weights at step {sync['step']}: {took}")
        elif sync["lag"] > len(LAG):
            missed = sync["lag"] - 1
            say(f"-- {name} missed {missed} versions, and is now at step {sync['step']}: {took}")

    def print_rows(self) -> None:
        step = (self.rows + 1) * EVERY
        if step in self.steps and step in self.versions:
            self.rows += 1
            say(self.row(range(step - EVERY + 1, step + 1)))

    def row(self, window: range) -> str:
        steps = [self.steps[n] for n in window]
        versions = [self.versions[n] for n in window]
        stored = mean(version["stored_bytes"] for version in versions)
        pauses = ""
        for name in REPLICAS:
            syncs = self.syncs[name][self.told[name] :]
            self.told[name] += len(syncs)
            pauses += f"{milliseconds(syncs, 'pause') if syncs else '-':>9}"
        return (
            f"{window[-1]:>4}{mean(step['reward'] for step in steps):>8.3f}"
            f"{sum(step['batches'] for step in steps):>9}"
            f"{mean(step['staleness'] for step in steps):>7.1f}"
            f"{mean(version['density'] for version in versions):>9.2%}"
            f"{stored:>11,.0f}{versions[-1]['total_bytes'] / stored:>6.1f}x"
            f"{milliseconds(steps, 'blocked'):>9}{milliseconds(versions, 'durable'):>9}{pauses}"
        )

    def check_course(self) -> None:
        """Check that the planned events took place."""
        rejoined = any(s["first"] and s["step"] >= REJOIN for s in self.syncs[KILLED])
        check(rejoined, f"{KILLED} did not rejoin")
        caught_up = any(s["lag"] > len(LAG) for s in self.syncs[STEADY])
        check(caught_up, f"{STEADY} did not catch up in one sync")

    def compare_rewards(self) -> None:
        rewards = [self.steps[n]["reward"] for n in range(1, STEPS + 1)]
        start, end = mean(rewards[:ENDS]), mean(rewards[-ENDS:])
        say(f"Reward: {start:.3f} in the first {ENDS} steps, {end:.3f} in the last {ENDS}.")
        check(end > start + MARGIN, f"the reward did not rise by {MARGIN}")

    def compare_weights(self) -> None:
        trainer = self.final[TRAINER]
        say(f"{'trainer':<10}{trainer['snapshot'][:12]}  SHA-256 {trainer['digest']}")
        for name in REPLICAS:
            replica = self.final[name]
            say(f"{name:<10}{replica['snapshot'][:12]}  SHA-256 {replica['digest']}")
            check(replica["snapshot"] == trainer["snapshot"], f"{name} is at another version")
            check(replica["digest"] == trainer["digest"], f"{name} has other weights")
        say("Names and bits of all tensors are identical.")

    def count(self, counts: Counts) -> None:
        steps = [self.versions[n] for n in range(1, STEPS + 1)]
        stored, full = (sum(v[key] for v in steps) for key in ("stored_bytes", "total_bytes"))
        say(
            f"{STEPS} steps took {megabytes(stored)}, {full / stored:.1f} times less than "
            f"{megabytes(full)} of full uploads."
        )
        say(
            f"Transferred, with rollouts: {megabytes(counts.bytes_in)} to the Hub, "
            f"{megabytes(counts.bytes_out)} from it, {counts.total} requests."
        )


def milliseconds(events: list[Event], key: str) -> str:
    return f"{1000 * mean(event[key] for event in events):.1f}"


def run(work: Path) -> None:
    """Run this part below a directory, and leave nothing."""
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        LocalHubProcess(Path(folder) / "hub", {TOKEN: "write"}) as hub,
        Processes(hub.url, Path(folder)) as processes,
    ):
        Story(hub, processes).run()
