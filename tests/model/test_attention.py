"""What attention metadata says, against full attention matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, GPTJConfig, LlamaConfig, LlamaForCausalLM

from kvnet.errors import UnsupportedModel
from kvnet.model.attention import AttentionRecorder, recording, refuse_unrecordable
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.types import AttentionMetadata


def make_llama(seed: int = 0, **changes: Any) -> Any:
    """A random float32 Llama with scores of a trained model's size."""
    values: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**values, **changes})).eval()


def random_ids(length: int, *, vocab_size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def record(model: Any, ids: torch.Tensor, *, token_block: int | None = None) -> tuple[AttentionMetadata, ...]:
    cache = None
    with torch.no_grad(), recording(model) as recorder:
        for block in ids.split(token_block or ids.shape[1], dim=1):
            cache = model(input_ids=block, past_key_values=cache, use_cache=True).past_key_values
    return recorder.metadata()


def full_attention(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Each layer's weights [num_heads, n, n], from transformers' own eager attention."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            weights = model(input_ids=ids, output_attentions=True).attentions
    finally:
        model.config._attn_implementation = before
    return [layer[0].double() for layer in weights]


def means_by_definition(weights: torch.Tensor) -> tuple[float, list[float], torch.Tensor]:
    """FORMAT.md §8.4 word for word: score, entropies, mean attention on each position."""
    _, n, _ = weights.shape
    shares = [weights[:, q, 1:q].sum(-1) for q in range(2, n)]
    score = float(torch.stack(shares).mean()) if shares else 0.0
    terms = -torch.special.xlogy(weights, weights).sum(-1)  # [num_heads, n]
    entropies = terms[:, 1:].mean(-1).tolist() if n > 1 else [0.0] * len(weights)
    received = torch.stack([weights[:, t:, t].mean() for t in range(n)])
    return score, entropies, received


def assert_is_of(metadata: AttentionMetadata, weights: torch.Tensor) -> None:
    score, entropies, received = means_by_definition(weights)
    assert metadata.average_attention_score == pytest.approx(score, abs=1e-4)
    assert metadata.entropy_per_head == pytest.approx(entropies, abs=1e-4)
    wanted = received.sort(descending=True).values[: min(16, len(received))]
    indices = metadata.important_token_indices
    assert len(set(indices)) == len(indices) == len(wanted)
    assert torch.allclose(received[list(indices)], wanted, atol=1e-5)


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_llama()


@pytest.fixture(scope="module")
def ref_a(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return ModelHost.load(ModelSpec("ref-a", device="cpu"), tmp_path_factory.mktemp("cache"))


# Against the definition


@pytest.mark.parametrize("length", [1, 2, 3, 4, 16, 17, 100, 300])
def test_grouped_query_model_is_described_as_its_full_attention_says(llama: Any, length: int) -> None:
    ids = random_ids(length)
    for metadata, weights in zip(record(llama, ids), full_attention(llama, ids), strict=True):
        assert_is_of(metadata, weights)


@pytest.mark.parametrize("length", [3, 150])
def test_reference_model_is_described_as_its_full_attention_says(ref_a: ModelHost, length: int) -> None:
    ids = random_ids(length, vocab_size=700)
    for metadata, weights in zip(record(ref_a._model, ids), full_attention(ref_a._model, ids), strict=True):
        assert_is_of(metadata, weights)


@pytest.mark.parametrize("num_kv_heads", [1, 6])
def test_one_kv_head_and_a_kv_head_each_are_described_too(num_kv_heads: int) -> None:
    model, ids = make_llama(num_key_value_heads=num_kv_heads), random_ids(40)
    for metadata, weights in zip(record(model, ids), full_attention(model, ids), strict=True):
        assert_is_of(metadata, weights)


def test_layers_are_numbered_in_order(llama: Any) -> None:
    assert [layer.layer_index for layer in record(llama, random_ids(5))] == [0, 1]


@pytest.mark.parametrize("length", [1, 2, 3, 64])
def test_entropies_lie_between_nothing_and_uniform(llama: Any, length: int) -> None:
    for layer in record(llama, random_ids(length)):
        assert all(0 <= entropy <= math.log(length) + 1e-6 for entropy in layer.entropy_per_head)


def test_uniform_attention_has_the_entropies_of_uniform_distributions() -> None:
    recorder, n = AttentionRecorder(), 50
    zeros = torch.zeros(1, 2, n, 8)
    recorder.attend(zeros, zeros[:, :1], zeros[:, :1], layer_idx=0)
    (metadata,) = recorder.metadata()
    assert metadata.entropy_per_head == pytest.approx(
        [sum(math.log(q + 1) for q in range(1, n)) / (n - 1)] * 2, abs=1e-6
    )
    score = sum((q - 1) / (q + 1) for q in range(2, n)) / (n - 2)
    assert metadata.average_attention_score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_scores_beyond_the_range_of_exp_are_described_too(size: float) -> None:
    """Unshifted, e^300 is infinite and e^-300 is nothing."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, 90, 16, generator=generator) * size
    key, value = torch.randn(2, 1, 2, 90, 16, generator=generator)
    recorder = AttentionRecorder()
    output = recorder.attend(query, key, value, layer_idx=0)
    scores = query.double() @ key.double().repeat_interleave(2, 1).transpose(2, 3) / 4
    scores += torch.full((90, 90), -torch.inf).triu(1)
    weights = scores.softmax(-1)
    assert_is_of(recorder.metadata()[0], weights[0])
    wanted = weights @ value.double().repeat_interleave(2, 1)
    assert torch.allclose(output.double(), wanted.transpose(1, 2), atol=1e-3)


# Blocks


@pytest.mark.parametrize("token_block", [1, 7, 64, 99])
def test_several_passes_say_what_one_says(llama: Any, token_block: int) -> None:
    ids = random_ids(100)
    for one, other in zip(record(llama, ids), record(llama, ids, token_block=token_block), strict=True):
        assert other.average_attention_score == pytest.approx(one.average_attention_score, abs=1e-5)
        assert other.entropy_per_head == pytest.approx(one.entropy_per_head, abs=1e-5)
        assert other.important_token_indices == one.important_token_indices


@settings(max_examples=30)
@given(
    length=st.integers(1, 260),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    tile_elements=st.integers(1, 200_000),
)
def test_tiles_of_any_size_give_one_result(
    length: int, num_kv_heads: int, group: int, tile_elements: int
) -> None:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(1, num_kv_heads * group, length, 8, generator=generator) * 3
    key, value = torch.randn(2, 1, num_kv_heads, length, 8, generator=generator)
    results = []
    for elements in (1 << 30, tile_elements):
        recorder = AttentionRecorder()
        output = recorder.attend(query, key, value, layer_idx=0, tile_elements=elements)
        results.append((output, *recorder.metadata()))
    (one, said), (other, also_said) = results
    assert torch.allclose(one, other, atol=1e-5)
    assert also_said.average_attention_score == pytest.approx(said.average_attention_score, abs=1e-5)
    assert also_said.entropy_per_head == pytest.approx(said.entropy_per_head, abs=1e-5)


def test_no_tile_is_as_large_as_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, bmm = [0], torch.bmm

    def watched(left: torch.Tensor, right: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        product = bmm(left, right, **kwargs)
        largest[0] = max(largest[0], product.numel())
        return product

    monkeypatch.setattr(torch, "bmm", watched)
    n = 3000
    query, key = torch.zeros(1, 4, n, 16), torch.zeros(1, 2, n, 16)
    AttentionRecorder().attend(query, key, key, layer_idx=0)
    assert 0 < largest[0] <= 1 << 18 < n * n


def test_half_precision_is_summed_up_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 200, 16, generator=generator).bfloat16()
    said = []
    for dtype in (torch.bfloat16, torch.float32):
        recorder = AttentionRecorder()
        output = recorder.attend(query.to(dtype), key.to(dtype), value.to(dtype), layer_idx=0)
        assert output.dtype == dtype
        said += recorder.metadata()
    assert said[0] == said[1]


# The model


def test_recording_changes_what_the_model_says_by_rounding_only(llama: Any) -> None:
    ids = random_ids(120)
    with torch.no_grad():
        plain = llama(input_ids=ids).logits
        with recording(llama):
            recorded = llama(input_ids=ids).logits
        after = llama(input_ids=ids).logits
    assert torch.allclose(recorded, plain, atol=1e-4 * float(plain.abs().max()))
    assert torch.equal(after, plain)


def test_exception_leaves_the_model_as_it_was(llama: Any) -> None:
    before = llama.config._attn_implementation

    def interrupted() -> None:
        with recording(llama):
            assert llama.config._attn_implementation != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert llama.config._attn_implementation == before
    assert torch.isfinite(llama(input_ids=random_ids(4)).logits).all()


def test_nothing_is_recorded_of_nothing(llama: Any) -> None:
    with recording(llama) as recorder:
        pass
    assert recorder.metadata() == ()


def test_text_that_was_not_recorded_from_its_start_is_a_bug() -> None:
    vectors = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="from position 0"):
        AttentionRecorder().attend(vectors[:, :, 2:], vectors, vectors, layer_idx=0)


# Models that cannot be recorded


def probe(model: Any) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=random_ids(8, vocab_size=32)).logits
        return logits

    return read


def test_model_of_softmax_attention_is_accepted(llama: Any) -> None:
    refuse_unrecordable(llama, probe(llama))


def test_model_that_asks_nobody_for_its_attention_is_refused() -> None:
    config = GPTJConfig(vocab_size=32, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModel, match="gptj shows the attention of 0 of its 2 layers"):
        refuse_unrecordable(model, probe(model))


def test_model_with_a_softcap_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=["full_attention"] * 2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match="softcap"):
        refuse_unrecordable(model, probe(model))
    assert model.config._attn_implementation == before


def test_model_that_adds_to_its_scores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks, biases by distance and the like show in the logits."""
    model = make_llama(seed=3)
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def biased(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        n = query.shape[2]
        distance = (torch.arange(n)[:, None] - torch.arange(n)[None]).float()
        bias = torch.where(distance < 0, -torch.inf, -distance)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return sdpa(query, key, value, attn_mask=bias)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", biased)
    with pytest.raises(UnsupportedModel, match="way of its own"):
        refuse_unrecordable(model, probe(model))
