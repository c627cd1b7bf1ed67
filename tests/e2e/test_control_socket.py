"""Reaching a daemon: none there, something left over, a token that is missing or wrong."""

from __future__ import annotations

import stat

import grpc
import pytest

from kvnet.paths import MAX_SOCKET_PATH_NBYTES, Home
from tests.e2e.daemons import Kvnet, MakeHome, Pair
from tests.e2e.outcomes import assert_refused_both_ways

pytestmark = pytest.mark.usefixtures("pair_goes_on")


@pytest.mark.parametrize("arguments", [("status",), ("down",), ("ask", "Who?"), ("mem", "ls"), ("peers",)])
def test_without_a_daemon_every_command_says_so(
    home: MakeHome, run: Kvnet, arguments: tuple[str, ...]
) -> None:
    assert_refused_both_ways(run, home("nobody"), arguments, "not_running", 3)


def test_a_stale_socket_and_token_are_no_daemon(home: MakeHome, run: Kvnet, pair: Pair) -> None:
    left = Home(home("left"))
    left.run.mkdir(parents=True)
    left.token.write_text("left over", encoding="ascii")
    left.socket.touch()
    assert_refused_both_ways(run, left.root, ("status",), "not_running", 3)


@pytest.mark.parametrize("token", ["", "wrong", "with\nnewline", "ü"])
def test_a_wrong_control_token_is_refused(home: MakeHome, run: Kvnet, pair: Pair, token: str) -> None:
    thief = Home(home("thief"))
    thief.run.mkdir(parents=True)
    thief.token.write_text(token, encoding="utf-8")
    thief.socket.symlink_to(pair.alice.home.socket)
    for arguments in (("status",), ("ask", "Who?")):
        assert_refused_both_ways(run, thief.root, arguments, "not_running", 3)
        assert str(thief.token) in run(thief.root, *arguments).stderr or not token


def test_a_missing_control_token_is_no_daemon(home: MakeHome, run: Kvnet, pair: Pair) -> None:
    thief = Home(home("thief"))
    thief.run.mkdir(parents=True)
    thief.socket.symlink_to(pair.alice.home.socket)
    assert_refused_both_ways(run, thief.root, ("status",), "not_running", 3)


def test_socket_and_token_are_for_their_owner_alone(pair: Pair) -> None:
    home = pair.alice.home
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home.run, home.socket, home.token)}
    assert modes == {"run": 0o700, "control.sock": 0o600, "token": 0o600}


def test_a_too_long_home_is_refused_before_anything_is_made(home: MakeHome, run: Kvnet) -> None:
    deep = home("x" * MAX_SOCKET_PATH_NBYTES)
    for arguments in (("up",), ("status",)):
        assert_refused_both_ways(run, deep, arguments, "config_invalid", 3)
    assert not deep.exists()


def test_grpc_on_the_control_socket_without_a_token_is_refused(pair: Pair) -> None:
    from kvnet.v1 import control_pb2, control_pb2_grpc

    with grpc.insecure_channel(f"unix:{pair.alice.home.socket}") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Status(control_pb2.StatusRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
