"""The folder that travels with a job: code and small files, never data, runs or local environments."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sharding.errors import UserError

#: Ray refuses uploads of 100 MB; code is far smaller, and what is larger belongs into the image or onto the storage.
MAX_BYTES = 50_000_000

#: Folders that are never code.
_SKIPPED = {"__pycache__", "node_modules", "build", "dist"}
#: Files of datasets and checkpoints, also where they lie about.
_DATA = {".tar", ".parquet", ".safetensors", ".pyc"}
#: A folder that holds one of these is a dataset, a run, or a Python environment.
_MARKS = ("dataset.json", "run.json", "pyvenv.cfg")


def package(folder: str, target: Path) -> tuple[int, int]:
    """Zip ``folder`` to ``target``; return how many files and bytes it holds. The same files give the same zip.

    Left out: hidden files and folders, links, caches, and every folder that is a dataset, a run or an environment.
    Raises :class:`UserError` when the folder is absent, or too large: then it names the largest entries.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--working-dir {folder} is no folder", "name the folder that holds the code")
    sizes = {path: path.stat().st_size for path in sorted(files(root))}
    if not sizes:
        raise UserError(f"--working-dir {folder} holds nothing to send", "name the folder that holds the code")
    _check_size(root, sizes)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sizes:
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(entry, path.read_bytes())
    return len(sizes), sum(sizes.values())


def files(root: Path) -> Iterator[Path]:
    """Yield the files below ``root`` that travel."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if here != root and any(mark in names for mark in _MARKS):
            folders.clear()
            continue
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for name in names:
            path = here / name
            if name.startswith(".") or path.suffix in _DATA or path.is_symlink():
                continue
            if path.is_file():
                yield path


def _check_size(root: Path, sizes: dict[Path, int]) -> None:
    total = sum(sizes.values())
    if total <= MAX_BYTES:
        return
    entries: Counter[str] = Counter()
    for path, size in sizes.items():
        parts = path.relative_to(root).parts
        entries[parts[0] + ("/" if len(parts) > 1 else "")] += size
    largest = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in entries.most_common(3))
    raise UserError(
        f"--working-dir {root} has {total / 1e6:.0f} MB to send, at most {MAX_BYTES / 1e6:.0f} MB may travel "
        f"with a job; largest: {largest}",
        "put data and weights on storage that the cluster reaches, or name a smaller folder",
    )
