"""One memory for seven receivers at 100 Mbit/s each: what leaves the sender is measured at its interface."""

from __future__ import annotations

import pytest

from tests.lan.harness import require_lan
from tests.lan.many import Many, make_bytes

pytestmark = [pytest.mark.lan, pytest.mark.timeout(180)]

MEMORY_NBYTES = 8 << 20


def test_seven_receivers_cost_the_sender_less_than_two_and_a_half_uploads() -> None:
    require_lan()
    with Many(8, mbit=100.0, memories=[make_bytes(MEMORY_NBYTES, seed=1)]) as many:
        took = many.send(many.memories[0], many.names[1:])
        assert sorted(report.peer for report in took.reports) == list(many.names[1:])
        assert [report.problem for report in took.reports] == [""] * 7
        assert took.uploaded_nbytes <= 2.5 * MEMORY_NBYTES
        assert all(many.inbox_senders(name) == ["n0"] for name in many.names[1:])
