"""What the checks of a soak must not overlook."""

from __future__ import annotations

from dataclasses import replace

from scripts.soaking.checker import Arrived, Message, Verdict, check

MESSAGE = Message("1/0/3", "mem_a", nbytes=800, chunks=8, accepted=True)
ARRIVED = Arrived("msg_1", "1/0/3", "mem_a")
DIGESTS = {"mem_a": "aa"}


def found(message: Message = MESSAGE, *arrived: Arrived, kept: dict[str, str] = DIGESTS) -> Verdict:
    return check([message], arrived, sent=DIGESTS, kept=kept)


def test_a_message_that_arrived_once_as_it_was_sent_is_no_problem() -> None:
    assert found(MESSAGE, ARRIVED) == Verdict()


def test_one_message_seen_twice_is_one() -> None:
    assert found(MESSAGE, ARRIVED, ARRIVED) == Verdict()


def test_an_accepted_message_that_is_not_there_is_lost_with_its_bytes() -> None:
    verdict = found(MESSAGE)
    assert (verdict.lost, verdict.bytes_lost) == (1, 800)
    assert "did not arrive" in verdict.problems[0]


def test_a_message_that_nobody_accepted_is_not_lost() -> None:
    assert found(replace(MESSAGE, accepted=False)) == Verdict()


def test_two_messages_under_one_note_are_a_duplicate() -> None:
    verdict = found(MESSAGE, ARRIVED, replace(ARRIVED, id="msg_2"))
    assert (verdict.duplicates, verdict.lost, verdict.mismatches) == (1, 0, 0)


def test_another_memory_than_the_one_sent_is_a_mismatch() -> None:
    assert found(MESSAGE, replace(ARRIVED, memory="mem_b")).mismatches == 1


def test_a_message_that_nobody_sent_is_a_mismatch() -> None:
    assert found(MESSAGE, ARRIVED, Arrived("msg_2", "9/9/9", "mem_a")).mismatches == 1


def test_a_changed_digest_is_a_mismatch_and_so_is_none() -> None:
    assert found(MESSAGE, ARRIVED, kept={"mem_a": "ab"}).mismatches == 1
    assert found(MESSAGE, ARRIVED, kept={"mem_a": ""}).mismatches == 1


def test_chunks_that_were_acknowledged_and_travelled_again_are_lost() -> None:
    verdict = found(replace(MESSAGE, acked_chunks=6, resumed_chunks=4), ARRIVED)
    assert (verdict.lost, verdict.bytes_lost) == (1, 200)


def test_a_receiver_that_has_more_than_the_sender_knew_lost_nothing() -> None:
    assert found(replace(MESSAGE, acked_chunks=4, resumed_chunks=6), ARRIVED) == Verdict()
    assert found(replace(MESSAGE, acked_chunks=4, resumed_chunks=None), ARRIVED) == Verdict()
    in_place = replace(MESSAGE, acked_chunks=8, resumed_chunks=0, was_in_place=True)
    assert found(in_place, ARRIVED) == Verdict()
