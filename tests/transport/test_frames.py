"""What a stream's end looks like to the side that did not end it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from kvnet.errors import PeerUnreachable
from kvnet.identity.signing import sign_message
from kvnet.transport.frames import FrameStream
from tests.builders import SENDER


async def test_write_to_a_caller_that_left_is_told_as_that_and_as_no_bug() -> None:
    began, written = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def answer(_: Any, context: Any) -> None:
        began.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        stream = FrameStream(context, peer="bob")
        try:
            written.set_result(await stream.write_control(sign_message(SENDER, "kvnet/test/v1", b"{}")))
        except Exception as failure:
            written.set_exception(failure)

    server = grpc.aio.server()
    handlers = {"Call": grpc.stream_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/test/Call")()
        await began.wait()
        call.cancel()
        with pytest.raises(PeerUnreachable, match="bob: closed the stream"):
            await asyncio.wait_for(written, 10)
    await server.stop(None)
