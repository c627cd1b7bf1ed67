"""Two nodes on one switch, gone when the test ends; two daemons for all tests of faults and attackers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lan.harness import Lan, require_lan
from tests.lan.scene import Scene, play

pytest.register_assert_rewrite("tests.lan.outcomes")


@pytest.fixture
def lan() -> Iterator[Lan]:
    """Two nodes; skips where network namespaces cannot be made."""
    require_lan()
    with Lan(2) as built:
        yield built


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    """alice and bob on a LAN; a test that changes either, or the LAN, leaves them as it found them."""
    require_lan()
    with play() as played:
        yield played
