"""What this node bounds: one table, `[limits]` in config.toml or KVNET_LIMITS_* in the environment.

The sizes of messages, chunks and documents, and how deep those nest, are constants of FORMAT.md that both
ends must share, and so no settings. What cannot be bounded says `kvnet.transport.limits`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from kvnet.errors import ConfigError
from kvnet.transport.limits import PortLimits

LEAST_INFLIGHT_NBYTES: Final = 64 << 20
_MEMORY_SHARE: Final = 4
_ENVIRON_PREFIX: Final = "KVNET_LIMITS_"
_MAX_SECONDS: Final = 86_400
_MAX_COUNT: Final = 65_536
_MAX_NBYTES: Final = 1 << 50
# Zero is the system's own choice, or none.
_MAY_BE_ZERO: Final = frozenset({"max_inflight_nbytes", "reserve_nbytes", "reserve_percent", "busy_pause_s"})
# A trust list of more would not be read again, and each of them is a root in every handshake.
_MOST: Final = {"reserve_percent": 90, "max_peers": 1024}


@dataclass(frozen=True, slots=True)
class Limits(PortLimits):
    """Each is a whole number. What comes beyond one is refused with CapacityError, or is not listened to."""

    max_transfer_nbytes: int = 4 << 30
    max_inbound_transfers: int = 8
    max_inbound_transfers_per_peer: int = 2
    max_unfinished_nbytes: int = 20 << 30  # of all transfers on their way in, what is still to come included
    max_unfinished_nbytes_per_peer: int = 8 << 30
    max_unfinished_per_peer: int = 64  # transfers, whatever their size
    max_unread_per_peer: int = 1024  # messages in the inbox that nobody has acknowledged
    max_inflight_nbytes: int = 0  # received and not yet on disk; 0 is a quarter of the memory that is free
    reserve_nbytes: int = 1 << 30  # of the disk, left free; or the share below, whichever is less
    reserve_percent: int = 10
    max_peers: int = 256
    max_mdns_entries: int = 512
    max_outbox_entries: int = 1024
    clock_skew_s: int = 300
    offer_life_s: int = 600


def limits_from(found: Mapping[str, Any]) -> Limits:
    """These limits, the others by default. Raises ConfigError naming the limit and what it takes."""
    known = {spec.name for spec in fields(Limits)}
    unknown = sorted(set(found) - known)
    if unknown:
        raise ConfigError(f"limits: unknown key {unknown[0]!r:.60}; known are {', '.join(sorted(known))}")
    return Limits(**{name: _number(name, value) for name, value in found.items()})


def limits_of_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of limits, by their names here."""
    return {
        key.removeprefix(_ENVIRON_PREFIX).lower(): value
        for key, value in environ.items()
        if key.startswith(_ENVIRON_PREFIX)
    }


def inflight_nbytes(limits: Limits) -> int:
    """How many bytes may be received and not yet on disk: as set, or by the memory that is free now."""
    return limits.max_inflight_nbytes or max(LEAST_INFLIGHT_NBYTES, _free_memory_nbytes() // _MEMORY_SHARE)


def _number(name: str, value: Any) -> int:
    least, most = _range(name)
    try:
        number = -1 if isinstance(value, bool | float) else int(value)
    except (ValueError, TypeError):
        number = -1
    if not least <= number <= most:
        raise ConfigError(
            f"setting limits.{name}: {value!r:.60} is no whole number from {least} to {most}; "
            "leave it out for the default"
        )
    return number


def _range(name: str) -> tuple[int, int]:
    least = 0 if name in _MAY_BE_ZERO else 1
    most = _MAX_NBYTES if "nbytes" in name else _MAX_SECONDS if name.endswith("_s") else _MAX_COUNT
    return least, _MOST.get(name, most)


def _free_memory_nbytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:  # no Linux: half of all memory is as good a guess as any
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
