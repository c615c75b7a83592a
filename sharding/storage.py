"""Files at any fsspec URL: local folders, ``s3://``, ``gs://``, ``memory://`` and the rest behave alike.

Everything that must survive a crash is written through :func:`write_atomic`: readers see the old content or
the new, never a part of it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import UserError

#: Packages under fsspec whose errors are no OSError: an S3 endpoint that cannot be reached is a botocore exception.
_CLIENTS = {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "urllib3"}


def is_trouble(error: BaseException) -> bool:
    """Whether ``error`` comes from storage that fails, perhaps for a while only, not from a mistake in the code."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS


@contextmanager
def tolerate_trouble() -> Iterator[None]:
    """Go on when storage fails in the block: for what will be tried again anyway."""
    try:
        yield
    except Exception as error:
        if not is_trouble(error):
            raise


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of ``url`` and the path within it; an unknown scheme is a :class:`UserError`."""
    try:
        # A remembered listing would hide what other hosts write later, from reads as well as from listings.
        return url_to_fs(str(url), use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {url}: {error}", "install the fsspec driver for that scheme") from error


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def local_path(url: str) -> Path:
    """Return the path of a local ``url`` (with or without ``file://``)."""
    return Path(filesystem(url)[1])


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL or a local path."""
    return "/".join([str(url).rstrip("/"), *(part.strip("/") for part in parts)])


def locate(root: str, name: str) -> str:
    """Return where ``name`` is: below ``root``, unless it is an absolute path or a URL."""
    return name if "://" in name or name.startswith("/") else join(root, name)


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def size(url: str) -> int:
    """Return a file's size in bytes; :class:`FileNotFoundError` when it is not there."""
    fs, path = filesystem(url)
    return int(fs.info(path)["size"])


def open_file(url: str, mode: str = "rb", **options: Any) -> IO[Any]:
    """Open a file for reading or plain (non-atomic) writing; parent folders are made on writing."""
    fs, path = filesystem(url)
    if "r" not in mode:
        fs.makedirs(fs._parent(path), exist_ok=True)
    return fs.open(path, mode, **options)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return ``size`` bytes from ``offset``."""
    fs, path = filesystem(url)
    return fs.cat_file(path, start=offset, end=offset + size)


def read_json(url: str) -> Any:
    """Parse a JSON file; damaged JSON is a :class:`UserError` that names the file."""
    try:
        return json.loads(read_bytes(url))
    except json.JSONDecodeError as error:
        raise UserError(f"{url} is not valid JSON: {error}", "the file is damaged; restore or rebuild it") from error


def write_atomic(url: str, content: bytes) -> None:
    """Write ``content`` so that a reader, or a crash, sees all of it or none of it.

    Locally: temporary file in the same folder, fsync, rename. Object stores publish an object only when its
    upload is complete, so there a plain write is already atomic.
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(url: str, value: Any) -> None:
    """Write ``value`` as readable, key-ordered JSON, atomically."""
    write_atomic(url, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def create_exclusive(url: str, content: bytes) -> bool:
    """Create a file only if it does not exist; return whether this call created it.

    Exact on local file systems (hard link of a complete file) and on stores that honour ``mode="create"``.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        temporary.write_bytes(content)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True
    try:
        fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    return True


def upload(local: Path, url: str) -> None:
    """Copy a finished local file to ``url``; a local target appears under its name only when it is complete."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.put_file(str(local), path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        fs.cp_file(str(local), str(temporary))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def list_names(url: str) -> list[str]:
    """Return the names directly below a folder, sorted; an absent folder is empty. Temporary files are hidden."""
    fs, path = filesystem(url)
    try:
        found = (
            fs.ls(path, detail=False, refresh=True)
            if not isinstance(fs, LocalFileSystem)
            else fs.ls(path, detail=False)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in found}
    return sorted(name for name in names if name and not name.startswith("."))


def remove(url: str) -> None:
    """Delete a file or a whole folder; absent is fine."""
    fs, path = filesystem(url)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return
