"""A causal model as a function: token ids and a cache in, logits out.

Knows tensors, positions and gradients; no tokenizer, no texts, no memories. Not thread-safe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

import torch

from kvnet.alignment import Intake
from kvnet.errors import RequestError, TextTooLong, UnsupportedModel
from kvnet.model.cache import (
    Cache,
    LayerKV,
    build_cache,
    cache_seq_len,
    export_layers,
    geometry_of,
    new_cache,
    observe_geometry,
)
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.loader import LoadedModel
from kvnet.model.slots import rows_of_layers
from kvnet.model.states import gives_its_rows, layers_of, recording_states, rows_of_taken
from kvnet.model.watching import Watch, watching
from kvnet.types import DType, Geometry

_DEFAULT_MAX_SEQ_LEN: Final = 2048  # for configs that name no limit
_STATES_PROBE: Final = 8  # tokens
_PREFILL_BLOCK: Final = 512  # tokens between two looks at whether the caller is still there


class CausalModel:
    """A loaded model with its name, geometry and context length."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.name = loaded.name
        self._model = loaded.model
        self._config = loaded.model.config
        self._accepted = frozenset(inspect.signature(type(loaded.model).forward).parameters)
        text_config = self._config.get_text_config(decoder=True)
        limit = getattr(text_config, "max_position_embeddings", None)
        self.max_seq_len: int = limit or _DEFAULT_MAX_SEQ_LEN
        self.geometry: Geometry = self._probe_geometry()
        self._intakes: dict[tuple[int, ...], Intake] = {}

    @property
    def module(self) -> Any:
        """The transformers model itself, for experiments that do to it what no node does."""
        return self._model

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return torch.device(self._model.device)

    @property
    def vocab_size(self) -> int:
        """Tokens that the model has an embedding for."""
        return int(self._model.get_input_embeddings().num_embeddings)

    @property
    def takes_positions(self) -> bool:
        """Whether the model can be told at which positions its tokens stand."""
        return "position_ids" in self._accepted

    def new_cache(
        self, on_update: Callable[[LayerKV], None] | None = None, before: Sequence[LayerKV] = ()
    ) -> Cache:
        """A cache that holds copies of `before`; `on_update` sees each layer as it is filled."""
        return new_cache(self._config, on_update, before)

    def prefill(
        self,
        token_ids: Sequence[int],
        cache: Cache,
        *,
        token_block: int = _PREFILL_BLOCK,
        cancelled: Callable[[], bool] = never,
        num_gaps: int = 0,
    ) -> torch.Tensor:
        """Append `token_ids` to `cache`, block by block; logits [vocab_size] after the last one.

        `num_gaps` positions before them have no slot in the cache.
        """
        if not token_ids:
            raise RequestError("the prompt is empty; ask something")
        for start in range(0, len(token_ids), token_block):
            refuse_cancelled(cancelled)
            logits = self.next_logits(token_ids[start : start + token_block], cache, num_gaps=num_gaps)
        return logits

    def next_logits(self, token_ids: Sequence[int], cache: Cache, *, num_gaps: int = 0) -> torch.Tensor:
        """Append `token_ids` to `cache` in one pass; logits [vocab_size] after the last one."""
        return self._forward(token_ids, cache, num_logits=1, num_gaps=num_gaps)[-1]

    def all_logits(self, token_ids: Sequence[int], cache: Cache, *, num_gaps: int = 0) -> torch.Tensor:
        """Append `token_ids` to `cache` in one pass; logits [num_tokens, vocab_size] after each one."""
        return self._forward(token_ids, cache, num_logits=len(token_ids), num_gaps=num_gaps)

    def watched_logits(
        self, token_ids: Sequence[int], cache: Cache, *, num_gaps: int = 0
    ) -> tuple[torch.Tensor, Watch]:
        """`all_logits`, and what each layer attended to. Raises UnsupportedModel where it cannot be seen."""
        with watching(self._model) as watch:
            logits = self.all_logits(token_ids, cache, num_gaps=num_gaps)
        if len(watch.weights) != self.geometry.num_layers:
            raise UnsupportedModel(
                f"{self.name} shows the attention of {len(watch.weights)} of its {self.geometry.num_layers} "
                "layers; fit maps to it without anchors"
            )
        return logits, watch

    def graded_logits(
        self, token_ids: Sequence[int], layers: Sequence[LayerKV], *, num_gaps: int = 0
    ) -> torch.Tensor:
        """Logits [num_tokens, vocab_size] after each token that follows `layers`, to which gradients flow."""
        cache = build_cache(layers, self._config)
        return self._forward(token_ids, cache, num_logits=len(token_ids), num_gaps=num_gaps, graded=True)

    def intake(self, layers: Sequence[int]) -> Intake:
        """What this model takes of slots that others make for it: states of those of `layers` that have them.

        A model whose own states do not give its own keys and values takes keys and values of all layers.
        """
        wanted = tuple(layer_idx for layer_idx in sorted(layers) if layer_idx > 0)
        if wanted not in self._intakes:
            self._intakes[wanted] = self._probe_intake(wanted)
        return self._intakes[wanted]

    def _probe_intake(self, wanted: tuple[int, ...]) -> Intake:
        """Let the model read a few tokens, and look whether its states give what it really made."""
        plain = Intake(self.geometry)
        if not wanted or max(wanted) >= self.geometry.num_layers or layers_of(self._model) is None:
            return plain
        hidden_size = getattr(self._config.get_text_config(decoder=True), "hidden_size", 0)
        intake = replace(plain, state_layers=wanted, hidden_size=hidden_size)
        token_ids = range(min(_STATES_PROBE, self.max_seq_len, self.vocab_size))
        cache = self.new_cache()
        try:
            with recording_states(self._model, wanted) as states:
                self.all_logits(token_ids, cache)
        except (IndexError, TypeError):  # a norm that is called in another way
            return plain
        positions = torch.arange(len(token_ids))
        rows = rows_of_layers(export_layers(cache), self.geometry, positions, seq_len=len(token_ids))
        with torch.no_grad():
            return intake if gives_its_rows(self._model, intake, rows, states) else plain

    def recording_states(self, intake: Intake) -> AbstractContextManager[dict[int, torch.Tensor]]:
        """The states [num_tokens, hidden_size] of `intake.state_layers` in what is read inside, by layer."""
        return recording_states(self._model, intake.state_layers)

    def rows_of(self, intake: Intake, taken: torch.Tensor, *, graded: bool = False) -> torch.Tensor:
        """float32 [n, intake.width] -> rows [n, row_width], by this model's own weights."""
        with torch.set_grad_enabled(graded):
            return rows_of_taken(self._model, intake, taken)

    @property
    def is_graded(self) -> bool:
        """Whether gradients flow through the model; through 4-bit weights packed for a CPU none do."""
        return not any(getattr(one, "support_avx512bf16_for_cpu", False) for one in self._model.modules())

    def _forward(
        self,
        token_ids: Sequence[int],
        cache: Cache,
        *,
        num_logits: int,
        num_gaps: int = 0,
        graded: bool = False,
    ) -> torch.Tensor:
        start = cache_seq_len(cache)
        stop = start + len(token_ids)
        self._refuse_too_long(stop + num_gaps, "the sequence has")
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([token_ids], device=self.device),
            # One column for every position, old and new: a mask one short is not an error to
            # transformers, it only changes the text.
            "attention_mask": torch.ones(1, stop, dtype=torch.long, device=self.device),
            "past_key_values": cache,
            "use_cache": True,
        }
        if self.takes_positions:
            arguments["position_ids"] = (
                torch.arange(start, stop, device=self.device)[None] + num_gaps
            )  # [1, T]
        if "logits_to_keep" in self._accepted:
            arguments["logits_to_keep"] = num_logits
        with torch.set_grad_enabled(graded):
            logits: torch.Tensor = self._model(**arguments).logits
        if cache_seq_len(cache) != stop:
            raise AssertionError(f"the cache holds {cache_seq_len(cache)} positions instead of {stop}")
        return logits[0, -num_logits:]

    def _refuse_too_long(self, num_tokens: int, subject: str) -> None:
        if num_tokens > self.max_seq_len:
            raise TextTooLong(
                f"{subject} {num_tokens} tokens, {self.name} holds {self.max_seq_len}; shorten one of them"
            )

    def _probe_geometry(self) -> Geometry:
        """Let the model read two tokens, and look at the cache it really makes."""
        with torch.no_grad():
            output = self._model(
                input_ids=torch.zeros(1, 2, dtype=torch.long, device=self.device), use_cache=True
            )
        dtype = DType(str(self._model.dtype).removeprefix("torch."))
        return observe_geometry(getattr(output, "past_key_values", None), geometry_of(self._config, dtype))
