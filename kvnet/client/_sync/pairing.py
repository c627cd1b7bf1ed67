# Made from kvnet/client/_async by scripts/unasync; edit it there.
"""Making two nodes know each other: one-use codes, and keys that change."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from kvnet import wire
from kvnet.api import PairingAttempt, PairingComparison, PairingInvitation, PeerInfo, RotationReport
from kvnet.client._sync.files import FileCalls
from kvnet.errors import RequestError
from kvnet.texts import require_text
from kvnet.v1 import control_pb2 as pb

_ROTATION_DEADLINE_S = 120.0  # every peer is dialled


class PairingCalls(FileCalls):
    """The part of Node that pairs."""

    def pair(self, code: str, *, address: str = "", name: str = "") -> PeerInfo:
        """Use a code that another node gave out; returns that node, which is a peer from now on.

        `address` is where it waits, HOST:PORT, where mDNS does not reach. Raises WrongCode, PairingExpired,
        PairingClosed, PeerUnreachable, and PairingDeclined where people shall compare digits: that takes
        `pair_stream`.
        """
        if not code:
            raise RequestError("pair: wants the code of another node; `pair_stream` gives one out")
        with closing(self.pair_stream(code, address=address, name=name)) as steps:
            for step in steps:
                if isinstance(step, PeerInfo):
                    return step
                if isinstance(step, PairingComparison):
                    self.answer_pairing(same=False)
        raise AssertionError("the daemon ended the pairing without a peer")

    def pair_stream(
        self, code: str = "", *, address: str = "", name: str = "", verify: bool = False
    ) -> Generator[PairingInvitation | PairingAttempt | PairingComparison | PeerInfo, None, None]:
        """Pair with another node; yields the peer last. Closing the stream ends the pairing.

        Without a code one is given out: a PairingInvitation comes first, and a PairingAttempt for everybody
        who tries another code. Where either side wants to `verify`, a PairingComparison has digits that
        people compare with those on the other machine; `answer_pairing` goes on. `name` is what to call the
        peer here.
        """
        request = pb.PairRequest(
            code=require_text(code, what="pairing code"),
            address=require_text(address, what="address"),
            name=require_text(name, what="name"),
            verify=verify,
        )
        for event in self._stream(self._stub.Pair, request):
            if event.HasField("invitation"):
                yield wire.from_wire(event.invitation, PairingInvitation)
            elif event.HasField("attempt"):
                yield wire.from_wire(event.attempt, PairingAttempt)
            elif event.HasField("comparison"):
                yield wire.from_wire(event.comparison, PairingComparison)
            else:
                yield wire.from_wire(event.peer, PeerInfo)

    def answer_pairing(self, *, same: bool) -> None:
        """Whether the digits of the last PairingComparison are those on the other machine."""
        self._call(self._stub.AnswerPairing, pb.AnswerPairingRequest(same=same))

    def rotate_key(self) -> RotationReport:
        """Give this node a new key that its old one signs for, tell the peers, and stop the daemon.

        The next start uses the new key. Peers that were not told take it from the file of the report, by
        `accept_rotation`.
        """
        reply = self._call(self._stub.RotateKey, pb.RotateKeyRequest(), deadline_s=_ROTATION_DEADLINE_S)
        return wire.from_wire(reply, RotationReport)

    def accept_rotation(self, statement: bytes) -> PeerInfo:
        """Trust a peer's new key in the place of its old one, which signed the statement.

        Raises UnknownPeer where the old one is not trusted, BadSignature, MalformedMessage, ReplayedMessage.
        """
        request = pb.AcceptRotationRequest(statement=statement)
        return wire.from_wire(self._call(self._stub.AcceptRotation, request), PeerInfo)
