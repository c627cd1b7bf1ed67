"""A node as a program sees it: remember, send, ask. Every call goes to the daemon on this machine."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from kvnet import wire
from kvnet.api import (
    Answer,
    Explanation,
    InboxMessage,
    MemoryCheck,
    MemoryInfo,
    NodeStatus,
    PeerInfo,
    Progress,
    SendReport,
)
from kvnet.client._async.deliveries import AsyncDeliveryCalls
from kvnet.client._async.pairing import AsyncPairingCalls
from kvnet.client.connect import id_of, ids_of
from kvnet.errors import RequestError
from kvnet.texts import read_text, require_text
from kvnet.v1 import control_pb2 as pb


class AsyncNode(AsyncDeliveryCalls, AsyncPairingCalls):
    """A connection to the local daemon.

    `agent` names who is calling: its messages are sent under this name and its inbox is read.
    `home` is the daemon's state folder (default: KVNET_HOME or the platform's data folder).
    Every method raises KvnetError subclasses; NotRunning when no daemon answers.
    """

    async def status(self) -> NodeStatus:
        """Who this node is and what it hosts."""
        return wire.from_wire(await self._call(self._stub.Status, pb.StatusRequest()), NodeStatus)

    async def shutdown(self) -> int:
        """Ask the daemon to stop; returns its process id."""
        reply = await self._call(self._stub.Shutdown, pb.ShutdownRequest())
        return int(reply.pid)

    async def remember(
        self,
        text: str | None = None,
        *,
        file: str | Path | None = None,
        name: str = "",
        **options: Any,
    ) -> MemoryInfo:
        """Let the model read a text, or a file's text, and keep what it read as a memory.

        Options are those of `remember_stream`.
        """
        async with aclosing(self.remember_stream(text, file=file, name=name, **options)) as steps:
            async for step in steps:
                if isinstance(step, MemoryInfo):
                    return step
        raise AssertionError("the daemon ended the reading without a memory")

    async def remember_stream(
        self,
        text: str | None = None,
        *,
        file: str | Path | None = None,
        name: str = "",
        codec: str = "",
        dtype: str = "",
        compression: str = "",
        level: int = 0,
        attention: bool = False,
        prune: bool = False,
        domain: str = "",
        topic: str = "",
        language: str = "",
        keep_text: bool | None = None,
        after: str | MemoryInfo = "",
    ) -> AsyncGenerator[Progress | MemoryInfo, None]:
        """`remember`, yielding a Progress per layer and the memory last.

        `codec` is one of `kvnet.codec.presets.CODECS`, `exact` if not given; `dtype` casts first.
        `compression` and its `level`, for zstd and split, replace the codec's own. `attention` computes
        attention metadata; `prune` sets the heads to zero that it shows as focused, which does damage
        (DESIGN: what is wrong in the seeds). `domain`, `topic` and `language` are words for people.
        `keep_text` keeps the text beside the memory, on this node alone; the daemon's setting if None.
        `after` is a memory behind which the text is read: what is made goes on behind that one, and holds no
        more than the new text.
        """
        request = pb.RememberRequest(
            text=require_text(_text_of(text, file), what="text"),
            name=require_text(name, what="name"),
            codec=codec,
            dtype=dtype,
            compression=compression,
            level=level,
            attention=attention,
            prune=prune,
            domain=require_text(domain, what="domain"),
            topic=require_text(topic, what="topic"),
            language=require_text(language, what="language"),
            keep_text=keep_text,
            after=id_of(after) if after else "",
        )
        async for event in self._stream(self._stub.Remember, request):
            if event.HasField("memory"):
                yield wire.from_wire(event.memory, MemoryInfo)
            else:
                yield wire.from_wire(event.progress, Progress)

    async def memories(self, *, all: bool = False) -> list[MemoryInfo]:
        """Every memory in this node's store, oldest first; with `all`, also other codings of them."""
        reply = await self._call(self._stub.ListMemories, pb.ListMemoriesRequest(all=all))
        return [wire.from_wire(info, MemoryInfo) for info in reply.memories]

    async def forget(self, memory: str | MemoryInfo) -> MemoryInfo:
        """Remove a memory from the store; returns what it was."""
        request = pb.ForgetRequest(memory=id_of(memory))
        return wire.from_wire(await self._call(self._stub.Forget, request), MemoryInfo)

    async def check_memory(
        self, memory: str | MemoryInfo, *, text: str = "", samples: int = 0, seed: int | None = None
    ) -> MemoryCheck:
        """Compare a memory of the hosted model with what that model makes of its text, read now.

        `text` is the one kept beside it, or else read out of it, if not given. `samples` slots are compared,
        all of them if 0, chosen by `seed`.
        """
        request = pb.CheckMemoryRequest(
            memory=id_of(memory), text=require_text(text, what="text"), samples=samples, seed=seed
        )
        return wire.from_wire(await self._call(self._stub.CheckMemory, request), MemoryCheck)

    async def pull(self, memory: str, peer: str) -> SendReport:
        """Fetch one of a peer's memories by its id."""
        async for event in self._stream(self._stub.Pull, pb.PullRequest(memory=memory, peer=peer)):
            return wire.from_wire(event.report, SendReport)
        raise AssertionError("the daemon ended the transfer without a report")

    async def explain(self, memory: str | MemoryInfo, *, model: str = "") -> Explanation:
        """How a memory would reach the hosted model, or another one on this machine, and why so."""
        request = pb.ExplainRequest(memory=id_of(memory), model=require_text(model, what="model"))
        return wire.from_wire(await self._call(self._stub.Explain, request), Explanation)

    async def ask(
        self, prompt: str, memory: str | MemoryInfo | Sequence[str | MemoryInfo] = "", **options: Any
    ) -> Answer:
        """Answer a prompt, after a memory or several if given. Options are those of `ask_stream`."""
        async with aclosing(self.ask_stream(prompt, memory, **options)) as steps:
            async for step in steps:
                if isinstance(step, Answer):
                    return step
        raise AssertionError("the daemon ended the generation without an answer")

    async def ask_stream(
        self,
        prompt: str,
        memory: str | MemoryInfo | Sequence[str | MemoryInfo] = "",
        *,
        context: str = "",
        peer: str = "",
        codec: str = "",
        align: str = "",
        max_tokens: int = 0,
        temperature: float = 0.0,
        top_p: float = 0.0,
        stop: tuple[str, ...] = (),
        seed: int = 0,
        stream_to: str = "",
        name: str = "",
        verify_text: bool = False,
    ) -> AsyncGenerator[str | Answer, None]:
        """Pieces of text as they are certain, then the Answer with its kv report.

        Several memories are put one behind the other, in the order given. `align` says what may be done with
        those of other models, as `kvnet.compat.Policy` names it: `align`, `text` or `error`. `context` is a
        text that this node reads before the prompt, instead of a memory. With `peer`, that node reads the
        context, or has the memory (by its full id), and the answer begins while it arrives, in the codec that
        is named. With `stream_to`, that peer gets what comes of it while it is made, as memories behind one
        another: `name` points at the newest one here, and `NODE/name` there, NODE being what the peer calls
        this node. Zero means the daemon's default: 64 tokens, greedy. With `verify_text` a memory that is not
        what the model makes of its text is refused.
        """
        first, *others = ids_of(memory) or [""]
        request = pb.AskRequest(
            prompt=require_text(prompt, what="prompt"),
            memory=first,
            memories=others,
            align=require_text(align, what="align"),
            context=require_text(context, what="text"),
            peer=require_text(peer, what="peer"),
            codec=require_text(codec, what="codec"),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            stream_to=require_text(stream_to, what="stream_to"),
            name=require_text(name, what="name"),
            verify_text=verify_text,
        )
        async for event in self._stream(self._stub.Ask, request):
            if event.HasField("answer"):
                yield wire.from_wire(event.answer, Answer)
            else:
                yield event.delta

    async def peers(self, *, probe: bool = False) -> list[PeerInfo]:
        """Added peers and nodes seen by mDNS; with `probe`, each added one is dialled."""
        reply = await self._call(self._stub.ListPeers, pb.ListPeersRequest(probe=probe))
        return [wire.from_wire(info, PeerInfo) for info in reply.peers]

    async def add_peer(self, address: str = "", *, node_id: str, name: str = "") -> PeerInfo:
        """Add a node by its id; without an address it is found by mDNS."""
        request = pb.AddPeerRequest(address=address, node_id=node_id, name=name)
        return wire.from_wire(await self._call(self._stub.AddPeer, request), PeerInfo)

    async def remove_peer(self, peer: str) -> PeerInfo:
        """Remove a peer: nothing is taken from it any more."""
        request = pb.RemovePeerRequest(peer=peer)
        return wire.from_wire(await self._call(self._stub.RemovePeer, request), PeerInfo)

    async def show_peer(self, peer: str) -> PeerInfo:
        """All about one peer, dialled at every address it is known by."""
        request = pb.ShowPeerRequest(peer=peer)
        return wire.from_wire(await self._call(self._stub.ShowPeer, request), PeerInfo)

    async def trust_peer(
        self, peer: str, *, permissions: Sequence[str] | None = None, quota_nbytes: int | None = None
    ) -> PeerInfo:
        """Trust a peer, again if it was revoked, and end its alarm; what is given replaces what it may."""
        request = pb.TrustPeerRequest(
            peer=peer,
            permissions=permissions or (),
            keep_permissions=permissions is None,
            quota_nbytes=quota_nbytes,
        )
        return wire.from_wire(await self._call(self._stub.TrustPeer, request), PeerInfo)

    async def revoke_peer(self, peer: str) -> PeerInfo:
        """Trust a peer no longer: what is open with it ends within a second."""
        request = pb.RevokePeerRequest(peer=peer)
        return wire.from_wire(await self._call(self._stub.RevokePeer, request), PeerInfo)

    async def inbox(self, *, all: bool = False, every_agent: bool = False) -> list[InboxMessage]:
        """Messages for this agent that were not acknowledged; with `all`, the others too.

        `every_agent` looks at all agents' messages on this node.
        """
        request = pb.InboxRequest(agent=self.agent, all=all, every_agent=every_agent)
        reply = await self._call(self._stub.Inbox, request)
        return [wire.from_wire(message, InboxMessage) for message in reply.messages]

    async def acknowledge(self, message: str | InboxMessage) -> InboxMessage:
        """Say that a message was dealt with; until then it stays in the inbox."""
        wanted = message.id if isinstance(message, InboxMessage) else message
        reply = await self._call(self._stub.Acknowledge, pb.AcknowledgeRequest(message=wanted))
        return wire.from_wire(reply, InboxMessage)

    async def events(
        self, *, follow: bool = True, past: bool = False
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Events of the node's log, as they happen; with `past`, those before first."""
        request = pb.EventsRequest(follow=follow, past=past)
        async for event in self._stream(self._stub.Events, request):
            yield json.loads(event.line)


def _text_of(text: str | None, file: str | Path | None) -> str:
    if (text is None) == (file is None):
        raise RequestError("remember: give a text or a file, one of the two")
    return read_text(str(file)) if text is None else text
