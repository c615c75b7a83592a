"""Which code this process runs: the release, and a digest of the project's own files."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: The packages whose files make a run what it is.
PACKAGES = ("sharding", "trainer", "cluster")


@cache
def code_version() -> str:
    """Return ``RELEASE+DIGEST``, such as ``0.1.0+5c2e9a41``: equal where a run would do the same."""
    try:
        release = version("boostlu")
    except PackageNotFoundError:  # a source tree that was never installed
        release = "0"
    return f"{release}+{digest(Path(__file__).resolve().parents[2])}"


def digest(root: Path) -> str:
    """Return eight hexadecimal digits over names and content of the Python files of the packages below ``root``."""
    found = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:8]
