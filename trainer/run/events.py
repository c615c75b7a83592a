"""What happened in a run, as append-only JSON lines; every writer has its own files, so nobody waits for a lock.

``RUN/events/ATTEMPT-WRITER-SEGMENT.jsonl``, one JSON object a line: ``time`` (seconds since 1970), ``attempt``,
``event`` and the event's own fields. On a local disk lines are appended; on an object store, which cannot append,
each flush makes the next segment.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any

from sharding import storage

#: Seconds between flushes to an object store; a local line is flushed at once.
REMOTE_FLUSH_SECONDS = 10.0


class EventLog:
    """Appends events of one writer in one attempt. Not thread-safe."""

    def __init__(self, run_url: str, attempt: int, writer: str) -> None:
        self._attempt = attempt
        self._prefix = storage.join(run_url, "events", f"{attempt:04d}-{writer}")
        self._local: IO[str] | None = None
        if storage.is_local(run_url):
            path = storage.local_path(f"{self._prefix}-000000.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._local = open(path, "a", encoding="utf-8")  # noqa: SIM115 — closed by close()
        self._buffer: list[str] = []
        self._segment = 0
        self._flushed_at = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        """Record an event; fields must be JSON values."""
        line = json.dumps({"time": time.time(), "attempt": self._attempt, "event": event, **fields}, allow_nan=True)
        if self._local is not None:
            # One write call a line: a crash can cut the last line but never mix two.
            self._local.write(line + "\n")
            self._local.flush()
            return
        self._buffer.append(line)
        if time.monotonic() - self._flushed_at > REMOTE_FLUSH_SECONDS:
            with storage.tolerate_trouble():  # storage that fails just now: the lines stay for the next flush
                self.flush()

    def flush(self) -> None:
        """Make what was written visible to readers on an object store; raises OSError when that fails, and keeps what
        could not be written."""
        if not self._buffer:
            return
        self._flushed_at = time.monotonic()
        content = ("\n".join(self._buffer) + "\n").encode()
        storage.write_atomic(f"{self._prefix}-{self._segment:06d}.jsonl", content)
        self._segment += 1
        self._buffer.clear()

    def close(self) -> None:
        self.flush()
        if self._local is not None:
            self._local.close()
            self._local = None


def read_events(run_url: str) -> list[dict[str, Any]]:
    """Return all events of a run in order of time; a line cut short by a crash is left out."""
    events = []
    folder = storage.join(run_url, "events")
    for name in storage.list_names(folder):
        if not name.endswith(".jsonl"):
            continue
        for line in storage.read_bytes(storage.join(folder, name)).decode(errors="replace").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return sorted(events, key=lambda event: event["time"])


def step_history(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one ``step`` event a step, in order of steps.

    A step that was done again after a crash counts as its latest attempt did it.
    """
    latest: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "step":
            known = latest.get(event["step"])
            if known is None or event["attempt"] >= known["attempt"]:
                latest[event["step"]] = event
    return [latest[step] for step in sorted(latest)]


class TensorBoard:
    """Scalars for TensorBoard in ``RUN/tensorboard``; for a remote run written locally and copied on ``sync``."""

    def __init__(self, run_url: str, attempt: int) -> None:
        import tempfile

        from tensorboardX import SummaryWriter

        self._target = storage.join(run_url, "tensorboard")
        self._temporary = None if storage.is_local(run_url) else tempfile.TemporaryDirectory()
        folder = storage.local_path(self._target) if self._temporary is None else Path(self._temporary.name)
        self._folder = folder
        self._writer = SummaryWriter(str(folder), filename_suffix=f".attempt{attempt}", write_to_disk=True)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()
        if self._temporary is not None:
            with storage.tolerate_trouble():  # the next sync copies the whole files again
                for path in self._folder.iterdir():
                    storage.upload(path, storage.join(self._target, path.name))

    def close(self) -> None:
        self._writer.close()
        self.sync()
        if self._temporary is not None:
            self._temporary.cleanup()
