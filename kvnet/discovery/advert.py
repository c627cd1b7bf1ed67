"""What a node says about itself on the LAN, and the reading of what others say.

Knows DNS names and TXT bytes; no sockets, no table. An advert names the node by its short id and
nothing else: no user, host or model (RFC 8882).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from kvnet.errors import ConfigError

SERVICE_TYPE = "_kvnet._tcp.local."
SHORT_ID_LENGTH = 13  # 65 bits of the node id: enough to tell nodes apart, never to trust one
MAX_TXT_NBYTES = 400
MAX_NAMESPACE_NBYTES = 63

_SHORT_ID = re.compile(rf"[a-z2-7]{{{SHORT_ID_LENGTH}}}")
_HOST_SUFFIX = ".local."


class Refusal(StrEnum):
    """Why an advert was ignored."""

    TXT_TOO_LONG = "txt_too_long"
    TXT_MALFORMED = "txt_malformed"
    BAD_SHORT_ID = "bad_short_id"
    OTHER_ID = "other_id"  # the TXT or the host belongs to another id than the instance name
    OTHER_VERSION = "other_version"
    OTHER_NAMESPACE = "other_namespace"
    BAD_PORT = "bad_port"
    OFF_LINK = "off_link"  # no address in a network of the chosen interfaces
    TABLE_FULL = "table_full"


@dataclass(frozen=True, slots=True)
class Advert:
    """One node's advert. Raises ValueError on an id or port that no node has, ConfigError on `namespace`."""

    short_id: str
    namespace: str
    protocol_version: int
    port: int

    def __post_init__(self) -> None:
        if not is_short_id(self.short_id):
            raise ValueError(f"short id {self.short_id!r} is not {SHORT_ID_LENGTH} base32 characters")
        if not 0 < self.port < 1 << 16:
            raise ValueError(f"port {self.port} is not in 1..65535")
        # Printable keeps control characters of a stranger's TXT out of logs, by way of equality.
        if not self.namespace.isprintable() or not 0 < len(self.namespace.encode()) <= MAX_NAMESPACE_NBYTES:
            raise ConfigError(
                f"namespace {self.namespace!r} must be 1 to {MAX_NAMESPACE_NBYTES} bytes of printable text"
            )

    @property
    def instance_name(self) -> str:
        """DNS name of the service instance."""
        return f"{self.short_id}.{SERVICE_TYPE}"

    @property
    def host_name(self) -> str:
        """DNS name the addresses hang on: the short id, never the machine's own name."""
        return f"{self.short_id}{_HOST_SUFFIX}"

    def to_txt(self) -> bytes:
        """TXT record data: length-prefixed `key=value` strings (RFC 6763 §6)."""
        items = (f"v={self.protocol_version}", f"id={self.short_id}", f"ns={self.namespace}")
        return b"".join(bytes([len(item.encode())]) + item.encode() for item in items)


def is_short_id(text: str) -> bool:
    """Whether `text` could be the first characters of a node id."""
    return _SHORT_ID.fullmatch(text) is not None


def short_id_of_instance(name: str) -> str | None:
    """The short id in `<short id>._kvnet._tcp.local.`, or None."""
    short_id = name.removesuffix("." + SERVICE_TYPE)
    return short_id if short_id != name and is_short_id(short_id) else None


def short_id_of_host(name: str) -> str | None:
    """The short id in `<short id>.local.`, or None."""
    short_id = name.removesuffix(_HOST_SUFFIX)
    return short_id if short_id != name and is_short_id(short_id) else None


def read_txt(txt: bytes) -> dict[str, str] | Refusal:
    """TXT record data as keys and values; total over any bytes.

    A string without `=` has the value "", an empty string is skipped; a key that comes twice is
    malformed, for two readers might pick different ones.
    """
    if len(txt) > MAX_TXT_NBYTES:
        return Refusal.TXT_TOO_LONG
    properties: dict[str, str] = {}
    start = 0
    while start < len(txt):
        stop = start + 1 + txt[start]
        item_bytes = txt[start + 1 : stop]
        if stop > len(txt):
            return Refusal.TXT_MALFORMED
        start = stop
        try:
            key, _, value = item_bytes.decode().partition("=")
        except UnicodeDecodeError:
            return Refusal.TXT_MALFORMED
        if not item_bytes:
            continue
        if not key or key in properties:
            return Refusal.TXT_MALFORMED
        properties[key] = value
    return properties


def parse_service(instance: str, host: str, port: int, txt: bytes, *, own: Advert) -> Advert | Refusal:
    """Read a stranger's SRV and TXT; an Advert has the protocol version and namespace of `own`.

    Total: whatever the bytes are, the answer is an Advert or the first reason against it. Unknown
    keys are ignored, so a later version may add some.
    """
    short_id = short_id_of_instance(instance)
    if short_id is None:
        return Refusal.BAD_SHORT_ID
    properties = read_txt(txt)
    if isinstance(properties, Refusal):
        return properties
    checks = (
        (properties.get("v") == str(own.protocol_version), Refusal.OTHER_VERSION),
        (properties.get("ns") == own.namespace, Refusal.OTHER_NAMESPACE),
        (properties.get("id") == short_id and short_id_of_host(host) == short_id, Refusal.OTHER_ID),
        (0 < port < 1 << 16, Refusal.BAD_PORT),
    )
    for passed, refusal in checks:
        if not passed:
            return refusal
    return Advert(short_id, own.namespace, own.protocol_version, port)
