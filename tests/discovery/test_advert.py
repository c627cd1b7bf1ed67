"""What is an advert, and what is refused as one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.discovery.advert import (
    MAX_NAMESPACE_NBYTES,
    MAX_TXT_NBYTES,
    SERVICE_TYPE,
    Advert,
    Refusal,
    parse_service,
    read_txt,
    short_id_of_host,
    short_id_of_instance,
)
from kvnet.errors import ConfigError

_OWN = Advert("a" * 13, "home", 1, 7420)
_PEER = Advert("b" * 13, "home", 1, 7421)

_short_ids = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=13, max_size=13)
_namespaces = st.text(min_size=1, max_size=20).filter(
    lambda text: text.isprintable() and len(text.encode()) <= MAX_NAMESPACE_NBYTES
)


def _txt(*items: bytes) -> bytes:
    return b"".join(bytes([len(item)]) + item for item in items)


def _parse(txt: bytes, **changed: object) -> Advert | Refusal:
    service = {"instance": _PEER.instance_name, "host": _PEER.host_name, "port": _PEER.port, **changed}
    return parse_service(**service, txt=txt, own=_OWN)  # type: ignore[arg-type]


@given(_short_ids, _namespaces, st.integers(0, 99), st.integers(1, 65535))
def test_what_a_node_says_is_what_another_reads(
    short_id: str, namespace: str, version: int, port: int
) -> None:
    said = Advert(short_id, namespace, version, port)
    own = Advert("a" * 13, namespace, version, 1)
    assert parse_service(said.instance_name, said.host_name, port, said.to_txt(), own=own) == said
    assert len(said.to_txt()) <= MAX_TXT_NBYTES


def test_an_advert_names_the_short_id_and_nothing_else() -> None:
    assert _PEER.instance_name == f"{'b' * 13}.{SERVICE_TYPE}"
    assert _PEER.host_name == f"{'b' * 13}.local."
    assert read_txt(_PEER.to_txt()) == {"v": "1", "id": "b" * 13, "ns": "home"}


@given(st.binary(max_size=600))
def test_any_txt_bytes_have_an_answer(txt: bytes) -> None:
    properties = read_txt(txt)
    assert isinstance(properties, dict) or properties in (Refusal.TXT_MALFORMED, Refusal.TXT_TOO_LONG)
    assert isinstance(_parse(txt), Refusal)  # nobody writes a whole advert by chance


@given(st.binary(max_size=40), st.integers(0, 60))
def test_a_damaged_txt_is_refused_or_says_the_same(noise: bytes, at: int) -> None:
    txt = _PEER.to_txt()
    parsed = _parse(txt[:at] + noise + txt[at + len(noise) :])
    assert isinstance(parsed, Refusal) or parsed == _PEER


@given(st.text(max_size=40), st.text(max_size=40), st.integers(-(2**40), 2**40))
def test_any_names_and_port_have_an_answer(instance: str, host: str, port: int) -> None:
    assert isinstance(parse_service(instance, host, port, _PEER.to_txt(), own=_OWN), Refusal)


@pytest.mark.parametrize(
    ("txt", "refusal"),
    [
        (_txt(b"v=2", b"id=" + b"b" * 13, b"ns=home"), Refusal.OTHER_VERSION),
        (
            _txt("v=\N{ARABIC-INDIC DIGIT ONE}".encode(), b"id=" + b"b" * 13, b"ns=home"),
            Refusal.OTHER_VERSION,
        ),
        (_txt(b"id=" + b"b" * 13, b"ns=home"), Refusal.OTHER_VERSION),
        (b"", Refusal.OTHER_VERSION),
        (_txt(b"v=1", b"id=" + b"b" * 13, b"ns=work"), Refusal.OTHER_NAMESPACE),
        (_txt(b"v=1", b"id=" + b"b" * 13), Refusal.OTHER_NAMESPACE),
        (_txt(b"v=1", b"id=" + b"c" * 13, b"ns=home"), Refusal.OTHER_ID),
        (_txt(b"v=1", b"ns=home"), Refusal.OTHER_ID),
        (_txt(b"v=1", b"id=" + b"b" * 13, b"ns=\xff\xfe"), Refusal.TXT_MALFORMED),
        (_txt(b"v=1", b"v=1", b"id=" + b"b" * 13, b"ns=home"), Refusal.TXT_MALFORMED),
        (_txt(b"=1"), Refusal.TXT_MALFORMED),
        (b"\x09v=1", Refusal.TXT_MALFORMED),
        (_PEER.to_txt() + _txt(b"x=" + b"y" * 200, b"z=" + b"y" * 200), Refusal.TXT_TOO_LONG),
    ],
)
def test_each_bad_txt_has_its_reason(txt: bytes, refusal: Refusal) -> None:
    assert _parse(txt) is refusal


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"instance": f"{'B' * 13}.{SERVICE_TYPE}"}, Refusal.BAD_SHORT_ID),
        ({"instance": f"{'b' * 12}.{SERVICE_TYPE}"}, Refusal.BAD_SHORT_ID),
        ({"instance": f"{'b' * 12}1.{SERVICE_TYPE}"}, Refusal.BAD_SHORT_ID),
        ({"instance": f"{'b' * 13}\n.{SERVICE_TYPE}"}, Refusal.BAD_SHORT_ID),
        ({"instance": SERVICE_TYPE}, Refusal.BAD_SHORT_ID),
        ({"host": f"{'c' * 13}.local."}, Refusal.OTHER_ID),
        ({"host": "annas-laptop.local."}, Refusal.OTHER_ID),
        ({"port": 0}, Refusal.BAD_PORT),
        ({"port": 65536}, Refusal.BAD_PORT),
    ],
)
def test_each_bad_name_and_port_has_its_reason(changed: dict[str, object], refusal: Refusal) -> None:
    assert _parse(_PEER.to_txt(), **changed) is refusal


def test_unknown_keys_and_empty_strings_are_skipped() -> None:
    assert _parse(_txt(b"", b"later", b"w=3=4") + _PEER.to_txt()) == _PEER


def test_names_of_other_services_and_hosts_carry_no_short_id() -> None:
    assert short_id_of_instance(f"{'b' * 13}._http._tcp.local.") is None
    assert short_id_of_host("printer.local.") is None
    assert short_id_of_host("b" * 13) is None


@pytest.mark.parametrize("namespace", ["", "n" * 64, "a\nb", "\x00"])
def test_a_namespace_that_does_not_fit_is_a_config_error(namespace: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        Advert("a" * 13, namespace, 1, 7420)


@pytest.mark.parametrize(
    ("short_id", "port"), [("A" * 13, 1), ("a" * 12, 1), ("a" * 13, 0), ("a" * 13, 65536)]
)
def test_an_own_advert_that_no_node_has_is_a_bug(short_id: str, port: int) -> None:
    with pytest.raises(ValueError, match=r"short id|port"):
        Advert(short_id, "home", 1, port)
