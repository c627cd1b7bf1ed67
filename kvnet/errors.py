"""The error tree, split by who must act. Knows no transport, no files, no tensors.

Each class carries a `code` (stable, machine-readable, the same on the wire, in the log and in
`--json`) and each branch an `exit_status` for the CLI. The message is one sentence: what, what it
got, what it wanted, what to do. Bugs of our own stay `ValueError` or `AssertionError`.
"""

from __future__ import annotations

from typing import ClassVar


class KvnetError(Exception):
    """Base of everything kvnet raises on purpose."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, details: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        # For IncompatibleModel: field name -> [got, wanted]. Empty for the others.
        self.details = details or {}


class OperatorError(KvnetError):
    """Whoever runs this node must act: configuration, state folder, ports."""

    code = "operator"
    exit_status = 3


class ConfigError(OperatorError):
    """A setting is unknown, out of range or contradicts another."""

    code = "config_invalid"


class StateCorrupt(OperatorError):
    """Something under the state folder is not what kvnet wrote there."""

    code = "state_corrupt"


class PortInUse(OperatorError):
    """The peer port is taken by another process."""

    code = "port_in_use"


class AlreadyRunning(OperatorError):
    """Another daemon holds this state folder."""

    code = "already_running"


class NotRunning(OperatorError):
    """No daemon answers on the control socket."""

    code = "not_running"


class MissingExtra(OperatorError):
    """A part of kvnet is not installed."""

    code = "missing_extra"


class RequestError(KvnetError):
    """The caller asked for something that does not exist or cannot be."""

    code = "request_invalid"
    exit_status = 4


class UnknownMemory(RequestError):
    """No memory has this id or name."""

    code = "unknown_memory"


class UnknownPeer(RequestError):
    """No added peer has this id or name."""

    code = "unknown_peer"


class UnknownMessage(RequestError):
    """The inbox holds no message with this id."""

    code = "unknown_message"


class UnknownOutboxEntry(RequestError):
    """The outbox holds no entry with this id."""

    code = "unknown_outbox_entry"


class UnknownTransfer(RequestError):
    """This node delivered nothing under this id."""

    code = "unknown_transfer"


class UnknownModel(RequestError):
    """Neither a reference model, nor a folder, nor a cached checkpoint."""

    code = "unknown_model"


class NoModelHosted(RequestError):
    """The node hosts no model, and what was asked of it needs one."""

    code = "no_model"


class UnsupportedModel(RequestError):
    """The checkpoint is not one this node can host: its cache, its weight files or its numbers."""

    code = "unsupported_model"


class UnknownBasis(RequestError):
    """The calibration that a memory was coded with is not here."""

    code = "unknown_basis"


class UnknownAlignment(RequestError):
    """No map or port has this id, or none leads from one model to another."""

    code = "unknown_alignment"


class AlignmentRefused(RequestError):
    """A map did not pass its gate, or the policy of the call forbids what is left."""

    code = "alignment_refused"


class TooFewSamples(RequestError):
    """The calibration text is too short for what shall be fitted to it."""

    code = "too_few_samples"


class SingularStatistics(RequestError):
    """The sums of a fit have no solution that can be trusted."""

    code = "singular_statistics"


class UnalignableTokens(RequestError):
    """Two tokenizers cut the calibration text so that no slots can be paired."""

    code = "unalignable_tokens"


class TextTooLong(RequestError):
    """More tokens than the model's context holds."""

    code = "text_too_long"


class UnknownRun(RequestError):
    """No experiment's run has this name."""

    code = "unknown_run"


class MalformedRun(RequestError):
    """A run's log or manifest is not of the published schema."""

    code = "malformed_run"


class RecipeInvalid(RequestError):
    """An experiment's recipe has an unknown key, or a value that its protocol does not take."""

    code = "recipe_invalid"


class CellsFailed(KvnetError):
    """A sweep went through, but some of its cells failed; each says why in the log."""

    code = "cells_failed"


class Cancelled(RequestError):
    """The caller went away or cancelled."""

    code = "cancelled"


class PeerError(KvnetError):
    """The other node must act, or must not be believed."""

    code = "peer"
    exit_status = 5


class PeerUnreachable(PeerError):
    """No answer from the peer within the deadline."""

    code = "peer_unreachable"


class PeerNotAdded(PeerError):
    """The node on the other side is not in the peer list."""

    code = "peer_not_added"


class NotPermitted(PeerError):
    """The other node is an added peer that may not do this."""

    code = "not_permitted"


class WrongNamespace(PeerError):
    """The other node belongs to another group of nodes."""

    code = "wrong_namespace"


class WrongPeer(PeerError):
    """Another key answered than the one that was dialled."""

    code = "wrong_peer"


class BadSignature(PeerError):
    """A signature does not verify, or was made by another key."""

    code = "bad_signature"


class MalformedMessage(PeerError):
    """Bytes from a peer break a rule of FORMAT.md."""

    code = "malformed_message"


class MalformedChunk(PeerError):
    """A chunk contradicts its offer, its envelope or itself."""

    code = "malformed_chunk"


class ConflictingChunk(PeerError):
    """The same chunk came twice with different contents."""

    code = "conflicting_chunk"


class ReplayedMessage(PeerError):
    """A message made for another transfer, receiver, nonce or time."""

    code = "replayed_message"


class MalformedFile(PeerError):
    """A file is no memory that FORMAT.md §7 allows."""

    code = "malformed_file"


class MalformedPackage(PeerError):
    """A folder or zip is no package that FORMAT.md §9 allows."""

    code = "malformed_package"


class UnsupportedFormat(PeerError):
    """A file of another format version."""

    code = "unsupported_format"


class TextMismatch(PeerError):
    """A memory is not what its model makes of the text that it is said to be of."""

    code = "text_mismatch"


class NotFinite(PeerError):
    """A memory holds NaN or infinity, which no model may be given."""

    code = "not_finite"


class TransferIncomplete(PeerError):
    """The transfer ended before all chunks were there."""

    code = "transfer_incomplete"


class IncompatibleModel(PeerError):
    """The memory was made by a model that this node cannot continue from."""

    code = "incompatible_model"


class MissingPrefix(PeerError):
    """A memory goes on behind another one, which is not here or not of whom it may be: send that first."""

    code = "missing_prefix"


class ProtocolMismatch(PeerError):
    """The peer speaks no protocol version in common."""

    code = "protocol_mismatch"


class WrongCode(PeerError):
    """The two sides of a pairing do not know the same code, or something stands between them."""

    code = "wrong_code"


class PairingExpired(PeerError):
    """Nobody used a pairing code while it lived."""

    code = "pairing_expired"


class PairingClosed(PeerError):
    """A pairing code was used, or guessed too often, or nobody here gave it out."""

    code = "pairing_closed"


class PairingDeclined(PeerError):
    """A person on one of the two sides said no, or the other node ended the pairing."""

    code = "pairing_declined"


class CapacityError(KvnetError):
    """Nothing is wrong; there is no room now. Retry later or make room."""

    code = "capacity"
    exit_status = 6


class StoreFull(CapacityError):
    """The disk or the store's quota has no room for this."""

    code = "store_full"


class TooBusy(CapacityError):
    """Too many transfers or generations at once."""

    code = "too_busy"


def all_error_types() -> dict[str, type[KvnetError]]:
    """Every code with its class; codes are unique (tested)."""
    found: dict[str, type[KvnetError]] = {}
    pending: list[type[KvnetError]] = [KvnetError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_from_code(code: str, message: str, details: dict[str, list[str]] | None = None) -> KvnetError:
    """Rebuild an error that crossed a wire; an unknown code becomes its base."""
    return all_error_types().get(code, KvnetError)(message, details=details)
