"""Runs as jobs of a Ray cluster, seen from outside: submit, find, follow, stop."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.jobs.code_package import package
from cluster.jobs.dashboard import Dashboard
from cluster.jobs.job import VARIABLE, JobSpec
from sharding.errors import UserError, did_you_mean

ENTRYPOINT = "exec python -m cluster.jobs.job"
#: How long a stopped job may take to reach a checkpoint before Ray kills it; Ray's own default is 3 seconds.
STOP_SECONDS = 600

#: A head that has just been started takes jobs only after a while; so long it is asked again.
AGENT_SECONDS = 60

_SEE = "`boostlu jobs list` shows what is there, `boostlu cluster status` whether the cluster is well"
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Job:
    """One job of one run. ``status`` is Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. Times in seconds."""

    id: str
    run: str
    runs: str
    status: str
    started: float
    ended: float | None
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in _ENDED


class Jobs:
    """The jobs of the cluster behind ``dashboard`` that this project submitted."""

    def __init__(self, dashboard: Dashboard) -> None:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        # Ray would let these two override the address that it is given.
        names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
        saved = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            self._client = JobSubmissionClient(dashboard.url, headers=dict(dashboard.headers))
        finally:
            os.environ.update(saved)

    def list(self) -> list[Job]:
        """Return the jobs, oldest first."""
        submitted = [details for details in self._client.list_jobs() if details.submission_id]
        found = [_job(details) for details in submitted if "boostlu_run" in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started)

    def newest(self, run: str) -> Job:
        """Return the newest job of ``run``; names the nearest run when there is none."""
        jobs = self.list()
        mine = [job for job in jobs if job.run == run]
        if not mine:
            raise UserError(f"the cluster knows no job of a run {run!r}", did_you_mean(run, {j.run for j in jobs}))
        return mine[-1]

    def submit(self, run: str, spec: JobSpec, working_dir: str | None = None) -> str:
        """Submit a job for ``run`` and return its id; refused while another job of that name is at work."""
        submission = next_id(run, self.list())
        environment = {VARIABLE: spec.model_dump_json(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        runtime: dict[str, Any] = {"env_vars": environment}
        with tempfile.TemporaryDirectory() as folder:
            if working_dir is not None:
                target = Path(folder) / "code.zip"
                package(working_dir, target)
                runtime["working_dir"] = str(target)
            return self._send(run, submission, spec, runtime)

    def _send(self, run: str, submission: str, spec: JobSpec, runtime: dict[str, Any]) -> str:
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=ENTRYPOINT,
                    submission_id=submission,
                    runtime_env=dict(runtime),
                    metadata={"boostlu_run": run, "boostlu_runs": spec.runs, "boostlu_version": spec.version},
                )
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise UserError(f"the cluster refuses job {submission}: {_last_line(error)}", _SEE) from error
                time.sleep(1.0)

    def logs(self, job: Job) -> str:
        return self._client.get_job_logs(job.id)

    def follow(self, job: Job) -> AsyncIterator[str]:
        """Return pieces of the job's output as it grows, until the job is over."""
        return self._client.tail_job_logs(job.id)

    def stop(self, job: Job) -> None:
        """Ask the job's driver to stop at a checkpoint; it is killed when that takes :data:`STOP_SECONDS`."""
        self._client.stop_job(job.id)

    def wait(self, job: Job, seconds: float) -> Job:
        """Return the job as it is once it is over, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            now = _job(self._client.get_job_info(job.id))
            if now.is_over or time.monotonic() > deadline:
                return now
            time.sleep(0.5)


def next_id(run: str, jobs: Iterable[Job]) -> str:
    """Return the id for the next job of ``run``: its name, with a number once one was used up.

    Raises :class:`UserError` while a job of that run is waiting or running.
    """
    mine = [job for job in jobs if job.run == run]
    for job in mine:
        if not job.is_over:
            raise UserError(
                f"run {run!r} has a job on this cluster already: {job.id}, {job.status.lower()}, in {job.runs}",
                f"follow it with `boostlu jobs logs {run} --follow`, stop it with `boostlu jobs stop {run}`, "
                "or choose another name: name=...",
            )
    used = {job.id for job in mine}
    base = f"boostlu-{run}"
    numbers = [int(match[1]) for job_id in used if (match := re.fullmatch(re.escape(base) + r"-r(\d+)", job_id))]
    return base if base not in used and not numbers else f"{base}-r{max(numbers, default=1) + 1}"


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=str(details.submission_id),
        run=metadata.get("boostlu_run", ""),
        runs=metadata.get("boostlu_runs", ""),
        status=str(getattr(details.status, "value", details.status)),
        started=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        message=details.message or "",
    )


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
