"""The dashboard of a Ray cluster: the HTTP door by which jobs come in from outside.

Every failure to get through it is told at once and by its reason: Ray's own client waits for minutes where nobody
answers.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sharding.errors import UserError

DEFAULT_URL = "http://127.0.0.1:8265"
#: A dashboard that does not answer within this time counts as absent.
TIMEOUT_SECONDS = 10.0

_TOKEN_REMEDY = "put the cluster's token into the environment (RAY_AUTH_TOKEN) or name its file (RAY_AUTH_TOKEN_PATH)"  # noqa: S105


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that answered; ``headers`` carry the token where there is one and are never shown."""

    url: str
    headers: dict[str, str]
    ray_version: str

    def __repr__(self) -> str:
        return f"Dashboard({self.url!r})"

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``."""
        return _get(self.url, path, self.headers)


def open_dashboard(address: str) -> Dashboard:
    """Reach the dashboard at ``address`` (``http://HOST:8265``, or only ``HOST:8265``) and compare Ray's versions."""
    import ray

    url = dashboard_url(address)
    token = read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    there = _get(url, "/api/version", headers)
    running = str(there.get("ray_version", "")) if isinstance(there, dict) else ""
    if not running:
        raise UserError(
            f"{url} is not the dashboard of a Ray cluster", "its port is 8265 unless the head says otherwise"
        )
    if running != ray.__version__:
        raise UserError(
            f"the cluster at {url} runs Ray {running}, this machine has Ray {ray.__version__}",
            f"install the cluster's version here: pip install 'ray[default,train]=={running}'",
        )
    return Dashboard(url, headers, running)


def dashboard_url(address: str) -> str:
    """Return ``address`` as an http(s) URL without a path; says so when it is of another kind."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or address == "auto":
        raise UserError(
            f"--address {address!r} is not a dashboard's URL", f"jobs go to the dashboard, for example {DEFAULT_URL}"
        )
    if parts.username or parts.password:
        raise UserError("--address holds a user name or password", _TOKEN_REMEDY)
    return f"{parts.scheme}://{parts.netloc}"


def read_token() -> str | None:
    """Return the cluster's token from where Ray looks for it, or None; it is never an argument or a setting."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None
    except OSError as error:
        if named:
            raise UserError(
                f"cannot read RAY_AUTH_TOKEN_PATH={named}: {error.strerror}", "name a readable file"
            ) from error
        return None


def _get(url: str, path: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url + path, headers=headers)  # noqa: S310 — http(s) only, see dashboard_url
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            raise UserError(f"the cluster at {url} wants a token and none was found", _TOKEN_REMEDY) from None
        if error.code == 403:
            raise UserError(f"the cluster at {url} refuses the token", _TOKEN_REMEDY) from None
        raise UserError(
            f"{url}{path} answers {error.code} {error.reason}", "is it the dashboard of a Ray cluster?"
        ) from None
    except json.JSONDecodeError:
        raise UserError(
            f"{url} is not the dashboard of a Ray cluster", "its port is 8265 unless the head says otherwise"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no Ray cluster answers at {url}: {reason}",
            "check host and port, or open a tunnel: ssh -L 8265:127.0.0.1:8265 HEAD",
        ) from None
