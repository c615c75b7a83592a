"""A soak of faults: runs are disturbed again and again at random, and must end where an undisturbed run ends.

Every round is one run of the same small job. Something is killed, stopped or damaged after a random number of steps;
whatever the run does not survive by itself, `boostlu resume` must. At the end of a round weights, optimizer,
corrections, the history of steps and all evaluations are compared with a run that nothing happened to, bit by bit.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.bench.victims import damage_newest_checkpoint, family_of, kill, named, tear_attempt_record
from sharding.errors import UserError
from trainer.run.comparison import differences
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry

COMMAND = [sys.executable, "-m", "cluster.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

#: A run that has done no step for so long counts as lost.
PATIENCE_SECONDS = 400.0
#: Steps of an attempt before the next fault: few enough that some come before a checkpoint, some after several.
STEPS_BETWEEN = (1, 40)

POLL_SECONDS = 0.3

#: What is done to the run. The last four end all of its processes, then damage what they leave.
FAULTS = (
    *("worker", "hang", "coordinator", "evaluator", "sigterm", "sigint-group", "driver"),
    *("torn", "flipped", "manifest", "record"),
)


@dataclass
class Tally:
    """What was done and what it cost. lost_steps: steps done again after each fault · seconds: until the run trained
    again · problems: what did not survive, in words"""

    faults: Counter[str] = field(default_factory=Counter)
    lost_steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    survived: int = 0
    rounds: int = 0
    problems: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "faults": sum(self.faults.values()),
            "by_kind": dict(sorted(self.faults.items())),
            "survived": self.survived,
            "steps_lost_most": max(self.lost_steps, default=0),
            "recovery_seconds_median": statistics.median(self.seconds) if self.seconds else None,
            "recovery_seconds_worst": max(self.seconds, default=None),
            "lost": self.problems or "nothing",
        }


def measure(minutes: float, seed: int, epochs: int = 20, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Disturb runs for ``minutes`` (the last one is brought to its end); return the figures."""
    rng, tally = random.Random(seed), Tally()
    faults = drawn(rng)
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        config = _job(Path(folder), epochs)
        say(f"seed {seed}; undisturbed run ...")
        began = time.monotonic()
        reference = _reference(config, Path(folder) / "undisturbed")
        say(f"undisturbed run: {time.monotonic() - began:.0f} s")
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            run = DisturbedRun(config, Path(folder) / f"round-{tally.rounds}", rng, faults, tally, deadline, say)
            if not run.go():
                break
            found = differences(run.registry, reference)
            tally.problems += [f"round {tally.rounds}: {what} differs from the undisturbed run" for what in found]
            tally.rounds += 1
            say(f"round {tally.rounds} is over: {'; '.join(found) or 'bitwise the undisturbed run'}")
    return tally.figures()


def drawn(rng: random.Random) -> Iterator[str]:
    """Yield faults for ever, in random order, each kind as often as any other."""
    while True:
        yield from rng.sample(FAULTS, len(FAULTS))


def _job(folder: Path, epochs: int) -> Path:
    """Write a small dataset of digit scenes and the configuration of a job with everything that has to survive."""
    from sharding.build import build_dataset
    from sharding.overlays import write_single_positive

    root = str(folder / "digits")
    sizes = {"train": 480, "val": 200, "test": 100, "side": 96}
    build_dataset("digits", root, sizes, samples_per_shard=40, processes=1)
    write_single_positive(root)
    values = {
        "name": "chaos",
        "epochs": epochs,
        "dataset": {"path": root, "labels": "single-positive-1200", "image_size": 96},
        "plan": {"global_batch": 16, "lanes": 4, "shuffle_window": 64},
        "loader": {"threads": 1},
        "model": {"backbone": "small_resnet:16", "weights": "none", "alpha": 5},
        "loss": {"name": "ll-cp", "delta": 0.2},
        "optimizer": {"lr": 1e-3, "head_lr_multiplier": 1},
        "checkpoint": {"every_steps": 10, "keep_last": 3},
        "evaluate": {"batch": 16, "max_backlog": 2},
        "workers": {"num": 2, "hang_seconds": 20, "hang_factor": 20, "max_failures": 50},
    }
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _reference(config: Path, runs: Path) -> RunRegistry:
    """Two ranks under torchrun, without Ray: the same run by the other launcher."""
    done = subprocess.run(
        [*TORCHRUN, str(config), "--runs", str(runs)], env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise UserError(f"the undisturbed run failed: {done.stderr[-500:]}", "see `boostlu train`")
    return RunRegistry(str(runs / "chaos"))


class DisturbedRun:
    """One run from its start to its end, whatever happens to it."""

    def __init__(
        self,
        config: Path,
        runs: Path,
        rng: random.Random,
        faults: Iterator[str],
        tally: Tally,
        deadline: float,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._runs, self._rng, self._tally, self._say = config, runs, rng, tally, say
        self._faults, self._deadline = faults, deadline
        self.registry = RunRegistry(str(runs / "chaos"))
        runs.mkdir()
        self._log = open(runs / "log", "ab")  # noqa: SIM115 — closed by go()
        self._job: subprocess.Popen[bytes] = self._start("train", str(config))

    def go(self) -> bool:
        """Disturb the run until it is finished; False when it does not go on in time."""
        try:
            while self.registry.result() is None and time.monotonic() < self._deadline:
                if self._trains(self._rng.randint(*STEPS_BETWEEN)):
                    self._disturb(next(self._faults))
                self._go_on()
            self._wait_until(lambda: self.registry.result() is not None, "result")
            self._job.wait(PATIENCE_SECONDS)
            return True
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            tail = (self._runs / "log").read_text(errors="replace")[-1500:]
            self._tally.problems.append(f"the run did not go on: {error}; its log ends: {tail}")
            return False
        finally:
            kill(family_of(self._job.pid))
            self._job.wait()
            self._log.close()

    def _disturb(self, fault: str) -> None:
        """Inject one fault, if there is a victim for it, and wait until the run trains again or is finished."""
        attempt, done = self._newest_attempt(), self._steps_done()
        began = time.monotonic()
        target = self._inject(fault)
        if target is None:
            return
        self._tally.faults[fault] += 1
        if fault == "evaluator":
            self._say(f"{fault:<12} at step {done:>4}  ({target})")
        else:
            self._wait_until(lambda: bool(self._steps_after(attempt)), "step")
            took, redone = time.monotonic() - began, max(0, done - min(self._steps_after(attempt), default=done))
            self._tally.seconds.append(took)
            self._tally.lost_steps.append(redone)
            self._say(
                f"{fault:<12} at step {done:>4}: trains again after {took:.1f} s, {redone} steps lost ({target})"
            )
        self._tally.survived += 1

    def _inject(self, fault: str) -> str | None:
        """Do it; return what was hit, or None."""
        family = family_of(self._job.pid)
        victims = {"worker": "RayTrainWorker", "hang": "RayTrainWorker", "coordinator": "ray::Coordinator"}
        if fault in victims or fault == "evaluator":
            found = named(family, victims.get(fault, "ray::evaluate_task"))
            if not found:
                return None
            victim = self._rng.choice(found)
            victim.suspend() if fault == "hang" else victim.kill()
            return f"process {victim.pid}"
        if fault == "sigterm":
            self._job.send_signal(signal.SIGTERM)
        elif fault == "sigint-group":
            os.killpg(self._job.pid, signal.SIGINT)
        elif fault == "driver":
            self._job.kill()
        else:
            kill(family)
            self._job.wait()
            if fault == "record":
                return tear_attempt_record(self.registry, self._rng) or "nothing there yet"
            return damage_newest_checkpoint(self.registry, self._rng, fault) or "nothing there yet"
        return fault

    def _wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait for something, or for the end of the run, resuming it whenever its driver has ended."""
        progress, since = 0, time.monotonic()
        while self.registry.result() is None and not ready():
            self._go_on()
            if (now := len(self._steps())) != progress:
                progress, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise TimeoutError(f"no {what}, and no step, in {PATIENCE_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def _trains(self, steps: int) -> bool:
        """Wait until the present attempt has done so many steps; False when there is nothing more to train."""
        attempt = self._newest_attempt()
        total = None

        def over() -> bool:
            nonlocal total
            total = total or self._total()  # None while the run is not set up
            return total is not None and self._steps_done() >= total

        self._wait_until(lambda: over() or len(self._steps_after(attempt - 1)) >= steps, "steps")
        return self.registry.result() is None and not over()

    def _go_on(self) -> None:
        """Resume the run when its driver has ended without finishing it."""
        if self._job.poll() is not None and self.registry.result() is None:
            # Without its driver a private cluster ends by itself; a stale worker may still be at work, fenced off.
            self._job = self._start("resume", str(self.registry.url))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        runs = ["--runs", str(self._runs)]
        return subprocess.Popen(
            [*COMMAND, *arguments, *runs],
            env=ENVIRONMENT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _steps(self) -> list[dict[str, Any]]:
        return [e for e in read_events(self.registry.url) if e["event"] == "step"]

    def _steps_after(self, attempt: int) -> list[int]:
        """Return the steps that attempts newer than ``attempt`` have done."""
        return [e["step"] for e in self._steps() if e["attempt"] > attempt]

    def _steps_done(self) -> int:
        return max((e["step"] + 1 for e in self._steps()), default=0)

    def _total(self) -> int | None:
        try:
            return int(self.registry.description()["steps_per_epoch"]) * self.registry.config().epochs
        except FileNotFoundError:
            return None

    def _newest_attempt(self) -> int:
        return max(self.registry.attempts(), default=0)
