"""Where a node answers, as text: HOST:PORT, with an IPv6 address in brackets. Dials nobody."""

from __future__ import annotations

from kvnet.errors import RequestError


def parse_address(address: str) -> tuple[str, int]:
    """The host without brackets, and the port, 1 to 65535. Raises RequestError for what cannot be dialled."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    # str.isdigit alone takes digits of any script, and int() does not.
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16
    if not is_port or not _is_host(host):
        raise RequestError(f"peer address {address!r:.80}: not HOST:PORT; for example 192.168.1.20:7447")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_host(host: str) -> bool:
    try:
        host.encode("idna")  # as the resolver will: it raises where a label is empty or too long
    except UnicodeError:
        return False
    return bool(host) and host.isprintable() and not set(host) & set(" /[]@")
