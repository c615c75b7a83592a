"""A run as a Ray job: what travels with it, and what its driver does there (``python -m cluster.jobs.job``)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cluster.jobs.code_version import code_version
from sharding.errors import UserError
from sharding.schema import Strict

#: The environment variable of the job that holds its :class:`JobSpec`. Never a secret: Ray shows it to whoever asks.
VARIABLE = "BOOSTLU_JOB"


class JobSpec(Strict):
    config: str
    """The configuration as resolved, YAML."""
    runs: str
    """Folder or URL that holds the runs, as the cluster sees it."""
    version: str
    """The code that submitted the job; see :func:`cluster.jobs.code_version.code_version`."""


def run_job(spec: JobSpec) -> None:
    """Start the run that ``spec`` describes, or go on with it where it was."""
    from cluster.cli.train import train

    if warning := check_version(spec.version, code_version()):
        print(f"warning: {warning}")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "submitted.yaml"
        config.write_text(spec.config)
        train(str(config), runs=spec.runs, address="auto", go_on=True)


def check_version(submitted: str, here: str) -> str | None:
    """Raise when the releases differ; return a warning when only the code of the same release does."""
    if submitted == here:
        return None
    if submitted.split("+")[0] != here.split("+")[0]:
        raise UserError(
            f"the job was submitted by boostlu {submitted}, the cluster has {here}",
            "give the cluster the image of that version, or send the code along: --working-dir DIR",
        )
    return f"the job was submitted by boostlu {submitted}, the cluster runs other code of that release: {here}"


def main() -> None:
    from cluster.cli.main import guarded

    guarded(lambda: run_job(JobSpec.model_validate_json(os.environ[VARIABLE])))


if __name__ == "__main__":
    main()
