"""What tests of the command line share."""

from __future__ import annotations

import pytest

from cluster.cli import train as command


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs of the runs that would have been driven."""
    urls: list[str] = []
    monkeypatch.setattr(command, "run_and_print", lambda registry, *_: urls.append(registry.url))
    return urls
