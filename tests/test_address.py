"""HOST:PORT is what a resolver and a socket will take, and anything else is a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kvnet.address import join_address, parse_address
from kvnet.errors import RequestError, StateCorrupt
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.transport.security import who_answers
from tests.builders import STRANGER

NONE = [
    "",
    "nonsense",
    "host:",
    ":7447",
    "host:0",
    "host:65536",
    "host:²",
    "host:٣",
    "host:-1",
    "host:+1",
    "host:1_0",
    "host:" + "9" * 600,
    "a..b:1",
    ".a:1",
    "a" * 70 + ":1",
    "a\0b:1",
    "a b:1",
    "a/b:1",
    "http://a:1",
    "[]:1",
]


@pytest.mark.parametrize("address", NONE)
async def test_what_nobody_could_dial_is_refused_in_a_sentence(address: str) -> None:
    with pytest.raises(RequestError, match="not HOST:PORT"):
        parse_address(address)
    with pytest.raises(RequestError, match="not HOST:PORT"):
        await who_answers(address)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("192.168.1.20:7447", "192.168.1.20", 7447),
        ("box.local:1", "box.local", 1),
        ("büro.local:65535", "büro.local", 65535),
        ("[fe80::1%eth0]:7447", "fe80::1%eth0", 7447),
    ],
)
def test_address_is_taken_apart_and_put_together(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize("address", [one for one in NONE if one])
def test_peer_list_neither_keeps_nor_loads_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    peer = AddedPeer(STRANGER.node_id, "carol", address, "")
    with pytest.raises(RequestError, match="not HOST:PORT"):
        PeerList(tmp_path / "peers.json").add(peer)
    path = tmp_path / "by hand.json"
    path.write_text(json.dumps({"version": 3, "peers": [asdict(peer)]}))
    path.chmod(0o600)
    with pytest.raises(StateCorrupt, match="not HOST:PORT"):
        PeerList(path)
