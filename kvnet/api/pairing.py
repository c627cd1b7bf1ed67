"""What the daemon tells while two nodes pair, and when a node changes its key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PairingInvitation:
    """A code to be typed on the other machine, once."""

    code: str
    addresses: tuple[str, ...]  # HOST:PORT, for where mDNS does not reach
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class PairingAttempt:
    """Somebody dialled and did not prove the code."""

    host: str
    guesses_left: int


@dataclass(frozen=True, slots=True)
class PairingComparison:
    """Six digits, the same on the other machine or something stands between; see `answer_pairing`."""

    digits: str


@dataclass(frozen=True, slots=True)
class RotationReport:
    """A new key, which counts from the daemon's next start on."""

    old_id: str
    new_id: str
    statement: str  # path of the file for those that were not told
    told: tuple[str, ...]  # names of peers that have taken the new key
    untold: tuple[str, ...]
