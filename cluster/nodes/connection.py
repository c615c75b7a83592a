"""Joining a Ray cluster from one of its nodes: what can be wrong, said at once and by its reason."""

from __future__ import annotations

import os
import re
import socket

from sharding.errors import UserError

#: A head that does not accept a connection within this time counts as absent; Ray itself tries for minutes.
TIMEOUT_SECONDS = 5.0

_KEEP_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_ADDRESS_REMEDY = "give HOST:PORT of the head (port 6379 unless it was started with another), or auto on a node of it"
_TOKEN_REMEDY = "every node and every driver needs the same token: RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH"  # noqa: S105


def reach(address: str) -> None:
    """Check that something listens at ``address``; ``auto`` is left to Ray. Raises :class:`UserError`."""
    if address in ("auto", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address} is a dashboard, this command joins the cluster itself",
            f"{_ADDRESS_REMEDY}; through the dashboard, use `boostlu submit`",
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UserError(f"--address {address!r} is not HOST:PORT", _ADDRESS_REMEDY)
    host = host.strip("[]")
    _listens(address, host, int(port), _ADDRESS_REMEDY)
    if (elsewhere := _instead_of(host)) != host:
        remedy = f"start the head without --node-ip-address {host}, or set {_KEEP_LOOPBACK}=0 here"
        _listens(f"{elsewhere}:{port}, which Ray takes {address} to be", elsewhere, int(port), remedy)


def _listens(name: str, host: str, port: int, remedy: str) -> None:
    try:
        socket.create_connection((host, port), TIMEOUT_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {name}: {error.strerror or error}", remedy) from None


def _instead_of(host: str) -> str:
    """Return where Ray connects when it is told ``host``: for loopback, this machine's outside address."""
    if host not in ("127.0.0.1", "localhost", "::1") or os.environ.get(_KEEP_LOOPBACK) == "0":
        return host
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def explain(error: Exception, address: str | None) -> UserError:
    """Return what Ray's ``error`` on joining the cluster at ``address`` means."""
    text = str(error)
    where = f"the cluster at {address}" if address else "a private Ray cluster"
    if "ersion mismatch" in text:
        there, here = (_versions(part) for part in (text.split("This process")[0], text.split("This process")[-1]))
        return UserError(
            f"{where} runs {there}, this machine {here}", "use the same versions, best the same image, everywhere"
        )
    if "token" in text.lower() or "uthenticat" in text:
        return UserError(f"{where} refuses this process: its token is missing or wrong", _TOKEN_REMEDY)
    if "timed out during startup" in text:
        return UserError(f"{where} was not up in time", "the machine is very busy: try again when it is less so")
    first = next(iter(text.strip().splitlines()), type(error).__name__)
    return UserError(f"cannot connect to {where}: {first}", _ADDRESS_REMEDY if address else "see the reason")


def _versions(text: str) -> str:
    found = dict(re.findall(r"(Ray|Python): (\S+)", text))
    return ", ".join(f"{name} {number}" for name, number in found.items()) or "another version"
