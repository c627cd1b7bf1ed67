"""Which interfaces are chosen."""

from __future__ import annotations

from ipaddress import IPv4Interface

import pytest

from kvnet.discovery.interfaces import Link, choose_links, list_links
from kvnet.errors import ConfigError


def _link(name: str, *addresses: str, **changed: bool) -> Link:
    state = {"is_up": True, "has_carrier": True, "is_loopback": name == "lo", "does_multicast": name != "lo"}
    return Link(name, tuple(IPv4Interface(address) for address in addresses), **(state | changed))


_ETH = _link("eth0", "192.168.1.5/24", "192.168.1.6/24")
_LO = _link("lo", "127.0.0.1/8")
_VETH = _link("veth1a2b", "10.1.0.1/24")
_DOWN = _link("eth1", "192.168.2.5/24", is_up=False)
_BARE = _link("wlan0")
_LINKS = (_BARE, _DOWN, _ETH, _LO, _VETH)


@pytest.mark.parametrize(
    "name", ["docker0", "br-12ab", "virbr0", "veth1", "tun0", "tap0", "wg0", "tailscale0", "ztabc", "lo"]
)
def test_containers_bridges_tunnels_and_loopback_are_not_used_unless_named(name: str) -> None:
    links = (_ETH, _link(name, "10.1.0.1/24"))
    assert choose_links(links, None) == (_ETH,)
    assert [link.name for link in choose_links(links, (name,))] == [name]


def test_the_default_is_every_interface_that_is_up_addressed_and_multicast() -> None:
    unicast = _link("ib0", "10.2.0.1/24", does_multicast=False)
    assert choose_links((*_LINKS, unicast), None) == (_ETH,)
    assert choose_links((_LO,), None) == ()


def test_an_interface_can_be_named_by_its_address_and_then_has_only_that() -> None:
    (chosen,) = choose_links(_LINKS, ("192.168.1.6",))
    assert chosen.name == "eth0"
    assert [str(ip.ip) for ip in chosen.addresses] == ["192.168.1.6"]
    assert choose_links(_LINKS, ("192.168.1.6", "eth0")) == (_ETH,)


def test_a_named_interface_that_is_down_or_bare_is_waited_for() -> None:
    assert choose_links(_LINKS, ("eth1", "wlan0")) == ()


@pytest.mark.parametrize("unknown", ["eth9", "10.9.9.9", "fe80::1", ""])
def test_an_unknown_interface_is_a_config_error_that_lists_what_exists(unknown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_links(_LINKS, ("eth0", unknown))
    assert repr(unknown) in caught.value.message
    assert "eth0 (192.168.1.5, 192.168.1.6); lo (127.0.0.1)" in caught.value.message
    assert choose_links(_LINKS, ("eth0", unknown), must_exist=False) == (_ETH,)


def test_this_machine_has_a_loopback() -> None:
    loopbacks = [link for link in list_links() if link.is_loopback]
    assert any(ip.is_loopback for link in loopbacks for ip in link.addresses)
    assert all(link.is_up for link in loopbacks)
