"""The control API on the Unix socket: protobuf in, actions called, protobuf out. No logic of its own."""

from __future__ import annotations

import functools
import hmac
import inspect
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from kvnet import wire
from kvnet.api import Progress
from kvnet.errors import KvnetError
from kvnet.paths import Home
from kvnet.transport.frames import MAX_MESSAGE_NBYTES
from kvnet.transport.tasks import Running
from kvnet.v1 import control_pb2 as pb
from kvnet.v1 import control_pb2_grpc
from kvnetd import encoding
from kvnetd.actions import files, memories, packages, peers, rotate, send, status
from kvnetd.actions.dispatch import Dispatcher
from kvnetd.control_alignments import Context
from kvnetd.control_deliveries import DeliveryService
from kvnetd.control_pairing import PairingService
from kvnetd.services import Services, utc_now
from kvnetd.transfers import Transfers

# What only a model can do: refused on a node that hosts none, before anything is imported for it.
_NEEDS_MODEL = frozenset(
    {
        "Ask",
        "Calibrate",
        "CheckMemory",
        "EvaluateAlignment",
        "Explain",
        "FitAlignment",
        "MakePort",
        "Remember",
        "TrainAlignment",
    }
)
TOKEN_METADATA_KEY = "kvnet-token"  # noqa: S105  # a header's name
_log = logging.getLogger(__name__)


class ControlService(DeliveryService, PairingService):
    """One method per RPC; each is an action and a conversion."""

    def __init__(
        self, services: Services, transfers: Transfers, dispatcher: Dispatcher, shutdown: Callable[[], None]
    ) -> None:
        super().__init__(services, transfers, dispatcher)
        self._shutdown = shutdown
        self.require_model = services.require_model

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.NodeStatus:
        return wire.to_wire(await status.status(self._services), pb.NodeStatus)

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownReply:
        self._shutdown()
        return pb.ShutdownReply(pid=os.getpid())

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Context) -> pb.RotationReport:
        report = await rotate.rotate_key(self._services, self._shutdown)
        return wire.to_wire(report, pb.RotationReport)

    async def Remember(
        self, request: pb.RememberRequest, context: Context
    ) -> AsyncGenerator[pb.RememberEvent, None]:
        from kvnetd.actions import remember

        steps = remember.remember(self._services, wire.from_wire(request, remember.Reading))
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress):
                    yield pb.RememberEvent(progress=wire.to_wire(step, pb.Progress))
                else:
                    yield pb.RememberEvent(memory=wire.to_wire(step, pb.MemoryInfo))

    async def ListMemories(self, request: pb.ListMemoriesRequest, context: Context) -> pb.MemoryList:
        found = await memories.list_memories(self._services, encodings=request.all)
        return pb.MemoryList(memories=[wire.to_wire(info, pb.MemoryInfo) for info in found])

    async def ShowMemory(self, request: pb.ShowMemoryRequest, context: Context) -> pb.MemoryInfo:
        record = await memories.find(self._services, request.memory)
        return wire.to_wire(await memories.describe(self._services, record), pb.MemoryInfo)

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.MemoryInfo:
        return wire.to_wire(await memories.forget(self._services, request.memory), pb.MemoryInfo)

    async def CheckMemory(self, request: pb.CheckMemoryRequest, context: Context) -> pb.MemoryCheck:
        from kvnetd.actions import check

        found = await check.check_memory(self._services, wire.from_wire(request, check.Wanted))
        return wire.to_wire(found, pb.MemoryCheck)

    async def Export(self, request: pb.ExportRequest, context: Context) -> AsyncGenerator[pb.Piece, None]:
        record = await packages.coded(self._services, request.memory, request.codec)
        pieces = files.export(self._services, record.id, basis=request.basis)
        async with aclosing(pieces):
            async for data in pieces:
                yield pb.Piece(data=data)

    async def Import(
        self, request_iterator: AsyncIterator[pb.ImportPiece], context: Context
    ) -> pb.MemoryInfo:
        async def pieces() -> AsyncGenerator[tuple[str, bytes], None]:
            async for piece in request_iterator:
                which = piece.WhichOneof("piece") or "memory"
                yield which, getattr(piece, which)

        return wire.to_wire(await files.import_(self._services, pieces()), pb.MemoryInfo)

    async def Lineage(self, request: pb.LineageRequest, context: Context) -> pb.MemoryLineage:
        found = await packages.lineage(self._services, request.memory, measured=request.quality)
        return wire.to_wire(found, pb.MemoryLineage)

    async def SignPackage(self, request: pb.SignPackageRequest, context: Context) -> pb.SignPackageReply:
        signed = packages.sign(self._services, request.body)
        return pb.SignPackageReply(signer=signed.signer, signature=signed.signature)

    async def Calibrate(self, request: pb.CalibrateRequest, context: Context) -> pb.Calibration:
        found = await encoding.calibrate(self._services, tuple(request.texts))
        return wire.to_wire(found, pb.Calibration)

    async def Pull(self, request: pb.PullRequest, context: Context) -> AsyncGenerator[pb.SendEvent, None]:
        report = await send.pull(
            self._services, self._transfers, memory=request.memory, peer_name=request.peer
        )
        yield pb.SendEvent(report=wire.to_wire(report, pb.SendReport))

    async def Ask(self, request: pb.AskRequest, context: Context) -> AsyncGenerator[pb.AskEvent, None]:
        from kvnetd.actions import ask, ask_live, ask_peer

        question = wire.from_wire(request, ask.Question)
        if question.stream_to:
            steps = ask_live.ask_live(self._services, self._transfers, self._dispatcher, question)
        elif question.peer:
            steps = ask_peer.ask_peer(self._services, self._transfers, question)
        else:
            steps = ask.ask(self._services, question)
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, str):
                    yield pb.AskEvent(delta=step)
                else:
                    yield pb.AskEvent(answer=wire.to_wire(step, pb.Answer))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        from kvnetd.actions import explain

        found = await explain.explain(self._services, request.memory, model=request.model)
        return wire.to_wire(found, pb.Explanation)

    async def ListPeers(self, request: pb.ListPeersRequest, context: Context) -> pb.PeerList:
        found = await peers.list_peers(self._services, probe=request.probe)
        return pb.PeerList(peers=[wire.to_wire(info, pb.PeerInfo) for info in found])

    async def AddPeer(self, request: pb.AddPeerRequest, context: Context) -> pb.PeerInfo:
        info = await peers.add_peer(
            self._services, address=request.address, node_id=request.node_id, name=request.name
        )
        return wire.to_wire(info, pb.PeerInfo)

    async def RemovePeer(self, request: pb.RemovePeerRequest, context: Context) -> pb.PeerInfo:
        return wire.to_wire(await peers.remove_peer(self._services, request.peer), pb.PeerInfo)

    async def ShowPeer(self, request: pb.ShowPeerRequest, context: Context) -> pb.PeerInfo:
        return wire.to_wire(await peers.show_peer(self._services, request.peer), pb.PeerInfo)

    async def TrustPeer(self, request: pb.TrustPeerRequest, context: Context) -> pb.PeerInfo:
        info = await peers.trust_peer(
            self._services,
            request.peer,
            permissions=None if request.keep_permissions else tuple(request.permissions),
            quota_nbytes=request.quota_nbytes if request.HasField("quota_nbytes") else None,
        )
        return wire.to_wire(info, pb.PeerInfo)

    async def RevokePeer(self, request: pb.RevokePeerRequest, context: Context) -> pb.PeerInfo:
        return wire.to_wire(await peers.revoke_peer(self._services, request.peer), pb.PeerInfo)

    async def Inbox(self, request: pb.InboxRequest, context: Context) -> pb.MessageList:
        services = self._services
        found = await services.in_store(
            services.ledger.messages,
            agent=None if request.every_agent else request.agent,
            unread_only=not request.all,
        )
        return pb.MessageList(messages=[wire.to_wire(message, pb.InboxMessage) for message in found])

    async def Acknowledge(self, request: pb.AcknowledgeRequest, context: Context) -> pb.InboxMessage:
        services = self._services
        message = await services.in_store(services.ledger.acknowledge, request.message, at=utc_now())
        return wire.to_wire(message, pb.InboxMessage)

    async def Events(self, request: pb.EventsRequest, context: Context) -> AsyncGenerator[pb.Event, None]:
        lines = status.events(self._services, follow=request.follow, past=request.past)
        async with aclosing(lines):
            async for line in lines:
                yield pb.Event(line=line)


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses every call without the token, whoever could open the socket."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        shown = dict(handler_call_details.invocation_metadata or ()).get(TOKEN_METADATA_KEY, "")
        if not hmac.compare_digest(str(shown).encode(), self._token.encode()):
            return grpc.unary_unary_rpc_method_handler(_refuse)
        return await continuation(handler_call_details)


class ControlServer:
    """The control service on the home's Unix socket."""

    def __init__(self, service: ControlService, home: Home, token: str) -> None:
        self._home = home
        self._running = Running()
        _guard_methods(service, self._running)
        self._server = grpc.aio.server(
            interceptors=(_TokenCheck(token),),
            options=(("grpc.max_receive_message_length", 16 * MAX_MESSAGE_NBYTES),),
        )
        control_pb2_grpc.add_ControlServicer_to_server(service, self._server)

    async def start(self) -> None:
        """Bind the socket, for this user only."""
        self._home.socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._home.socket}")
        await self._server.start()
        self._home.socket.chmod(0o600)

    async def stop(self, grace_s: float) -> None:
        """Let calls finish within `grace_s`, end the others, and wait until they have ended."""
        await self._server.stop(grace_s)
        await self._running.drained()
        self._home.socket.unlink(missing_ok=True)


def _guard_methods(service: ControlService, running: Running) -> None:
    """Wrap every RPC so that whatever it raises leaves as a status that carries a KvnetError whole."""
    for name, method in inspect.getmembers(ControlService, inspect.isfunction):
        if name[0].isupper():
            wrap = _stream_guard if inspect.isasyncgenfunction(method) else _unary_guard
            check = service.require_model if name in _NEEDS_MODEL else _nothing
            setattr(service, name, wrap(getattr(service, name), running, check))


def _nothing() -> None:
    """What most calls have to be checked for."""


def _unary_guard(
    method: Callable[..., Awaitable[Any]], running: Running, check: Callable[[], None]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def guarded(request: Any, context: Context) -> Any:
        with running.task():
            try:
                check()
                return await method(request, context)
            except Exception as failure:  # what is not ours is a bug: told as one, written to the log
                await _abort(context, failure)

    return guarded


def _stream_guard(
    method: Callable[..., AsyncGenerator[Any, None]], running: Running, check: Callable[[], None]
) -> Callable[..., AsyncGenerator[Any, None]]:
    @functools.wraps(method)
    async def guarded(request: Any, context: Context) -> AsyncGenerator[Any, None]:
        with running.task():
            try:
                check()
                async with aclosing(method(request, context)) as items:
                    async for item in items:
                        yield item
            except Exception as failure:
                await _abort(context, failure)

    return guarded


async def _abort(context: Context, failure: Exception) -> None:
    if not isinstance(failure, KvnetError):
        _log.error("a call failed by a bug", exc_info=failure)
        failure = KvnetError("the daemon met a bug; its log tells more, please report it")
    code, details, metadata = wire.error_to_status(failure)
    await context.abort(code, details, metadata)


async def _refuse(request: Any, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the control token is missing or wrong")
