"""The interceptor in front of every call of a peer: who calls, may it, and what it is told if it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from kvnet import wire
from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    OperatorError,
    PeerError,
    PeerNotAdded,
    PeerUnreachable,
    TooBusy,
)
from kvnet.identity.peers import Permission
from kvnet.transport.budgets import CallBudget
from kvnet.transport.gate import Gate
from kvnet.transport.security import caller_of
from kvnet.transport.tasks import Running

_log = logging.getLogger(__name__)

NAMESPACE_KEY = "kvnet-namespace-bin"
_NEEDED: dict[str, Permission | None] = {
    "/kvnet.v1.Peer/Hello": None,
    "/kvnet.v1.Peer/Push": Permission.SEND,
    "/kvnet.v1.Peer/Pull": Permission.PULL,
    "/kvnet.v1.Peer/Read": Permission.READ,
    "/kvnet.v1.Peer/Rotate": None,
    "/kvnet.v1.Peer/Probe": Permission.SEND,
}
# A reading ends by a frame of its own (frames.ReadStream.write_refusal): its caller may be in the middle of a
# write, to which grpcio loses the reason of an abort. Nothing is read meanwhile.
_GRACE_S = {Permission.READ: 0.9}

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Context], Awaitable[Any]]


class Doorman(grpc.aio.ServerInterceptor):
    """Lets a call through to its handler while its caller may; every failure becomes a status here."""

    def __init__(self, gate: Gate, running: Running) -> None:
        self._gate = gate
        self._running = running
        self._calls = CallBudget(gate.limits)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of a method with this check around it; no method is without."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC says that there is no such method
        said = dict(handler_call_details.invocation_metadata or ()).get(NAMESPACE_KEY, b"")
        namespace = said.decode(errors="replace") if isinstance(said, bytes) else said
        permission = _NEEDED[handler_call_details.method]
        make, answer = (
            (grpc.stream_stream_rpc_method_handler, handler.stream_stream)
            if handler.response_streaming
            # Else gRPC would wait for the request, as long as it takes, before anybody here is asked.
            else (grpc.stream_unary_rpc_method_handler, self._once(handler.unary_unary))
        )
        guarded = self._guard(answer, permission, namespace, streams=handler.response_streaming)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guard(
        self, answer: Answer, permission: Permission | None, namespace: str, *, streams: bool
    ) -> Answer:
        async def guarded(request: Any, context: Context) -> Any:
            with self._running.task():
                try:
                    caller, host = caller_of(context), host_of(context.peer())
                    await self._calls.turn(caller.public)
                    self._gate.check(caller.public, permission)
                    self._gate.check_namespace(namespace, who="the calling node")
                    self._gate.saw(caller, host)
                    with self._calls.open(caller.public, host, context.peer()):
                        if not streams:  # answers once, and to say that a key was rotated ends trust in it
                            return await answer(request, context)
                        # An abort sends them unless they are sent: twice, if a first write is just under way.
                        await context.send_initial_metadata(())
                        return await self._while_trusted(caller.public, permission, answer, request, context)
                except grpc.aio.AbortError:
                    raise
                except Exception as failure:
                    await _abort(context, failure)
                    raise

        return guarded

    def _once(self, answer: Answer) -> Answer:
        """One request, one answer, within the deadline."""
        deadline_s = self._gate.limits.unary_deadline_s

        async def answered(_: Any, context: Context) -> Any:
            request: Any = None
            try:
                async with asyncio.timeout(deadline_s):
                    # Whoever is trusted no longer is waited for no longer.
                    public = caller_of(context).public
                    request = await self._while_trusted(public, None, _read_one, None, context)
                    if request is grpc.aio.EOF:
                        raise MalformedMessage("the calling node: ended the call without a request")
                    return await answer(request, context)
            except TimeoutError as exc:
                if request is None:
                    raise PeerUnreachable(f"the calling node: silent for {deadline_s} s") from exc
                raise TooBusy(
                    f"the node that was called: no answer within {deadline_s} s; try again"
                ) from exc

        return answered

    async def _while_trusted(
        self, public: bytes, permission: Permission | None, answer: Answer, request: Any, context: Context
    ) -> Any:
        loop = asyncio.get_running_loop()
        grace_s = 0.0 if permission is None else _GRACE_S.get(permission, 0.0)
        try:
            # A deadline that is set when trust ends: what it cancels it tells from any other cancellation.
            async with asyncio.timeout(None) as until:
                with self._gate.open(public, lambda: until.reschedule(loop.time() + grace_s), permission):
                    return await answer(request, context)
        except TimeoutError as exc:
            if not until.expired():
                raise
            self._gate.check(public, permission)  # says what was lost
            raise PeerNotAdded("trust was withdrawn meanwhile, and given back; call again") from exc


async def _read_one(_: Any, context: Context) -> Any:
    return await context.read()


def host_of(peer: str) -> str:
    """`ipv4:10.0.0.1:4711` without its kind and port."""
    return peer.partition(":")[2].rpartition(":")[0] or peer


async def _abort(context: Context, failure: Exception) -> None:
    # A peer learns that something is wrong here, not what: those messages may hold paths.
    if isinstance(failure, OperatorError):
        _log.error("a call by a peer failed: %s", failure.message)
        failure = PeerError("the node cannot serve this now; its operator must look")
    elif not isinstance(failure, KvnetError):
        _log.error("a call by a peer failed by a bug", exc_info=failure)
        failure = KvnetError("the node met a bug")
    code, details, metadata = wire.error_to_status(failure)
    await context.abort(code, details, metadata)
