"""The `lan` fixture: two nodes on one switch, gone when the test ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lan.harness import Lan, require_lan


@pytest.fixture
def lan() -> Iterator[Lan]:
    """Two nodes; skips where network namespaces cannot be made."""
    require_lan()
    with Lan(2) as built:
        yield built
