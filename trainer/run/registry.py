"""The run directory: the one source of truth about a run, readable by people, on any fsspec URL.

::

    RUNS/NAME/
      run.json            what the run is: schema version, dataset fingerprint, classes
      config.yaml         the configuration as resolved
      lease.json          who drives the run now, renewed every few seconds
      attempts/0001.json  one a start, with its settings; 0001.end.json says how it ended
      events/             see trainer.run.events
      checkpoints/        see trainer.run.checkpoint
      evaluations/        CHECKPOINT.SPLIT.json
      result.json         best checkpoint and its test result; its presence = the run is finished

The attempt with the highest number owns the run: anyone else's commit is refused, so a driver that was thought dead
and wakes up cannot damage what its successor does.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sharding import storage
from sharding.errors import UserError, did_you_mean
from sharding.schema import DatasetInfo
from trainer.config import RunConfig, make_config
from trainer.run import checkpoint
from trainer.run.amendments import changes, refuse_changes
from trainer.run.checkpoint import Manifest, write_with_retries

#: Raised when older code could no longer read a run rightly; a field that may be absent needs no new version. Who
#: raises it makes ``RunRegistry.open`` bring older runs up to date, and adds a run of the new version to the tests.
SCHEMA_VERSION = 1

#: A lease that was not renewed for so long is free, when its process cannot be looked up on this host.
LEASE_SECONDS = 30.0


class StaleAttempt(Exception):
    """A newer attempt owns the run; this one must stop."""


class RunRegistry:
    """A run's files. Stateless: two objects on one URL see the same run."""

    def __init__(self, url: str) -> None:
        self.url = str(url).rstrip("/")

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def path(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def create(cls, runs: str, config: RunConfig, dataset: DatasetInfo) -> RunRegistry:
        """Make the directory of a new run; a name that is taken is refused."""
        registry = cls(storage.join(runs, config.name))
        description = {
            "schema_version": SCHEMA_VERSION,
            "name": config.name,
            "created": time.time(),
            "fingerprint": dataset.fingerprint,
            "steps_per_epoch": -(-dataset.splits[config.dataset.train].samples // config.plan.global_batch),
            "classes": [c.model_dump() for c in dataset.classes],
        }
        content = (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode()
        try:
            created = storage.create_exclusive(registry.path("run.json"), content)
            if created:
                storage.write_atomic(registry.path("config.yaml"), config.to_yaml().encode())
        except (PermissionError, OSError) as error:
            raise UserError(f"cannot write to {registry.url}: {error}", "choose another --runs") from error
        if not created:
            raise UserError(
                f"a run named {config.name!r} exists at {registry.url}",
                f"go on with `boostlu resume {registry.url}`, or choose another name: name=...",
            )
        return registry

    @classmethod
    def open(cls, url: str) -> RunRegistry:
        """Open an existing run, naming those that exist beside a wrong name."""
        registry = cls(url)
        if not storage.exists(registry.path("run.json")):
            parent = registry.url.rpartition("/")[0] or "."
            names = [n for n in storage.list_names(parent) if storage.exists(storage.join(parent, n, "run.json"))]
            raise UserError(f"no run at {url}", did_you_mean(registry.name, names))
        version = registry.description()["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{url} has run schema {version}, this version of boostlu reads {SCHEMA_VERSION}",
                "use a newer version of boostlu" if version > SCHEMA_VERSION else "use the version that made the run",
            )
        return registry

    def description(self) -> dict[str, Any]:
        return storage.read_json(self.path("run.json"))

    def config(self, overrides: list[str] | None = None) -> RunConfig:
        """Return the run's configuration, with overrides for this use only."""
        values = yaml.safe_load(storage.read_bytes(self.path("config.yaml")))
        return make_config(values, overrides or [], self.path("config.yaml"))

    # ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin_attempt(self, workers: int, take_over: bool = False) -> int:
        """Number the next attempt and take the lease; refuses while another driver is alive unless told to, and when
        config.yaml differs from the attempt before in settings that make it another run."""
        if not take_over:
            self.refuse_if_driven()
        attempts = self.attempts()
        number = max(attempts, default=0) + 1
        settings = self.config().model_dump(mode="json")
        before = next((a["config"] for a in reversed(attempts.values()) if "config" in a), None)
        if before is not None:
            # Validated anew, so that a setting which an older version did not have counts as its default.
            known = make_config(before, origin=f"the settings of attempt {number - 1}").model_dump(mode="json")
            refuse_changes(changes(known, settings), self.name)
        description = {**_this_process(), "attempt": number, "started": time.time(), "workers": workers}
        description["config"] = settings
        while not storage.create_exclusive(self._attempt_path(number), _json_bytes(description)):
            number += 1
            description["attempt"] = number
        self.renew_lease(number)
        return number

    def refuse_if_driven(self) -> None:
        """Raise :class:`UserError` while another driver is alive."""
        lease = self.lease()
        if lease is not None and lease_is_alive(lease):
            raise UserError(
                f"run {self.name!r} is being driven by process {lease['pid']} on {lease['host']}",
                "stop it first, or add --take-over if you know that it is gone",
            )

    def amend(self, overrides: list[str]) -> None:
        """Change the settings with which the next attempt goes on; refuses those that make it another run."""
        if not overrides:
            return
        before, after = self.config(), self.config(overrides)
        refuse_changes(changes(before.model_dump(mode="json"), after.model_dump(mode="json")), self.name)
        write_with_retries(self.path("config.yaml"), after.to_yaml().encode())

    def end_attempt(self, number: int, outcome: str, reason: str = "", **details: Any) -> None:
        """Record how an attempt ended: ``finished``, ``interrupted`` or ``failed``; frees the lease."""
        record = {"attempt": number, "ended": time.time(), "outcome": outcome, "reason": reason, **details}
        write_with_retries(self._attempt_path(number, ".end"), _json_bytes(record))
        lease = self.lease()
        if lease is not None and lease["attempt"] == number:
            storage.remove(self.path("lease.json"))

    def attempts(self) -> dict[int, dict[str, Any]]:
        """Return number → description, with the fields of its end once it has ended. A torn file says that there was
        an attempt, and nothing else."""
        found: dict[int, dict[str, Any]] = {}
        for name in storage.list_names(self.path("attempts")):
            number = name.split(".")[0]
            if number.isdigit():
                found.setdefault(int(number), {}).update(_read_or_none(self.path("attempts", name)) or {})
        return dict(sorted(found.items()))

    def check_owner(self, attempt: int) -> None:
        """Raise :class:`StaleAttempt` unless ``attempt`` is the newest."""
        newest = max(self.attempts(), default=0)
        if newest != attempt:
            raise StaleAttempt(f"attempt {attempt} of run {self.name!r} may not write: attempt {newest} took over")

    def renew_lease(self, attempt: int) -> None:
        storage.write_json(self.path("lease.json"), {**_this_process(), "attempt": attempt, "renewed": time.time()})

    def lease(self) -> dict[str, Any] | None:
        return _read_or_none(self.path("lease.json"))

    def _attempt_path(self, number: int, suffix: str = "") -> str:
        return self.path("attempts", f"{number:04d}{suffix}.json")

    # ── checkpoints and evaluations ──────────────────────────────────────────────────────────────────────────

    def commit(self, attempt: int, manifest: Manifest) -> None:
        """Commit a written checkpoint for ``attempt``, if it still owns the run."""
        self.check_owner(attempt)
        checkpoint.commit(self.url, manifest)

    def checkpoints(self) -> list[Manifest]:
        """Return the committed checkpoints, oldest step first."""
        names = storage.list_names(self.path("checkpoints"))
        manifests = [checkpoint.read_manifest(self.url, name) for name in names]
        return sorted((m for m in manifests if m is not None), key=lambda m: (m.step, m.attempt))

    def latest(
        self, on_damage: Callable[[Manifest, UserError], None] | None = None
    ) -> tuple[Manifest, checkpoint.Snapshot] | tuple[None, None]:
        """Return the newest sound checkpoint with its content; damaged ones are skipped and told to ``on_damage``."""
        for manifest in reversed(self.checkpoints()):
            try:
                return manifest, checkpoint.read_checkpoint(self.url, manifest)
            except UserError as error:
                if on_damage is not None:
                    on_damage(manifest, error)
        return None, None

    def delete_checkpoint(self, manifest: Manifest) -> None:
        """Delete a checkpoint: its manifest first, so that it never looks committed while it is incomplete."""
        storage.remove(checkpoint.checkpoint_url(self.url, manifest.name, "manifest.json"))
        storage.remove(checkpoint.checkpoint_url(self.url, manifest.name))

    def orphans(self) -> list[str]:
        """Return checkpoint folders without a whole manifest: saves that were never committed. One that is whole but
        not understood was committed by another version, and is left alone."""
        names = storage.list_names(self.path("checkpoints"))
        manifests = {name: checkpoint.checkpoint_url(self.url, name, "manifest.json") for name in names}
        return [name for name, url in manifests.items() if _read_or_none(url) is None]

    def delete_orphan(self, name: str) -> None:
        storage.remove(checkpoint.checkpoint_url(self.url, name))

    def record_evaluation(self, checkpoint_name: str, split: str, record: dict[str, Any]) -> None:
        write_with_retries(self.path("evaluations", f"{checkpoint_name}.{split}.json"), _json_bytes(record))

    def evaluations(self, split: str) -> dict[str, dict[str, Any]]:
        """Return checkpoint name → record, for every evaluation of ``split``, failed ones included. A torn record is
        as good as none: the checkpoint is evaluated again."""
        suffix = f".{split}.json"
        found = {
            name.removesuffix(suffix): _read_or_none(self.path("evaluations", name))
            for name in storage.list_names(self.path("evaluations"))
            if name.endswith(suffix)
        }
        return {name: record for name, record in found.items() if record is not None}

    def write_result(self, result: dict[str, Any]) -> None:
        write_with_retries(self.path("result.json"), _json_bytes(result))

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run; a torn one counts as none, and the next attempt writes it again."""
        return _read_or_none(self.path("result.json"))

    def state(self) -> str:
        """Return ``finished``, ``running``, ``interrupted`` or ``failed``, or ``stopped`` when nobody said why."""
        if self.result() is not None:
            return "finished"
        lease = self.lease()
        if lease is not None and lease_is_alive(lease):
            return "running"
        attempts = list(self.attempts().values())
        return str(attempts[-1].get("outcome", "stopped")) if attempts else "new"


def lease_is_alive(lease: dict[str, Any]) -> bool:
    """Whether the driver that holds ``lease`` may still be at work.

    On its own host the process table knows. Elsewhere the age of the lease tells: one from the future says as little
    as an old one, its host's clock or this one's has jumped. A wrong guess lets a second driver start, and the first
    one's next commit is refused.
    """
    if lease["host"] == socket.gethostname():
        started = _started(lease["pid"])
        known = lease.get("ticks", started)  # leases of older versions do not say
        return started is not None and started == known and lease["pid"] != os.getpid()
    return abs(time.time() - lease["renewed"]) < LEASE_SECONDS


def _started(pid: int) -> int | None:
    """Return when a process of this host started, in clock ticks since boot, which no change of the wall clock
    alters; None when there is no such process."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = content.rpartition(")")[2].split()  # the name in parentheses may hold anything
    return None if after_name[0] in "ZX" else int(after_name[19])


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "ticks": _started(os.getpid())}


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _read_or_none(url: str) -> dict[str, Any] | None:
    """Read a JSON file that others may be writing, or that a crash of its host has torn; None if it is not whole."""
    try:
        value = json.loads(storage.read_bytes(url))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def find_run(runs: str, run: str) -> str:
    """Return the URL of ``run``: a path or URL that holds a run, or a name below ``runs``."""
    if storage.exists(storage.join(run, "run.json")):
        return run
    return storage.join(runs, run)


def list_runs(runs: str) -> list[RunRegistry]:
    """Return the runs directly below ``runs``, by name."""
    urls = [storage.join(runs, name) for name in storage.list_names(runs)]
    return [RunRegistry(url) for url in urls if storage.exists(storage.join(url, "run.json"))]
