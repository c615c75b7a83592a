"""Gloo listens where Ray reaches the node; what the user set stays."""

from __future__ import annotations

import os

import pytest

from cluster.runs import network


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "before")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


def test_the_interface_that_has_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "get_node_ip_address", lambda: "127.0.0.1")
    network.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_an_address_of_no_interface_leaves_the_choice_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a NAT, where Ray is told an outside address."""
    monkeypatch.setattr(network, "get_node_ip_address", lambda: "192.0.2.7")
    network.choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_a_setting_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    network.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_the_backend_is_ray_s_own_but_for_that() -> None:
    config = network.HostsTorchConfig(backend="gloo")
    assert config.to_dict()["backend"] == "gloo"
    assert issubclass(config.backend_cls, type(network.TorchConfig().backend_cls()))
