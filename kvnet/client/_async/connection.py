"""The connection to the daemon on this machine: calls, streams, and what their failures mean."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from kvnet.client.connect import CALL_DEADLINE_S, CHANNEL_OPTIONS, TOKEN_METADATA_KEY, locate, translated
from kvnet.v1 import control_pb2_grpc


class AsyncConnection:
    """What AsyncNode's methods call through."""

    def __init__(self, *, agent: str = "", home: str | Path | None = None) -> None:
        self.agent = agent
        self._home, token = locate(home)
        self._metadata = ((TOKEN_METADATA_KEY, token),)
        self._channel = grpc.aio.insecure_channel(f"unix:{self._home.socket}", options=CHANNEL_OPTIONS)
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the daemon goes on."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any, *, deadline_s: float | None = CALL_DEADLINE_S) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=deadline_s)
        except grpc.RpcError as exc:
            raise translated(self._home, exc) from exc

    async def _stream(self, method: Any, request: Any) -> AsyncGenerator[Any, None]:
        call = method(request, metadata=self._metadata)
        try:
            async for event in call:
                yield event
        except grpc.RpcError as exc:
            raise translated(self._home, exc) from exc
        finally:
            call.cancel()
