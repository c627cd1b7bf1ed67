"""The plan of faults depends on its seed and on nothing else."""

from __future__ import annotations

from kvnetd.store.failpoints import NAMES

from scripts.soaking.plan import FAILPOINTS, LONG_LIVED_SHARE, RESTARTS, WEIGHTS, Kind, make_plan


def test_the_same_seed_gives_the_same_faults_and_another_seed_gives_others() -> None:
    assert make_plan(200, 1) == make_plan(200, 1)
    assert make_plan(200, 1) != make_plan(200, 2)


def test_every_kind_has_a_weight_and_comes_in_a_long_plan() -> None:
    assert set(WEIGHTS) == set(Kind)
    assert {fault.kind for fault in make_plan(1000, 1)} == set(Kind)


def test_a_kind_that_is_left_out_never_comes() -> None:
    allowed = [kind for kind in Kind if kind is not Kind.DISK_FULL]
    plan = make_plan(1000, 1, allowed)
    assert {fault.kind for fault in plan} == set(allowed)


def test_no_node_is_restarted_in_the_last_part() -> None:
    plan = make_plan(500, 3)
    living = plan[-int(500 * LONG_LIVED_SHARE) :]
    assert not {fault.kind for fault in living} & RESTARTS
    assert {fault.kind for fault in plan[: -len(living)]} & RESTARTS


def test_the_messages_of_one_fault_are_of_different_memories() -> None:
    for fault in make_plan(500, 4):
        assert len(set(fault.memories)) == len(fault.memories) > 0


def test_every_failpoint_of_the_store_is_in_the_plan_and_none_is_made_up() -> None:
    drawn = {name.partition(":")[0] for names in FAILPOINTS.values() for name in names}
    assert drawn == set(NAMES)
    kinds = (Kind.FAILPOINT_SENDER, Kind.FAILPOINT_RECEIVER)
    for fault in make_plan(200, 5, kinds):
        assert fault.failpoint in FAILPOINTS[fault.kind]
