"""Which network interfaces to be found on. Knows names, addresses and flags; sends nothing."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface

import ifaddr

from kvnet.errors import ConfigError

# Bridges, containers and tunnels: an advert there reaches nobody, or somebody else's network.
_SKIPPED_PREFIXES = (
    "docker", "br-", "virbr", "veth", "podman", "cni", "flannel", "cali", "lxcbr", "lxdbr",
    "vboxnet", "vmnet", "tun", "tap", "utun", "ppp", "wg", "tailscale", "zt",
)  # fmt: skip

_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT, _IFF_RUNNING, _IFF_MULTICAST = 0x1, 0x8, 0x10, 0x40, 0x1000
_FLAGS_UNKNOWN = _IFF_UP | _IFF_RUNNING | _IFF_MULTICAST


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as it is now. IPv4 only: mDNS over IPv6 finds nobody that IPv4 does not on a LAN."""

    name: str
    addresses: tuple[IPv4Interface, ...]
    is_up: bool
    has_carrier: bool
    is_loopback: bool
    does_multicast: bool

    @property
    def is_default_choice(self) -> bool:
        """Whether to use it when the user named none."""
        return (
            self.is_up
            and self.does_multicast
            and not self.is_loopback
            and not self.name.startswith(_SKIPPED_PREFIXES)
        )


def list_links() -> tuple[Link, ...]:
    """Every interface of this machine, by name; one without an address has none."""
    addresses: dict[str, list[IPv4Interface]] = {name: [] for _, name in socket.if_nameindex()}
    for adapter in ifaddr.get_adapters():
        name = adapter.name.partition(":")[0]  # "eth0:1" is a label of eth0
        for ip in adapter.ips:
            if isinstance(ip.ip, str):
                addresses.setdefault(name, []).append(IPv4Interface(f"{ip.ip}/{ip.network_prefix}"))
    return tuple(_link(name, tuple(sorted(found))) for name, found in sorted(addresses.items()))


def choose_links(
    links: tuple[Link, ...], interfaces: tuple[str, ...] | None, *, must_exist: bool = True
) -> tuple[Link, ...]:
    """The links to use: those named (by interface or address), or the sensible ones for None.

    A named link that is down or has no address yet is left out: it may come. One that does not
    exist raises ConfigError, unless `must_exist` is off (an adapter unplugged while we run).
    """
    if interfaces is None:
        return tuple(link for link in links if link.is_default_choice and link.addresses)
    wanted: dict[str, Link] = {}
    for interface in interfaces:
        matches = _match(links, interface)
        if not matches and must_exist:
            raise ConfigError(f"interface {interface!r} does not exist here; choose from {_describe(links)}")
        for match in matches:
            known = wanted.get(match.name)
            both = set(match.addresses) | set(known.addresses if known else ())
            wanted[match.name] = replace(match, addresses=tuple(sorted(both)))
    return tuple(link for _, link in sorted(wanted.items()) if link.is_up and link.addresses)


def _match(links: tuple[Link, ...], interface: str) -> list[Link]:
    by_name = [link for link in links if link.name == interface]
    if by_name:
        return by_name
    try:
        address = IPv4Address(interface)
    except ValueError:
        return []
    found = []
    for link in links:
        own = tuple(ip for ip in link.addresses if ip.ip == address)
        if own:
            found.append(replace(link, addresses=own))
    return found


def _describe(links: tuple[Link, ...]) -> str:
    parts = []
    for link in links:
        addresses = ", ".join(str(ip.ip) for ip in link.addresses)
        parts.append(f"{link.name} ({addresses or 'no IPv4 address'})")
    return "; ".join(parts) or "none"


def _link(name: str, addresses: tuple[IPv4Interface, ...]) -> Link:
    flags = _read_flags(name)
    return Link(
        name=name,
        addresses=addresses,
        is_up=bool(flags & _IFF_UP),
        has_carrier=bool(flags & _IFF_RUNNING),
        is_loopback=bool(flags & _IFF_LOOPBACK) or any(ip.is_loopback for ip in addresses),
        does_multicast=bool(flags & _IFF_MULTICAST) and not flags & _IFF_POINTOPOINT,
    )


def _read_flags(name: str) -> int:
    if sys.platform != "linux":
        return _FLAGS_UNKNOWN
    import fcntl

    request = struct.pack("16sH14x", name.encode()[:15], 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, request)
        except OSError:  # gone since it was listed
            return 0
    flags: int = struct.unpack_from("H", answer, 16)[0]
    return flags
