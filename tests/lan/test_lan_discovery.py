"""Two nodes in namespaces of their own find, lose and find each other again by mDNS."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.lan.harness import Lan, Output, stop

pytestmark = [pytest.mark.lan, pytest.mark.timeout(60)]

_NODE = str(Path(__file__).with_name("discovery_node.py"))
_LEFT, _RIGHT = "a" * 13, "b" * 13
_DEFAULT_TTL_S = "120"
_SHORT_TTL_S = "2"
_FOUND_S = 5.0


class _Node:
    """A running discovery_node.py and what it printed."""

    def __init__(self, lan: Lan, namespace: str, short_id: str, ttl_s: str = _DEFAULT_TTL_S) -> None:
        self.process = lan.popen(namespace, [sys.executable, _NODE, short_id, ttl_s])
        self.output = Output(self.process)
        self._read_up_to = self.output.wait_for(lambda line: "started" in line, 20)

    def expect(self, event: str, short_id: str, timeout_s: float, address: str | None = None) -> None:
        def matches(line: str) -> bool:
            found = json.loads(line)
            first = (found.get("addresses") or [None])[0]
            return found["event"] == event and found["id"] == short_id and address in (None, first)

        self._read_up_to = self.output.wait_for(matches, timeout_s, after=self._read_up_to)


@pytest.fixture
def pair(lan: Lan) -> tuple[_Node, _Node]:
    """Two nodes with short-lived adverts that have found each other."""
    left = _Node(lan, lan.nodes[0], _LEFT, _SHORT_TTL_S)
    right = _Node(lan, lan.nodes[1], _RIGHT, _SHORT_TTL_S)
    left.expect("seen", _RIGHT, _FOUND_S, lan.address(lan.nodes[1]))
    right.expect("seen", _LEFT, _FOUND_S, lan.address(lan.nodes[0]))
    return left, right


def test_nodes_find_each_other_and_notice_a_clean_leave(lan: Lan) -> None:
    assert all(lan.has_multicast_route(node) for node in lan.nodes)
    # A container bridge beside the LAN: neither used nor advertised.
    for argv in (
        ["ip", "link", "add", "docker0", "type", "bridge"],
        ["ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"],
        ["ip", "link", "set", "docker0", "up"],
    ):
        assert lan.run(lan.nodes[0], argv).returncode == 0
    left = _Node(lan, lan.nodes[0], _LEFT)
    right = _Node(lan, lan.nodes[1], _RIGHT)
    assert json.loads(left.output.lines[0])["links"] == ["eth0"]
    left.expect("seen", _RIGHT, _FOUND_S, lan.address(lan.nodes[1]))
    right.expect("seen", _LEFT, _FOUND_S, lan.address(lan.nodes[0]))
    assert json.loads(right.output.lines[1])["addresses"] == [lan.address(lan.nodes[0])]
    assert stop(right.process) == 0
    left.expect("lost", _RIGHT, _FOUND_S)


def test_a_killed_node_is_lost_when_its_advert_runs_out_and_found_when_it_returns(
    lan: Lan, pair: tuple[_Node, _Node]
) -> None:
    left, right = pair
    stop(right.process, signal.SIGKILL)
    left.expect("lost", _RIGHT, float(_SHORT_TTL_S) + 2)
    again = _Node(lan, lan.nodes[1], _RIGHT, _SHORT_TTL_S)
    left.expect("seen", _RIGHT, _FOUND_S)
    again.expect("seen", _LEFT, _FOUND_S)


@pytest.mark.parametrize("fault", ["link_down", "unplug", "isolate"])
def test_nodes_find_each_other_again_after_a_partition(
    lan: Lan, pair: tuple[_Node, _Node], fault: str
) -> None:
    heal = {"link_down": lan.link_up, "unplug": lan.plug, "isolate": lan.rejoin}[fault]
    left, right = pair
    getattr(lan, fault)(lan.nodes[1])
    left.expect("lost", _RIGHT, float(_SHORT_TTL_S) + 2)
    right.expect("lost", _LEFT, float(_SHORT_TTL_S) + 2)
    heal(lan.nodes[1])
    left.expect("seen", _RIGHT, _FOUND_S)
    right.expect("seen", _LEFT, _FOUND_S)


def test_a_changed_address_is_noticed(lan: Lan) -> None:
    left = _Node(lan, lan.nodes[0], _LEFT)
    right = _Node(lan, lan.nodes[1], _RIGHT)
    left.expect("seen", _RIGHT, _FOUND_S)
    right.expect("seen", _LEFT, _FOUND_S)
    new = lan.change_address(lan.nodes[1], 33)
    left.expect("seen", _RIGHT, _FOUND_S, new)


def test_nodes_find_each_other_while_a_third_of_the_packets_is_lost(lan: Lan) -> None:
    lan.drop_packets(lan.nodes[1], 0.33)
    left = _Node(lan, lan.nodes[0], _LEFT, _SHORT_TTL_S)
    right = _Node(lan, lan.nodes[1], _RIGHT, _SHORT_TTL_S)
    left.expect("seen", _RIGHT, 3 * _FOUND_S)
    right.expect("seen", _LEFT, 3 * _FOUND_S)
