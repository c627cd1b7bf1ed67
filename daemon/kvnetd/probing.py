"""Small measurements for what was never used: a link by a few bytes, a model by a few tokens."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from kvnet.transport.client import PeerClient
from kvnetd.no_model import NONE
from kvnetd.services import Services

if TYPE_CHECKING:
    from kvnet.model.host import ModelHost

SMALL_NBYTES: Final = 16 << 10
LARGE_NBYTES: Final = 1 << 20
LARGE_S: Final = 0.5  # what the large probe may take, by the small one's rate
TOKENS: Final = (16, 128)


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
    """Let the hosted model read a few tokens, if it never read any."""
    if services.config.model == NONE:
        return
    digest = services.host.fingerprint.digest
    if services.rates.reading(digest).is_known:
        return
    for num_tokens in TOKENS:
        num_tokens = min(num_tokens, services.host.max_seq_len)
        seconds = await services.runner.run(partial(_read, services.host, num_tokens))
        await services.in_store(services.rates.read, digest, num_tokens, seconds)


def _read(host: ModelHost, num_tokens: int) -> float:
    """The second of two readings: the first one warms up."""
    token_ids = [number % host.vocab_size for number in range(num_tokens)]
    for _ in range(2):
        began = time.perf_counter()
        host.prefill(token_ids, host.new_cache())
        seconds = time.perf_counter() - began
    return seconds
