"""The table of peers is bounded, keeps the known and forgets the silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvnet.discovery.table import GOODBYE_GRACE_S, MAX_TTL_S, Endpoint, Event, PeerLost, PeerSeen, PeerTable

_HERE = Endpoint("10.0.0.2", 7420)
_THERE = Endpoint("10.0.0.3", 7420)


def _hear(
    table: PeerTable, short_id: str, *endpoints: Endpoint, now: float = 0.0, ttl_s: float = 60.0
) -> list[Event]:
    return table.observe(short_id, endpoints or (_HERE,), ttl_s=ttl_s, now=now)


def test_a_peer_is_announced_once_and_again_when_its_endpoints_change() -> None:
    table = PeerTable()
    assert _hear(table, "a") == [PeerSeen("a", (_HERE,))]
    assert _hear(table, "a", now=1) == []
    assert _hear(table, "a", _THERE, now=2) == [PeerSeen("a", (_THERE, _HERE))]
    assert table.peers() == {"a": (_THERE, _HERE)}


def test_an_advert_lasts_its_ttl_and_no_longer() -> None:
    table = PeerTable()
    _hear(table, "a", ttl_s=60)
    _hear(table, "a", ttl_s=60, now=50)
    assert table.expire(now=109) == []
    assert table.expire(now=110) == [PeerLost("a")]
    assert len(table) == 0


def test_an_advert_for_a_year_lasts_two_minutes() -> None:
    table = PeerTable()
    _hear(table, "a", ttl_s=3e7)
    assert table.expire(now=MAX_TTL_S) == [PeerLost("a")]


def test_the_old_address_of_a_moved_peer_runs_out_by_itself() -> None:
    table = PeerTable()
    _hear(table, "a", _HERE)
    _hear(table, "a", _THERE, now=30)
    assert table.expire(now=60) == [PeerSeen("a", (_THERE,))]


def test_a_goodbye_counts_after_a_grace_unless_the_peer_is_heard_again() -> None:
    table = PeerTable()
    for short_id in ("a", "b"):
        _hear(table, short_id)
        assert table.goodbye(short_id, now=1)
    _hear(table, "b", now=2)
    assert table.expire(now=1 + GOODBYE_GRACE_S) == [PeerLost("a")]
    assert "b" in table
    assert not table.goodbye("nobody", now=1)


def test_strangers_push_out_the_stranger_heard_longest_ago() -> None:
    table = PeerTable(max_entries=3)
    for short_id in ("a", "b", "c"):
        _hear(table, short_id)
    _hear(table, "a")
    assert _hear(table, "d") == [PeerLost("b"), PeerSeen("d", (_HERE,))]
    assert set(table.peers()) == {"a", "c", "d"}


def test_strangers_never_push_out_the_known() -> None:
    table = PeerTable(max_entries=4)
    table.set_known(["a", "b"])
    _hear(table, "a")
    for index in range(10_000):
        _hear(table, f"stranger {index}")
        assert len(table) <= 4
    assert "a" in table
    assert PeerSeen("b", (_HERE,)) in _hear(table, "b")  # a known peer finds room at any time
    assert {"a", "b"} <= set(table.peers())


def test_a_table_full_of_known_peers_has_no_room() -> None:
    table = PeerTable(max_entries=2)
    table.set_known(["a", "b", "c"])
    _hear(table, "a")
    _hear(table, "b")
    assert _hear(table, "c") == []
    assert _hear(table, "stranger") == []
    assert set(table.peers()) == {"a", "b"}


def test_a_peer_that_becomes_known_stays_and_one_that_is_forgotten_may_go() -> None:
    table = PeerTable(max_entries=2)
    _hear(table, "a")
    _hear(table, "b")
    table.set_known(["a"])
    _hear(table, "c")
    assert set(table.peers()) == {"a", "c"}
    table.set_known([])
    _hear(table, "d")
    _hear(table, "e")
    assert set(table.peers()) == {"d", "e"}


def test_a_rogue_that_claims_a_known_id_cannot_push_out_the_confirmed_endpoint() -> None:
    table = PeerTable()
    table.set_known(["a"])
    _hear(table, "a", _HERE)
    table.confirm("a", _HERE)
    for port in range(1, 1000):
        _hear(table, "a", Endpoint("10.6.6.6", port))
        assert len(table.peers()["a"]) <= 8
    assert table.peers()["a"][0] == _HERE


def test_the_doubted_is_dialled_last_and_evicted_first() -> None:
    table = PeerTable(max_endpoints=2)
    _hear(table, "a", _HERE)
    _hear(table, "a", _THERE, now=1)
    table.doubt("a", _THERE)
    assert table.peers()["a"] == (_HERE, _THERE)
    newcomer = Endpoint("10.0.0.4", 7420)
    _hear(table, "a", newcomer, now=2)
    assert table.peers()["a"] == (newcomer, _HERE)


def test_only_the_last_confirmed_endpoint_is_pinned() -> None:
    table = PeerTable(max_endpoints=2)
    _hear(table, "a", _HERE)
    table.confirm("a", _HERE)
    _hear(table, "a", _THERE, now=1)
    table.confirm("a", _THERE)
    table.confirm("a", Endpoint("10.9.9.9", 1))  # not a candidate: ignored
    table.confirm("nobody", _HERE)
    newcomer = Endpoint("10.0.0.4", 7420)
    _hear(table, "a", newcomer, now=2)
    assert table.peers()["a"] == (_THERE, newcomer)


def test_an_advert_without_endpoints_leaves_no_entry() -> None:
    table = PeerTable()
    assert table.observe("a", (), ttl_s=60, now=0) == []
    assert len(table) == 0


_steps = st.tuples(
    st.sampled_from("abcdefgh"),
    st.sampled_from(["hear", "goodbye", "expire", "confirm", "doubt"]),
    st.integers(1, 12),
    st.floats(0, 20),
)


@given(st.lists(_steps, max_size=60), st.sets(st.sampled_from("abcdefgh"), max_size=4))
def test_events_replayed_give_the_table(steps: list[tuple[str, str, int, float]], known: set[str]) -> None:
    """Whoever follows the events knows who is there; the bounds hold after every step."""
    table = PeerTable(max_entries=4, max_endpoints=3)
    table.set_known(known)
    replayed: dict[str, set[Endpoint]] = {}
    now = 0.0
    for short_id, action, port, wait_s in steps:
        now += wait_s
        endpoint = Endpoint("10.0.0.1", port)
        events: list[Event] = []
        if action == "hear":
            events = table.observe(short_id, (endpoint,), ttl_s=30, now=now)
        elif action == "expire":
            events = table.expire(now)
        elif action == "goodbye":
            table.goodbye(short_id, now=now)
        else:
            getattr(table, action)(short_id, endpoint)
        for event in events:
            if isinstance(event, PeerSeen):
                replayed[event.short_id] = set(event.endpoints)
            else:
                del replayed[event.short_id]
        assert {key: set(endpoints) for key, endpoints in table.peers().items()} == replayed
        assert len(table) <= 4
        assert all(1 <= len(endpoints) <= 3 for endpoints in table.peers().values())
