"""Where commands print tables and texts: as they are.

Class names, paths and errors hold brackets and colons. Taken for markup they would be swallowed, or end the command
where one closes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def terminal(**options: Any) -> Console:
    """Return a console that prints text as it is; options are those of :class:`rich.console.Console`."""
    return Console(markup=False, emoji=False, **options)
