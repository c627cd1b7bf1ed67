"""The part of the control API that makes two nodes know each other. No logic of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from kvnet import wire
from kvnet.api import PairingAttempt, PairingComparison, PairingInvitation
from kvnet.v1 import control_pb2 as pb
from kvnetd.actions import rotate
from kvnetd.actions.pair import Pairings, PairRequest
from kvnetd.control_alignments import AlignmentService, Context
from kvnetd.services import Services


class PairingService(AlignmentService):
    """Pairing, and peers whose keys change."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._pairings = Pairings(services)

    async def Pair(self, request: pb.PairRequest, context: Context) -> AsyncGenerator[pb.PairEvent, None]:
        steps = self._pairings.pair(wire.from_wire(request, PairRequest))
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, PairingInvitation):
                    yield pb.PairEvent(invitation=wire.to_wire(step, pb.PairingInvitation))
                elif isinstance(step, PairingAttempt):
                    yield pb.PairEvent(attempt=wire.to_wire(step, pb.PairingAttempt))
                elif isinstance(step, PairingComparison):
                    yield pb.PairEvent(comparison=wire.to_wire(step, pb.PairingComparison))
                else:
                    yield pb.PairEvent(peer=wire.to_wire(step, pb.PeerInfo))

    async def AnswerPairing(
        self, request: pb.AnswerPairingRequest, context: Context
    ) -> pb.AnswerPairingReply:
        self._pairings.answer(same=request.same)
        return pb.AnswerPairingReply()

    async def AcceptRotation(self, request: pb.AcceptRotationRequest, context: Context) -> pb.PeerInfo:
        return wire.to_wire(await rotate.accept_rotation(self._services, request.statement), pb.PeerInfo)
