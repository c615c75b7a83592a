"""When a cluster's head counts as lost: a real socket, and a clock of its own."""

from __future__ import annotations

import socket

import pytest

from cluster.runs.head import GIVE_UP_SECONDS, Head, HeadLost


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def listening(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def test_a_head_that_goes_and_comes_back_and_goes_for_good() -> None:
    clock, said = Clock(), list[str]()
    server = listening()
    port = server.getsockname()[1]
    head = Head(f"127.0.0.1:{port}", said.append, clock)
    clock.now += 100
    assert head.answers()
    server.close()
    clock.now += 100  # nobody looked for long: its absence counts from now on
    assert not head.answers()
    assert said == []
    clock.now += 6
    assert not head.answers()
    assert not head.answers()
    assert said == [f"the cluster's head at 127.0.0.1:{port} does not answer"]
    with listening(port):
        clock.now += 1.5
        assert head.answers()
    assert said[1:] == [f"the cluster's head at 127.0.0.1:{port} answers again"]
    clock.now += 1.5
    assert not head.answers()
    clock.now += GIVE_UP_SECONDS - 1
    assert not head.answers()
    clock.now += 2
    with pytest.raises(HeadLost, match=r"has not answered for 31 s.*`boostlu resume`"):
        head.answers()


def test_an_ipv6_address() -> None:
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with server:
        clock = Clock()
        head = Head(f"[::1]:{server.getsockname()[1]}", print, clock)
        clock.now += 2
        assert head.answers()
