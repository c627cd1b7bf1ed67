"""What the doorman makes of an address; what he lets through is tested over real calls beside this."""

from __future__ import annotations

import pytest

from kvnet.transport.doorman import host_of


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:[fe80::1]:4711", "[fe80::1]"),
        ("unix:", "unix:"),
        ("unix:/run/kvnet", "unix:/run/kvnet"),
    ],
)
def test_host_is_the_address_without_kind_and_port(peer: str, host: str) -> None:
    assert host_of(peer) == host
