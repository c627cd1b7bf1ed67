"""Small measurements for what was never used: a link by a few bytes, a model by a few tokens."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from kvnet.transport.client import PeerClient
from kvnetd.no_model import NONE
from kvnetd.services import Services

if TYPE_CHECKING:
    from kvnet.model.host import ModelHost

SMALL_NBYTES: Final = 16 << 10
LARGE_NBYTES: Final = 1 << 20
LARGE_S: Final = 0.5  # what the large probe may take, by the small one's rate
FEW_TOKENS: Final = 16
MANY_TOKENS: Final = range(32, 129)
MANY_S: Final = 0.5  # what reading many may take: whoever asks meanwhile waits for it


async def probe_link(services: Services, client: PeerClient, node_id: str, hello_s: float) -> None:
    """Measure a link that nothing was sent over yet; `hello_s` is what dialling and a hello took.

    Raises as `PeerClient.probe`.
    """
    began = time.perf_counter()
    await client.probe(os.urandom(SMALL_NBYTES))
    small_s = time.perf_counter() - began
    most = int(SMALL_NBYTES * LARGE_S / max(small_s, 1e-6))
    nbytes = min(LARGE_NBYTES, max(2 * SMALL_NBYTES, most))
    began = time.perf_counter()
    await client.probe(os.urandom(nbytes))
    large_s = time.perf_counter() - began
    byte_s = max(large_s - small_s, 0.1 * large_s) / (nbytes - SMALL_NBYTES)
    # A transfer dials as the hello did, and asks three times: offer, commit, seal.
    base_s = hello_s + 3 * small_s
    for size in (1, nbytes):
        await services.in_store(services.rates.sent, node_id, size, base_s + byte_s * size)


async def probe_reading(services: Services) -> None:
    """Let the hosted model read a few tokens, if it never read any; others go first in between."""
    if services.config.model == NONE:
        return
    digest = services.host.fingerprint.digest
    if services.rates.reading(digest).is_known:
        return
    run, host = services.runner.run, services.host
    await run(_read, host, FEW_TOKENS)  # warms up
    few_s = await run(_read, host, FEW_TOKENS)
    many = many_tokens(few_s)
    many_s = await run(_read, host, many)
    for num_tokens, seconds in ((FEW_TOKENS, few_s), (many, many_s)):
        await services.in_store(services.rates.read, digest, num_tokens, seconds)


def many_tokens(few_s: float) -> int:
    """How many tokens a model may be asked to read that takes so long for a few."""
    affordable = int(FEW_TOKENS * MANY_S / max(few_s, 1e-6))
    return min(max(affordable, MANY_TOKENS[0]), MANY_TOKENS[-1])


def _read(host: ModelHost, num_tokens: int) -> float:
    token_ids = [number % host.vocab_size for number in range(min(num_tokens, host.max_seq_len))]
    began = time.perf_counter()
    host.prefill(token_ids, host.new_cache())
    return time.perf_counter() - began
