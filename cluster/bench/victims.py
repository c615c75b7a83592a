"""The processes of a running job, and ways to damage what it leaves: what fault injection aims at."""

from __future__ import annotations

import random
from pathlib import Path

import psutil

from trainer.run.registry import RunRegistry


def family_of(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, the process last."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def named(family: list[psutil.Process], title: str) -> list[psutil.Process]:
    """Return the processes whose title Ray has set to something with ``title``."""
    found = []
    for process in family:
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL processes and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=60)


def damage_newest_checkpoint(registry: RunRegistry, rng: random.Random, how: str) -> str | None:
    """Cut short (``torn``) or alter by one bit (``flipped``) a file of the newest checkpoint on a local disk, or cut
    its manifest short (``manifest``); return the file's path, None when there is no checkpoint."""
    checkpoints = registry.checkpoints()
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    file = "manifest.json" if how == "manifest" else rng.choice(sorted(newest.files))
    path = Path(registry.path("checkpoints", newest.name, file))
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    path.write_bytes(content)
    return str(path)


def tear_attempt_record(registry: RunRegistry, rng: random.Random) -> str | None:
    """Cut short what the registry knows of an attempt on a local disk; return the file's path, None without any."""
    paths = sorted(Path(registry.path("attempts")).glob("*.json"))
    if not paths:
        return None
    path = rng.choice(paths)
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return str(path)
