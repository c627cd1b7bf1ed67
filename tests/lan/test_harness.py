"""The LAN in a box is limited, faulty and clean when it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lan.harness import Lan, require_lan, stop

pytestmark = [pytest.mark.lan, pytest.mark.timeout(60)]

_PROXY = str(Path(__file__).with_name("proxy.py"))
_PAYLOAD_NBYTES = 800_000


def test_a_rate_limit_holds_and_can_be_lifted(lan: Lan) -> None:
    # 0.8 MB take 0.6 s at 10 Mbit/s, and next to nothing without the limit.
    left, right = lan.nodes
    port = _serve(lan, left)
    lan.limit_rate(left, 10)
    assert _fetch(lan, right, lan.address(left), port)[1] > 0.4
    lan.unlimit_rate(left)
    assert _fetch(lan, right, lan.address(left), port)[1] < 0.4


def test_dropped_packets_slow_tcp_down_and_lose_nothing(lan: Lan) -> None:
    left, right = lan.nodes
    port = _serve(lan, left)
    lan.drop_packets(right, 0.05)
    num_received, _ = _fetch(lan, right, lan.address(left), port)
    assert num_received == _PAYLOAD_NBYTES
    lan.keep_packets(right)
    dropped = lan.run(right, ["nft", "list", "tables"])
    assert "kvlan" not in dropped.stdout


def test_a_proxy_inside_a_node_cuts_the_first_connection_only(lan: Lan) -> None:
    left, right = lan.nodes
    port = _serve(lan, left)
    options = '{"to_client": {"cut_after_nbytes": 100000}, "num_faulty": 1}'
    proxy = lan.popen(right, [sys.executable, _PROXY, lan.address(left), port, "127.0.0.1", options])
    assert proxy.stdout is not None
    proxy_port = proxy.stdout.readline().strip()
    assert _fetch(lan, right, "127.0.0.1", proxy_port)[0] <= 100_000
    assert _fetch(lan, right, "127.0.0.1", proxy_port)[0] == _PAYLOAD_NBYTES
    assert stop(proxy) == 0


def test_closing_kills_what_runs_inside_and_removes_the_namespaces() -> None:
    require_lan()
    with Lan(3) as lan:
        child = lan.popen(lan.nodes[2], ["sh", "-c", "sleep 600 & echo started; wait"])
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        pids = [
            int(pid) for pid in lan.run(lan.nodes[2], ["ip", "netns", "pids", lan.nodes[2]]).stdout.split()
        ]
        assert len(pids) >= 2
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not [node for node in lan.nodes if node in left]
    assert child.poll() is not None


def _serve(lan: Lan, node: str) -> str:
    server = lan.popen(node, [sys.executable, "-c", _SERVE_BYTES, lan.address(node), str(_PAYLOAD_NBYTES)])
    assert server.stdout is not None
    return server.stdout.readline().strip()


def _fetch(lan: Lan, node: str, address: str, port: str) -> tuple[int, float]:
    """Returns the bytes received and the seconds it took."""
    done = lan.run(node, [sys.executable, "-c", _FETCH_BYTES, address, port], timeout_s=40)
    assert done.returncode == 0, done.stderr
    num_received, seconds = done.stdout.split()
    return int(num_received), float(seconds)


_SERVE_BYTES = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        with server.accept()[0] as connection:
            try:
                connection.sendall(bytes(int(sys.argv[2])))
            except ConnectionError:
                pass
"""
_FETCH_BYTES = """
import socket, sys, time
start, total = time.monotonic(), 0
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    try:
        while chunk := connection.recv(65536):
            total += len(chunk)
    except ConnectionError:
        pass
print(total, time.monotonic() - start)
"""
