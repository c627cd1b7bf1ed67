"""A reading as a signed head and a payload, and back."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvnet.transfer.messages import seal
from kvnet.transport.readings import (
    MAX_TEXT_NBYTES,
    Reading,
    decode_reading,
    encode_reading,
    open_head,
    open_request,
    open_text,
    sign_request,
    sign_text,
)
from tests.builders import RECEIVER, SENDER, make_memory
from tests.transport.backend import MemoryNode
from tests.transport.readers import CLOSING, make_request

HELLO = MemoryNode(RECEIVER, ThreadPoolExecutor(1)).hello(b"n" * 16)
SEALED, ASKED = sign_request(SENDER, make_request())


def test_request_survives_the_wire_and_is_named_by_its_body() -> None:
    assert open_request(SEALED, signer=SENDER.public) == ASKED
    assert ASKED.digest == hashlib.sha256(SEALED.body).hexdigest()


@given(text=st.text(max_size=200))
def test_any_text_survives_the_wire(text: str) -> None:
    assert open_text(sign_text(SENDER, ASKED, 3, text), ASKED, 3) == text


def test_longest_text_of_characters_that_json_escapes_survives_the_wire() -> None:
    text = "\x01" * MAX_TEXT_NBYTES
    assert open_text(sign_text(SENDER, ASKED, 0, text), ASKED, 0) == text


@st.composite
def readings(draw: st.DrawFn) -> tuple[str, Reading]:
    """A text and what some tokenizer, of any cut, makes of it with CLOSING."""
    text = draw(st.text(max_size=60))
    num_chars = len(text) + len(CLOSING)
    stops = sorted(draw(st.lists(st.integers(0, num_chars), min_size=1, max_size=16)))
    num_sinks = draw(st.integers(0, 2))
    cut = zip([0, *stops], stops, strict=False)
    spans = (*[(0, 0)] * num_sinks, *cut) if draw(st.booleans()) else ()
    memory = make_memory(draw(st.integers(0, 9)), seq_len=num_sinks + len(stops))
    return text, Reading(draw(st.integers(0, 5)), memory, num_sinks, spans)


@given(made=readings())
def test_decode_is_the_inverse_of_encode(made: tuple[str, Reading]) -> None:
    text, reading = made
    head, payload = encode_reading(reading, ASKED, text)
    opened = open_head(seal(RECEIVER, head), ASKED, reading.index, text, HELLO)
    assert opened == head
    assert decode_reading(opened, bytearray(payload), len(text) + len(CLOSING)) == reading


def test_another_name_for_the_same_model_is_no_lie() -> None:
    memory = make_memory()
    named = replace(memory.header, fingerprint=replace(memory.header.fingerprint, model="other"))
    reading = Reading(0, replace(memory, header=named), 1, ())
    head, _ = encode_reading(reading, ASKED, "salt")
    assert open_head(seal(RECEIVER, head), ASKED, 0, "salt", HELLO) == head
