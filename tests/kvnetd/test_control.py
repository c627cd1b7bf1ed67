"""What the control API hands to actions: the same names on both sides, and nothing lost on the way."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from google.protobuf.message import Message
from kvnetd.actions.ask import Question
from kvnetd.actions.examine import EvaluateRequest
from kvnetd.actions.fit import FitRequest
from kvnetd.actions.packages import sign
from kvnetd.actions.pair import PairRequest
from kvnetd.actions.remember import MAX_LEVEL, MAX_NAME_CHARS, MAX_WORDS_CHARS, Reading, remember
from kvnetd.actions.train import TrainRequest
from kvnetd.services import Services

from kvnet import wire
from kvnet.errors import MalformedPackage, RequestError
from kvnet.files.package import PACKAGE_TYPE
from kvnet.files.package.names import REQUIRED_PATHS
from kvnet.identity.signing import verify_message
from kvnet.types import canonical_json
from kvnet.v1 import control_pb2 as pb

REQUESTS: list[tuple[type[Message], type[Any]]] = [
    (pb.RememberRequest, Reading),
    (pb.AskRequest, Question),
    (pb.FitAlignmentRequest, FitRequest),
    (pb.TrainAlignmentRequest, TrainRequest),
    (pb.EvaluateAlignmentRequest, EvaluateRequest),
    (pb.PairRequest, PairRequest),
]


@pytest.mark.parametrize(("message", "cls"), REQUESTS)
def test_request_and_what_the_action_takes_have_the_same_fields(message: Any, cls: type[Any]) -> None:
    assert {field.name for field in message.DESCRIPTOR.fields} == {spec.name for spec in fields(cls)}


def test_every_field_of_a_request_reaches_its_action() -> None:
    reading = Reading("text", "name", "int8", "float16", "zstd", 3, True, True, "law", "torts", "en", True)
    assert wire.from_wire(wire.to_wire(reading, pb.RememberRequest), Reading) == reading
    assert wire.from_wire(pb.RememberRequest(text="text"), Reading) == Reading("text")
    question = Question("why", "notes", "", 5, 0.5, 0.9, ("a", "b"), 7, ("more", "still"), "text")
    assert wire.from_wire(wire.to_wire(question, pb.AskRequest), Question) == question


BAD_READINGS: dict[str, tuple[dict[str, Any], str]] = {
    "name too long": ({"name": "n" * (MAX_NAME_CHARS + 1)}, "at most 64 printable"),
    "name like an id": ({"name": "mem_x"}, "not starting with mem_"),
    "name of control characters": ({"name": "a\nb"}, "printable"),
    "unknown codec": ({"codec": "int2"}, r"codec 'int2': none of exact, int8, .*auto"),
    "unknown dtype": ({"dtype": "float8"}, "dtype 'float8': none of float32, float16, bfloat16"),
    "unknown compression": ({"compression": "gzip"}, "compression 'gzip': none of none, lz4, zstd, split"),
    "level too high": ({"level": MAX_LEVEL + 1}, "level 20: at most 19"),
    "domain too long": ({"domain": "d" * (MAX_WORDS_CHARS + 1)}, "domain: at most 200"),
    "topic too long": ({"topic": "d" * (MAX_WORDS_CHARS + 1)}, "topic: at most 200"),
    "language too long": ({"language": "d" * (MAX_WORDS_CHARS + 1)}, "language: at most 200"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_READINGS.values(), ids=BAD_READINGS)
async def test_bad_option_is_refused_before_the_model_reads(
    services: Services, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        async for _ in remember(services, Reading("text", **changes)):
            pass


def test_list_of_files_is_signed_as_such_and_nothing_else_is(services: Services) -> None:
    files = [{"path": path, "sha256": "0" * 64, "size": 1} for path in sorted(REQUIRED_PATHS)]
    body = canonical_json(files)
    signed = sign(services, body)
    assert verify_message(signed, type_=PACKAGE_TYPE, signer=services.key.public).body == body
    for other in (b"", b"[]", b"{}", b"hello", body + b" ", b" " * ((1 << 20) + 1)):
        with pytest.raises(MalformedPackage):
            sign(services, other)
