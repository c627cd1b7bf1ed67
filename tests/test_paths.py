"""Where a node keeps its things."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnet.errors import ConfigError
from kvnet.paths import MAX_SOCKET_PATH_NBYTES, Home, find_home


def test_kvnet_home_decides_and_becomes_absolute() -> None:
    assert find_home({"KVNET_HOME": "/somewhere"}).root == Path("/somewhere")
    assert find_home({"KVNET_HOME": "beside"}).root == Path.cwd() / "beside"
    assert find_home({"KVNET_HOME": "~/node"}).root == Path.home() / "node"


@pytest.mark.parametrize("environ", [{}, {"KVNET_HOME": ""}])
def test_without_it_the_platform_decides(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert find_home(environ).root == Path("/data/kvnet")


def test_home_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="KVNET_HOME"):
        find_home({"KVNET_HOME": "~no-such-user-here/node"})


def test_everything_lies_under_the_root_and_nothing_twice() -> None:
    home = Home(Path("/r"))
    names = [name for name, member in vars(Home).items() if isinstance(member, property)]
    places = [getattr(home, name) for name in names]
    assert len(set(places)) == len(names) >= 11
    assert all(place.is_relative_to(home.root) for place in places)
    assert {home.socket.parent, home.token.parent, home.lock.parent} == {home.run}


def test_socket_path_that_the_kernel_cannot_bind_is_refused() -> None:
    longest = MAX_SOCKET_PATH_NBYTES - len("/run/control.sock")
    Home(Path("/" + "h" * (longest - 1))).check()
    with pytest.raises(ConfigError, match="KVNET_HOME"):
        Home(Path("/" + "h" * longest)).check()


def test_socket_path_is_counted_in_bytes_not_characters() -> None:
    with pytest.raises(ConfigError):
        Home(Path("/" + "é" * 50)).check()
