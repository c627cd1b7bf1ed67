"""Reaching a daemon: none there, something left over, a token that is missing or wrong."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kvnet.paths import MAX_SOCKET_PATH_NBYTES, Home
from kvnet.v1 import control_pb2, control_pb2_grpc
from tests.e2e.daemons import Daemon, Kvnet, MakeHome, Pair
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
    with grpc.insecure_channel(f"unix:{pair.alice.home.socket}") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Status(control_pb2.StatusRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


NOBODY = 65534
# Becomes another user, once all is imported that only root may read; says what it could do. Knows no kvnet.
_AS_ANOTHER_USER = """
import grpc, json, os, socket, sys
user, path, token, *methods = sys.argv[1:]
channel = grpc.insecure_channel("unix:" + path)  # connects at the first call
os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
said = {"user": os.geteuid()}
try:
    socket.socket(socket.AF_UNIX).connect(path)
except OSError as refused:
    said["socket"] = type(refused).__name__
try:
    open(token).close()
except OSError as refused:
    said["token"] = type(refused).__name__
for method in methods:
    try:
        channel.unary_unary(method)(b"", timeout=20)
    except grpc.RpcError as refused:
        said[method] = refused.code().name
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def careless() -> Iterator[Daemon]:
    """A daemon under umask 000, in a folder that everybody may enter."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    folder.chmod(0o755)
    daemon = Daemon(folder / "home", "careless", inside=("sh", "-c", 'umask 000; exec "$0" "$@"'))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(folder)


@pytest.mark.parametrize("opened", ["nothing", "home", "run", "socket"])
def test_another_user_is_refused_by_every_layer_of_its_own(careless: Daemon, opened: str) -> None:
    home = careless.home
    layers = {"home": home.root, "run": home.run, "socket": home.socket}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in layers.values()}
    wide = list(layers)[: list(layers).index(opened) + 1] if opened in layers else []
    service = control_pb2.DESCRIPTOR.services_by_name["Control"]
    methods = [f"/{service.full_name}/{method.name}" for method in service.methods]
    try:
        for name in wide:
            layers[name].chmod(0o777)
        arguments = [str(NOBODY), str(home.socket), str(home.token), *methods]
        command = [sys.executable, "-c", _AS_ANOTHER_USER, *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    said = json.loads(done.stdout)
    assert said.pop("user") == NOBODY
    assert said.pop("token") == "PermissionError"
    if opened == "socket":
        assert said == dict.fromkeys(methods, "UNAUTHENTICATED")
    else:
        assert said == {"socket": "PermissionError", **dict.fromkeys(methods, "UNAVAILABLE")}
