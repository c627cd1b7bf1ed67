"""The model on this node: it reads texts into memories, takes memories in, and generates.

Not thread-safe: `ModelRunner` owns it. Knows no peers, no event loop, no files but its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import torch

from kvnet.codec.basis import Basis
from kvnet.errors import RequestError, UnsupportedModel
from kvnet.format.attention import pack_attention
from kvnet.model.arriving import ArrivingMemory
from kvnet.model.attention import AttentionRecorder, recording, refuse_unrecordable
from kvnet.model.cache import (
    Cache,
    LayerKV,
    awaiting_cache,
    build_cache,
    cache_seq_len,
    export_layers,
    extend_cache,
    layers_between,
)
from kvnet.model.causal import CausalModel
from kvnet.model.fingerprint import fingerprint_of
from kvnet.model.generation import Generated, TextDelta, decode, never, refuse_cancelled
from kvnet.model.loader import LoadedModel, ModelSpec, load
from kvnet.model.memory import (
    Prefix,
    pack_memory,
    refuse_incompatible,
    refuse_other_geometry,
    unpack_memory,
)
from kvnet.model.sampling import Sampling
from kvnet.model.segments import Cutter, Segment, interleaved
from kvnet.model.slots import Slots, to_layers
from kvnet.model.text import leading_bos, tokenize_behind, tokenize_context, tokenize_question
from kvnet.types import Fingerprint, RawMemory

_RECORDING_PROBE: Final = 8  # tokens that show whether the model can be recorded


class ModelHost(CausalModel):
    """A loaded model with its tokenizer and fingerprint: texts and memories in, memories and texts out."""

    def __init__(self, loaded: LoadedModel, fingerprint: Fingerprint) -> None:
        super().__init__(loaded)
        self.fingerprint = fingerprint
        self.tokenizer = loaded.tokenizer
        self._sink_ids = tuple(leading_bos(loaded.tokenizer))
        self.eos_ids = _eos_ids(loaded)
        self._is_recordable = False  # nobody has tried yet

    @classmethod
    def load(cls, spec: ModelSpec, cache_dir: Path) -> Self:
        """Load a model; `cache_dir` keeps file digests and random-weight checkpoints.

        Raises UnknownModel, UnsupportedModel, or ConfigError for a device that is not here.
        """
        loaded = load(spec, cache_dir=cache_dir)
        fingerprint = fingerprint_of(
            loaded.folder, model=loaded.name, quantization=spec.quantization, cache_dir=cache_dir
        )
        return cls(loaded, fingerprint)

    def tokenize_context(self, text: str) -> list[int]:
        """Ids of a text that begins at position 0, with the BOS if the model has one."""
        return tokenize_context(self.tokenizer, text)

    def tokenize_behind(self, text: str) -> list[int]:
        """Ids of a text that goes on behind others."""
        return tokenize_behind(self.tokenizer, text)

    def tokenize_question(self, prompt: str, *, after_memory: bool) -> list[int]:
        """Ids of a prompt, as a user turn if the model is a chat model; no BOS after a memory."""
        return tokenize_question(self.tokenizer, prompt, after_memory=after_memory)

    def capture(
        self,
        text: str,
        *,
        on_layer: Callable[[LayerKV], None] | None = None,
        token_block: int | None = None,
        cancelled: Callable[[], bool] = never,
        attention: bool = False,
        prefix: Prefix | None = None,
    ) -> RawMemory:
        """Read `text`, behind `prefix` if there is one, and return the memory of it.

        `on_layer` sees each layer once, while the next one is still being computed. `token_block`
        bounds the activations of a long text; layers are then complete only in the last block.
        With `attention` the memory also tells what each layer attended to (FORMAT.md §8.4), and its keys
        and values differ from those of a plain capture by rounding.
        Raises RequestError for an empty text, TextTooLong, Cancelled, and UnsupportedModel before anything
        is read if attention metadata is asked of a model that cannot be recorded.
        """
        if not text.strip():
            raise RequestError("the text is empty; a memory needs something to remember")
        token_ids = self.tokenize_behind(text) if prefix else self.tokenize_context(text)
        return self.capture_tokens(
            token_ids,
            on_layer=on_layer,
            token_block=token_block,
            cancelled=cancelled,
            attention=attention,
            prefix=prefix,
        )

    def capture_tokens(
        self,
        token_ids: Sequence[int],
        *,
        on_layer: Callable[[LayerKV], None] | None = None,
        token_block: int | None = None,
        cancelled: Callable[[], bool] = never,
        attention: bool = False,
        prefix: Prefix | None = None,
    ) -> RawMemory:
        """`capture` of a text's tokens."""
        num_before = prefix.num_tokens if prefix else 0
        num_positions = num_before + len(token_ids)
        self._refuse_too_long(num_positions, "the text has")

        def on_update(layer: LayerKV) -> None:
            refuse_cancelled(cancelled)
            if on_layer is not None and layer.keys.shape[-2] == num_positions:
                on_layer(layer)

        cache = self.new_cache(on_update, prefix.layers if prefix else ())
        with self._recording(wanted=attention) as recorder:
            self.prefill(token_ids, cache, token_block=token_block or len(token_ids))
        return pack_memory(
            layers_between(export_layers(cache), num_before, num_positions),
            fingerprint=self.fingerprint,
            geometry=self.geometry,
            token_ids=token_ids,
            attention=[pack_attention(layer) for layer in recorder.metadata()],
            base=(num_before, prefix.digest if prefix else ""),
        )

    def refuse_too_long(self, token_ids: Sequence[int]) -> None:
        """Raise TextTooLong for more tokens than the model holds."""
        self._refuse_too_long(len(token_ids), "the text has")

    def read_open(
        self,
        token_ids: Sequence[int],
        on_update: Callable[[LayerKV], None],
        *,
        before: Sequence[LayerKV] = (),
        token_block: int | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Read tokens and keep nothing: `on_update` sees each layer, with all positions so far, as it fills.

        `before` are the layers of what stands before them; their positions are shown too.
        Raises RequestError for no tokens, TextTooLong, Cancelled.
        """
        if not token_ids:
            raise RequestError("the text is empty; a memory needs something to remember")
        num_before = before[0].keys.shape[-2] if before else 0
        self._refuse_too_long(num_before + len(token_ids), "the text has")

        def show(layer: LayerKV) -> None:
            refuse_cancelled(cancelled)
            on_update(layer)

        cache = self.new_cache(show, before)
        self.prefill(token_ids, cache, token_block=token_block or len(token_ids))

    @contextmanager
    def _recording(self, *, wanted: bool) -> Iterator[AttentionRecorder]:
        """A recording of what is read inside, or a recorder that stays empty."""
        if not wanted:
            yield AttentionRecorder()
            return
        if not self._is_recordable:
            probe = range(min(_RECORDING_PROBE, self.max_seq_len))
            refuse_unrecordable(self._model, lambda: self.all_logits(probe, self.new_cache()))
            self._is_recordable = True
        with recording(self._model) as recorder:
            yield recorder

    @property
    def num_sinks(self) -> int:
        """Tokens that this model puts before every text by itself: its BOS, or none."""
        return len(self._sink_ids)

    def sink_cache(self) -> Cache:
        """A fresh cache that holds this model's own first token, if it has one."""
        cache = self.new_cache()
        if self._sink_ids:
            self.prefill(self._sink_ids, cache)
        return cache

    def inject(self, memory: RawMemory, *, basis: Basis | None = None) -> Cache:
        """A fresh cache holding the memory; the memory itself stays as it is, however often it is used.

        `basis` is the calibration that a transform-coded memory was coded with.
        Raises IncompatibleModel (with every differing field), TextTooLong, and what `unpack_memory` raises.
        """
        refuse_incompatible(memory.header, self.geometry)
        self._refuse_too_long(memory.header.seq_len, "the memory has")
        layers = unpack_memory(memory, dtype=self.geometry.dtype, device=self.device, basis=basis)
        return build_cache(layers, self._config)

    def inject_arriving(self, arriving: ArrivingMemory) -> Cache:
        """A cache that waits for each layer of a memory on its way in when a pass comes to it.

        Raises IncompatibleModel, TextTooLong. What the pass raises: see `ArrivingMemory.layer`.
        """
        header = arriving.header
        refuse_incompatible(replace(header, start_pos=0), self.geometry)
        self._refuse_too_long(arriving.num_positions, "the memory has")
        return awaiting_cache(self._config, arriving.num_positions, arriving.layer)

    def inject_slots(self, slots: Slots) -> Cache:
        """A fresh cache: this model's own first token, then `slots` at their positions behind it.

        Raises IncompatibleModel for slots of another geometry, TextTooLong, and UnsupportedModel for slots
        with gaps in a model that cannot be told positions.
        """
        refuse_other_geometry(slots.geometry, self.geometry, "a memory taken apart", "map it first")
        if slots.num_slots < slots.span and not self.takes_positions:
            raise UnsupportedModel(
                f"{self.name} takes no positions, and {slots.span - slots.num_slots} of the memory's "
                f"{slots.span} slots are left out; send the whole memory"
            )
        self._refuse_too_long(self.num_sinks + slots.span, "the memory has")
        layers = to_layers(slots, num_sinks=self.num_sinks, dtype=self._model.dtype)
        return extend_cache(self.sink_cache(), layers, self.device)

    def behind_sinks(self, layers: Sequence[LayerKV]) -> tuple[LayerKV, ...]:
        """`layers` with this model's own first token before them, through which gradients flow."""
        if not self.num_sinks:
            return tuple(layers)
        return tuple(
            LayerKV(
                own.layer_idx,
                torch.cat((own.keys, other.keys.to(own.keys)), -2),
                torch.cat((own.values, other.values.to(own.values)), -2),
            )
            for own, other in zip(export_layers(self.sink_cache()), layers, strict=True)
        )

    def generate(
        self,
        prompt: str,
        *,
        memory: RawMemory | None = None,
        basis: Basis | None = None,
        slots: Slots | None = None,
        arriving: ArrivingMemory | None = None,
        context: str | None = None,
        sampling: Sampling | None = None,
        cancelled: Callable[[], bool] = never,
        segment_tokens: int = 0,
    ) -> Iterator[TextDelta | Segment | Generated]:
        """Answer `prompt`, after a memory, or after a `context` that is read here, or after nothing.

        `basis` is the memory's, as for `inject`; `slots` stand for memories that were mapped or joined;
        `arriving` is a memory that need not be there yet: the prompt goes through each layer as it comes.
        Yields TextDelta as text becomes certain, and Generated last; with `segment_tokens` also a Segment of
        keys and values behind the memory whenever so many tokens were generated, and at the end.
        Raises RequestError, TextTooLong, Cancelled, and what `inject` raises.
        """
        started = time.perf_counter()
        sampling = sampling or Sampling()
        follows = memory is not None or slots is not None or arriving is not None
        token_ids = self._recomputed_ids(prompt, follows=follows, context=context)
        num_sinks = self.num_sinks if slots else 0
        num_positions, num_remembered = _extent(memory, slots, arriving, num_sinks)
        self._refuse_too_long(
            num_positions + len(token_ids) + sampling.max_tokens,
            f"memory ({num_positions}), prompt ({len(token_ids)}) and reply ({sampling.max_tokens}) have",
        )
        if arriving is not None:
            cache = self.inject_arriving(arriving)
        elif slots is not None:
            cache = self.inject_slots(slots)
        else:
            cache = self.inject(memory, basis=basis) if memory else self.new_cache()
        num_gaps = num_positions - num_sinks - num_remembered
        logits = self.prefill(token_ids, cache, cancelled=cancelled, num_gaps=num_gaps)
        reused_tokens = cache_seq_len(cache) - len(token_ids) - num_sinks
        if reused_tokens != num_remembered:
            raise AssertionError(f"{reused_tokens} positions were reused, the memory has {num_remembered}")
        cutter = Cutter(cache, num_positions, segment_tokens) if segment_tokens else None
        if cutter:
            cutter.prompt(token_ids)
        num_fed = 0

        def step(token_id: int) -> torch.Tensor:
            nonlocal num_fed
            logits = self.next_logits([token_id], cache, num_gaps=num_gaps)
            num_fed += 1
            if cutter:
                cutter.generated(token_id)
            return logits

        pieces = decode(
            logits,
            step,
            tokenizer=self.tokenizer,
            eos_ids=self.eos_ids,
            sampling=sampling,
            cancelled=cancelled,
        )
        continuation = yield from interleaved(pieces, cutter)
        if cutter:
            for token_id in continuation.token_ids[num_fed:]:  # the last one, which nothing was read behind
                step(token_id)
            cutter.cut()
            yield from cutter.due()
        yield Generated(
            text=continuation.text,
            token_ids=continuation.token_ids,
            reused_tokens=reused_tokens,
            recomputed_tokens=len(token_ids) + num_sinks,
            ttft_s=continuation.first_token_at - started,
            finish_reason=continuation.finish_reason,
        )

    def _recomputed_ids(self, prompt: str, *, follows: bool, context: str | None) -> list[int]:
        if follows and context is not None:
            raise RequestError("both a memory and a context were given; give one")
        if not prompt.strip():
            raise RequestError("the prompt is empty; ask something")
        question = self.tokenize_question(prompt, after_memory=follows or context is not None)
        return question if context is None else self.tokenize_context(context) + question


def _extent(
    memory: RawMemory | None, slots: Slots | None, arriving: ArrivingMemory | None, num_sinks: int
) -> tuple[int, int]:
    """How many positions lie before the prompt, and how many of them are remembered."""
    if arriving is not None:
        return arriving.num_positions, arriving.num_positions
    if slots is not None:
        return num_sinks + slots.span, slots.num_slots
    num_remembered = memory.header.seq_len if memory else 0
    return num_remembered, num_remembered


def _eos_ids(loaded: LoadedModel) -> frozenset[int]:
    """Every id that ends a reply: chat models list several, in three places."""
    text_config = loaded.model.config.get_text_config(decoder=True)
    found: set[int] = set()
    for holder in (loaded.model.generation_config, text_config, loaded.tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return frozenset(found)
