"""Every reason to refuse an offer, before a byte is allocated for it."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    MalformedMessage,
    PeerError,
    ReplayedMessage,
    StoreFull,
    TextTooLong,
)
from kvnet.identity.keys import NodeKey
from kvnet.plan import MAX_ATTENTION_HEADS, count_transfer_chunks
from kvnet.transfer.admission import Receiver, admit_offer, check_parties, check_time
from kvnet.transfer.messages import MAX_NOTE_CHARS, MAX_TEXT_NBYTES, Limits, Offer, relay_id
from kvnet.types import Coding, DType, KeySpace, Rope, Scheme, Tier
from tests.builders import (
    INT8,
    MAP_ID,
    NOW,
    RECEIVER,
    SENDER,
    STRANGER,
    make_basis,
    make_fingerprint,
    make_geometry,
    make_memory,
    make_offer,
    make_port,
    make_receiver,
)

HEADER = make_memory().header
TRANSFORM, _ = make_basis()


def admit(offer: Offer, receiver: Receiver | None = None, *, now: int = NOW, has_map: bool = False) -> Tier:
    """Decide an offer that SENDER signed."""
    receiver = receiver or make_receiver()
    return admit_offer(offer, sender=SENDER.node_id, receiver=receiver, now=now, has_map=has_map)


def offer_of(**changes: Any) -> Offer:
    """An offer of a memory whose header or geometry says this, with the chunk count that follows."""
    geometry = {name: changes.pop(name) for name in list(changes) if name in ("num_layers", "num_kv_heads")}
    geometry.update({name: changes.pop(name) for name in ("head_dim", "dtype", "rope") if name in changes})
    header = replace(HEADER, geometry=replace(HEADER.geometry, **geometry), **changes)
    try:
        planned = count_transfer_chunks(header)
    except ZeroDivisionError:
        planned = 0
    return make_offer(header, chunk_count=planned)


def test_offer_for_the_same_model_is_exact() -> None:
    assert admit(make_offer(HEADER)) is Tier.EXACT


def test_offer_for_other_weights_is_identity() -> None:
    assert admit(offer_of(fingerprint=make_fingerprint(quantization="nf4"))) is Tier.IDENTITY
    assert admit(offer_of(dtype=DType.BFLOAT16)) is Tier.IDENTITY


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_layers", {"num_layers": 4}),
        ("num_kv_heads", {"num_kv_heads": 1}),
        ("head_dim", {"head_dim": 8}),
        ("rope", {"rope": Rope("default", 500000.0)}),
        ("rope", {"rope": Rope("default", 10000.0, extra={"factor": 8.0})}),
        ("architecture", {"fingerprint": make_fingerprint(architecture="Other")}),
        ("config_digest", {"fingerprint": make_fingerprint(config_digest="sha256:0")}),
        ("tokenizer_digest", {"fingerprint": make_fingerprint(tokenizer_digest="sha256:0")}),
    ],
)
def test_offer_that_differs_in_one_field_is_refused_by_its_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(IncompatibleModel, match=field) as refused:
        admit(offer_of(**changes))
    assert list(refused.value.details) == [field]


def test_memory_behind_other_tokens_says_which_they_are() -> None:
    with pytest.raises(MalformedMessage, match="both or neither"):
        admit(offer_of(start_pos=1))
    with pytest.raises(MalformedMessage, match="both or neither"):
        admit(offer_of(prefix_digest=SOME_DIGEST))
    assert admit(offer_of(start_pos=1, prefix_digest=SOME_DIGEST)) is Tier.EXACT


def test_memory_whose_prefix_makes_it_too_long_is_refused() -> None:
    with pytest.raises(TextTooLong):
        admit(offer_of(start_pos=1 << 20, prefix_digest=SOME_DIGEST))


def test_memory_that_is_still_read_is_admitted_and_a_digest_that_is_none_is_not() -> None:
    assert admit(offer_of(content_digest="")) is Tier.EXACT
    with pytest.raises(MalformedMessage, match="content_digest"):
        admit(offer_of(content_digest="sha256:salt"))


SOME_DIGEST = "sha256:" + "0" * 64
CODINGS = {
    "int8": INT8,
    "int4 with hadamard": replace(INT8, key_bits=4, value_bits=4, hadamard=True),
    "pruned": Coding(pruned_heads=((0, 1),)),
    "transform": TRANSFORM,
}


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_every_coding_of_the_format_is_taken(coding: Coding) -> None:
    assert admit(make_offer(make_memory(coding=coding))) is Tier.EXACT
    assert (
        admit(make_offer(make_memory(coding=coding, attention_heads=4, derived_from="mem_x"))) is Tier.EXACT
    )


def test_keys_in_content_space_are_taken() -> None:
    assert admit(offer_of(key_space=KeySpace.CONTENT, coding=INT8)) is Tier.EXACT


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_scheme_that_this_node_does_not_decode_is_refused_by_name(coding: Coding) -> None:
    others = tuple(scheme for scheme in Scheme if scheme is not coding.scheme)
    receiver = make_receiver(limits=Limits(max_seq_len=64, schemes=others))
    with pytest.raises(IncompatibleModel, match=f"{coding.scheme} coding, this node decodes {others[0]}"):
        admit(make_offer(make_memory(coding=coding)), receiver)


@pytest.mark.parametrize(
    ("coding", "wanted"),
    [
        (Coding(key_bits=8), "a raw coding has parameters"),
        (replace(INT8, value_bits=2), "2 bits"),
        (replace(INT8, group_size=0), "groups of 0"),
        (replace(TRANSFORM, basis_nbytes=0), "a basis of 0 bytes"),
        (replace(TRANSFORM, basis_nbytes=2**62), "a basis of"),
        (Coding(pruned_heads=((9, 9),)), "no head"),
    ],
)
def test_coding_that_is_none_of_the_format_is_refused(coding: Coding, wanted: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"none of FORMAT.md §8: .*{wanted}"):
        admit(offer_of(coding=coding))


def test_too_many_attention_heads_are_refused() -> None:
    assert admit(offer_of(attention_heads=MAX_ATTENTION_HEADS)) is Tier.EXACT
    for heads in (MAX_ATTENTION_HEADS + 1, 2**62):
        with pytest.raises(MalformedMessage, match=f"{heads} attention heads, at most 4096"):
            admit(offer_of(attention_heads=heads))


def test_chunk_count_covers_attention_and_basis() -> None:
    header = make_memory(coding=TRANSFORM, attention_heads=4).header
    assert make_offer(header).chunk_count == 3 * 3 + 1
    for count in (6, 9, 11):
        with pytest.raises(MalformedMessage, match="its geometry makes 10"):
            admit(make_offer(header, chunk_count=count))


def test_bytes_of_the_basis_count_towards_the_room() -> None:
    header = make_memory(coding=TRANSFORM).header
    needed = header.raw_nbytes + TRANSFORM.basis_nbytes
    assert admit(make_offer(header), make_receiver(free_nbytes=needed)) is Tier.EXACT
    with pytest.raises(StoreFull, match=f"memory of {needed} bytes"):
        admit(make_offer(header), make_receiver(free_nbytes=needed - 1))
    small = make_receiver(limits=Limits(max_seq_len=64, max_transfer_nbytes=needed - 1))
    with pytest.raises(StoreFull, match=f"room for {needed - 1}"):
        admit(make_offer(header), small)


def test_coordinates_need_room_for_the_most_that_may_come() -> None:
    coding, _ = make_port()
    header = make_memory(coding=coding).header
    needed = 1 + 5 * 1024 + coding.basis_nbytes
    assert make_offer(header).chunk_count == 2
    assert admit(make_offer(header), make_receiver(free_nbytes=needed), has_map=True) is Tier.MAPPED
    with pytest.raises(StoreFull, match=f"memory of {needed} bytes"):
        admit(make_offer(header), make_receiver(free_nbytes=needed - 1), has_map=True)
    with pytest.raises(IncompatibleModel, match="port coding, this node decodes raw"):
        admit(make_offer(header), make_receiver(limits=Limits(max_seq_len=64, schemes=("raw",))))


def test_coordinates_are_never_the_models_own_memory() -> None:
    coding, _ = make_port()
    offer = make_offer(make_memory(coding=coding).header)
    with pytest.raises(IncompatibleModel, match="no admitted map here ends in their port"):
        admit(offer)
    assert admit(replace(offer, text="Anna.")) is Tier.TEXT


def test_offer_in_the_name_of_another_is_refused() -> None:
    with pytest.raises(PeerError, match="another sender") as refused:
        admit(make_offer(HEADER, sender=STRANGER.node_id))
    assert refused.value.code == "peer"


def test_offer_for_another_receiver_is_refused() -> None:
    with pytest.raises(ReplayedMessage, match="another receiver"):
        admit(make_offer(HEADER, receiver=STRANGER.node_id))


def test_offer_is_good_until_it_expires_and_for_the_clocks_skew() -> None:
    skew = make_receiver().limits.clock_skew_s
    for now in (NOW - skew, NOW, NOW + 600, NOW + 600 + skew):
        assert admit(make_offer(HEADER), now=now) is Tier.EXACT


def test_expired_offer_is_refused() -> None:
    with pytest.raises(ReplayedMessage, match="set the clocks"):
        admit(make_offer(HEADER), now=NOW + 600 + 301)


def test_offer_from_the_future_is_refused() -> None:
    with pytest.raises(ReplayedMessage, match="set the clocks"):
        admit(make_offer(HEADER), now=NOW - 301)


def test_offer_that_lives_too_long_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="lives longer"):
        admit(make_offer(HEADER, expires_at=NOW + 601))


def test_memory_longer_than_the_models_context_is_refused() -> None:
    assert admit(offer_of(seq_len=64)) is Tier.EXACT
    with pytest.raises(TextTooLong, match="at most 64"):
        admit(offer_of(seq_len=65))


@pytest.mark.parametrize(
    "receiver",
    [
        make_receiver(free_nbytes=HEADER.raw_nbytes - 1),
        make_receiver(limits=Limits(max_seq_len=64, max_transfer_nbytes=HEADER.raw_nbytes - 1)),
        make_receiver(free_nbytes=0),
    ],
)
def test_memory_larger_than_the_room_is_refused(receiver: Receiver) -> None:
    with pytest.raises(StoreFull, match=f"memory of {HEADER.raw_nbytes} bytes"):
        admit(make_offer(HEADER), receiver)


def test_bytes_that_are_here_already_need_no_room() -> None:
    offer, room = make_offer(HEADER), make_receiver(free_nbytes=100)
    missing = HEADER.raw_nbytes - 100
    assert (
        admit_offer(offer, sender=SENDER.node_id, receiver=room, now=NOW, held_nbytes=missing) is Tier.EXACT
    )
    with pytest.raises(StoreFull):
        admit_offer(offer, sender=SENDER.node_id, receiver=room, now=NOW, held_nbytes=missing - 1)
    small = make_receiver(limits=Limits(max_seq_len=64, max_transfer_nbytes=HEADER.raw_nbytes - 1))
    with pytest.raises(StoreFull):  # held bytes are no way around the limit of a transfer
        admit_offer(offer, sender=SENDER.node_id, receiver=small, now=NOW, held_nbytes=HEADER.raw_nbytes)


def test_parties_are_checked_without_looking_at_the_memory() -> None:
    offer = offer_of(seq_len=2**62)
    check_parties(offer, sender=SENDER.node_id, receiver=make_receiver())
    for changes, refusal in (
        ({"sender": STRANGER.node_id}, PeerError),
        ({"receiver": STRANGER.node_id}, ReplayedMessage),
    ):
        with pytest.raises(refusal):
            check_parties(replace(offer, **changes), sender=SENDER.node_id, receiver=make_receiver())


def test_time_of_an_offer_counts_until_it_was_admitted_once() -> None:
    offer, receiver, late = make_offer(HEADER), make_receiver(), NOW + 10_000
    check_time(offer, receiver=receiver, now=NOW)
    for changes, refusal in (
        ({"expires_at": NOW - 301}, ReplayedMessage),
        ({"expires_at": NOW + 601}, MalformedMessage),
    ):
        with pytest.raises(refusal):
            check_time(replace(offer, **changes), receiver=receiver, now=NOW)
    with pytest.raises(ReplayedMessage):
        admit_offer(offer, sender=SENDER.node_id, receiver=receiver, now=late)
    assert admit_offer(offer, sender=SENDER.node_id, receiver=receiver, now=late, begun=True) is Tier.EXACT


def test_memory_that_just_fits_is_taken() -> None:
    assert admit(make_offer(HEADER), make_receiver(free_nbytes=HEADER.raw_nbytes)) is Tier.EXACT


@pytest.mark.parametrize("count", [0, 5, 7, 2**62])
def test_wrong_chunk_count_is_refused(count: int) -> None:
    with pytest.raises(MalformedMessage, match="its geometry makes 6"):
        admit(make_offer(HEADER, chunk_count=count))


def test_long_note_is_refused() -> None:
    assert admit(make_offer(HEADER, note="n" * MAX_NOTE_CHARS)) is Tier.EXACT
    with pytest.raises(MalformedMessage, match="note"):
        admit(make_offer(HEADER, note="n" * (MAX_NOTE_CHARS + 1)))


OTHER_MODEL = replace(HEADER, fingerprint=make_fingerprint(architecture="Other"))
OTHER_TOKENS = replace(HEADER, fingerprint=make_fingerprint(tokenizer_digest="sha256:0"))


def test_offer_of_another_model_is_taken_where_a_map_leads_here() -> None:
    for header, tier in ((OTHER_MODEL, Tier.MAPPED), (OTHER_TOKENS, Tier.MAPPED_TOKENS)):
        offer, receiver = make_offer(header), make_receiver()
        assert admit_offer(offer, sender=SENDER.node_id, receiver=receiver, now=NOW, has_map=True) is tier


def test_offer_of_another_model_is_taken_where_a_text_comes_with_it() -> None:
    assert admit(make_offer(OTHER_MODEL, text="Anna keeps the key.")) is Tier.TEXT
    assert admit(make_offer(HEADER, text="Anna keeps the key.")) is Tier.EXACT


def test_memory_in_coordinates_names_the_map_that_made_them_and_no_other_names_one() -> None:
    coding, _ = make_port()
    in_coordinates = make_memory(coding=coding).header
    receiver, sender = make_receiver(), SENDER.node_id
    offer = make_offer(in_coordinates)
    assert admit_offer(offer, sender=sender, receiver=receiver, now=NOW, has_map=True) is Tier.MAPPED
    for wrong in (replace(offer, map=""), make_offer(HEADER, map=MAP_ID)):
        with pytest.raises(MalformedMessage, match=r"names the map .* of a memory in (port|raw) coding"):
            admit_offer(wrong, sender=sender, receiver=receiver, now=NOW, has_map=True)


def test_text_is_no_way_around_any_other_rule() -> None:
    with pytest.raises(StoreFull):
        admit(make_offer(OTHER_MODEL, text="Anna"), make_receiver(free_nbytes=0))
    with pytest.raises(MalformedMessage, match="its geometry makes 6"):
        admit(make_offer(OTHER_MODEL, text="Anna", chunk_count=5))


def test_text_is_counted_in_bytes() -> None:
    longest = "é" * (MAX_TEXT_NBYTES // 2)
    assert admit(make_offer(HEADER, text=longest)) is Tier.EXACT
    with pytest.raises(MalformedMessage, match=f"a text of {MAX_TEXT_NBYTES + 1} bytes"):
        admit(make_offer(HEADER, text=longest + "a"))


ABSURD: list[dict[str, Any]] = [
    {field: value}
    for field in ("num_layers", "num_kv_heads", "head_dim", "seq_len")
    for value in (0, 2**31, 2**62)
] + [{"num_layers": 2**62, "num_kv_heads": 2**62, "head_dim": 2**62, "seq_len": 2**62}]


@pytest.mark.parametrize("changes", ABSURD, ids=str)
def test_absurd_shape_is_refused_at_once_and_allocates_nothing(changes: dict[str, Any]) -> None:
    offer, receiver = offer_of(**changes), make_receiver(geometry=make_geometry(**_geometry_of(changes)))
    tracemalloc.start()
    began = time.thread_time()
    try:
        with pytest.raises(KvnetError) as refused:
            admit(offer, receiver)
        took_s = time.thread_time() - began
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert isinstance(refused.value, MalformedMessage)
    assert took_s < 0.01


def _geometry_of(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if name != "seq_len"}


def test_shape_at_the_limits_is_decided_without_its_plan() -> None:
    """512 layers of 2**31 - 1 tokens would be a plan of 2**40 chunks: it is counted, never built."""
    widest = {"num_layers": 512, "num_kv_heads": 256, "head_dim": 1024}
    began = time.thread_time()
    with pytest.raises(TextTooLong):
        admit(offer_of(**widest, seq_len=2**31 - 1), make_receiver(geometry=make_geometry(**widest)))
    assert time.thread_time() - began < 0.01


WIRE = "sha256:" + "ab" * 32
OTHERS = tuple(NodeKey(bytes([number]) * 32).node_id for number in range(10, 75))


def copied(**changes: Any) -> Offer:
    """A copy that SENDER passes on of what STRANGER sends."""
    offer = make_offer(make_memory(), origin=STRANGER.node_id, wire_digest=WIRE)
    offer = replace(offer, transfer_id=relay_id(STRANGER.node_id, offer.memory.id, WIRE))
    return replace(offer, **changes)


def test_an_offer_to_many_and_a_copy_of_it_are_admitted() -> None:
    for offer in (
        make_offer(make_memory(), relay_to=OTHERS[:64], wire_digest=WIRE),
        copied(),
        copied(relay_to=OTHERS[:3]),
    ):
        assert admit_offer(offer, sender=SENDER.node_id, receiver=make_receiver(), now=NOW) is Tier.EXACT


@pytest.mark.parametrize(
    "offer",
    [
        make_offer(make_memory(), relay_to=OTHERS[:65], wire_digest=WIRE),
        make_offer(make_memory(), relay_to=OTHERS[:2]),
        make_offer(make_memory(), relay_to=(OTHERS[0], OTHERS[0]), wire_digest=WIRE),
        make_offer(make_memory(), relay_to=(SENDER.node_id,), wire_digest=WIRE),
        make_offer(make_memory(), relay_to=(RECEIVER.node_id,), wire_digest=WIRE),
        make_offer(make_memory(), relay_to=("../../etc",), wire_digest=WIRE),
        make_offer(make_memory(), wire_digest="sha256:ab"),
        copied(relay_to=(STRANGER.node_id,)),
        copied(origin=SENDER.node_id),
        copied(note="a word"),
        copied(agent="reviewer"),
        copied(text="words"),
        copied(transfer_id="00" * 16),
    ],
)
def test_an_offer_that_would_go_round_in_a_loop_or_says_too_little_is_refused(offer: Offer) -> None:
    with pytest.raises(MalformedMessage, match=r"^offer: "):
        admit_offer(offer, sender=SENDER.node_id, receiver=make_receiver(), now=NOW)
