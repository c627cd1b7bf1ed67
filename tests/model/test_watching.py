"""kvnet.model.watching: what questions attend to, seen without changing anything of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GPTJConfig,
    MptConfig,
    PreTrainedConfig,
)

from kvnet.errors import Cancelled, UnsupportedModel
from kvnet.model.cache import LayerKV
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.model.watching import Watch, watching

LoadHost = Callable[..., ModelHost]
TEXT = "The harbour opens at seven. Anna keeps the key in the blue tin."
QUESTION = "Who keeps the key?"
TINY = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2}
UNWATCHABLE = {
    "gptj": GPTJConfig(**TINY, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=128),
    "falcon": FalconConfig(**TINY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
    "mpt": MptConfig(**TINY, d_model=32, n_layers=2, n_heads=2, max_seq_len=128),
}


def asked(host: ModelHost) -> tuple[list[int], list[int]]:
    return host.tokenize_context(TEXT), host.tokenize_question(QUESTION, after_memory=True)


def plain_logits(host: ModelHost) -> torch.Tensor:
    context, question = asked(host)
    cache = host.new_cache()
    host.prefill(context, cache)
    return host.all_logits(question, cache)


def watched(host: ModelHost) -> tuple[torch.Tensor, Watch]:
    context, question = asked(host)
    cache = host.new_cache()
    host.prefill(context, cache)
    return host.watched_logits(question, cache)


def implementation(host: ModelHost) -> str:
    return str(host._model.config.get_text_config(decoder=True)._attn_implementation)


def test_logits_are_those_of_an_unwatched_model(host: ModelHost) -> None:
    assert (watched(host)[0] - plain_logits(host)).abs().max() < 1e-4


@pytest.mark.parametrize("name", sorted(REFERENCE_MODELS))
def test_reference_models_can_be_watched_and_say_the_same(name: str, cache_dir: Path) -> None:
    host = ModelHost.load(ModelSpec(name, device="cpu"), cache_dir)
    logits, watch = watched(host)
    assert (logits - plain_logits(host)).abs().max() < 1e-4
    assert sorted(watch.weights) == sorted(watch.outputs) == list(range(host.geometry.num_layers))


def test_weights_are_the_largest_over_heads_of_the_models_own(load_host: LoadHost) -> None:
    host = load_host()
    context, question = asked(host)
    _, watch = watched(host)
    host._model.set_attn_implementation("eager")
    with torch.no_grad():
        output = host._model(input_ids=torch.tensor([context + question]), output_attentions=True)
    for layer_idx, own in enumerate(output.attentions):
        expected = own[0, :, len(context) :].amax(0)  # [1, H, T, T] -> [q, T]
        assert torch.allclose(watch.weights[layer_idx], expected, atol=1e-5)


def test_outputs_are_what_the_models_own_attention_hands_to_its_projection(host: ModelHost) -> None:
    _, watch = watched(host)
    context, question = asked(host)
    cache = host.new_cache()
    host.prefill(context, cache)
    own: dict[int, torch.Tensor] = {}
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs, layer_idx=layer_idx: own.update({layer_idx: inputs[0][0]})
        )
        for layer_idx, layer in enumerate(host._model.model.layers)
    ]
    host.all_logits(question, cache)
    for hook in hooks:
        hook.remove()
    assert own.keys() == watch.outputs.keys()
    for layer_idx, expected in own.items():
        assert torch.allclose(watch.outputs[layer_idx], expected, atol=1e-5)


def test_a_row_of_weights_is_between_one_heads_and_all_of_theirs(host: ModelHost) -> None:
    num_heads = host._model.config.num_attention_heads
    context, question = asked(host)
    _, watch = watched(host)
    for weights in watch.weights.values():
        assert weights.shape == (len(question), len(context) + len(question))
        assert weights.dtype is torch.float32
        assert float(weights.min()) >= 0
        assert float(weights.max()) <= 1 + 1e-6
        sums = weights.sum(1)
        assert float(sums.min()) >= 1 - 1e-5
        assert float(sums.max()) <= num_heads + 1e-5


def test_no_token_attends_to_one_behind_it(host: ModelHost) -> None:
    context, question = asked(host)
    _, watch = watched(host)
    for weights in watch.weights.values():
        for place in range(len(question)):
            assert not weights[place, len(context) + place + 1 :].any()
            assert bool(weights[place, : len(context) + place + 1].any())


def test_watch_is_of_the_last_reading(host: ModelHost) -> None:
    cache = host.new_cache()
    with watching(host._model) as watch:
        host.next_logits([5, 6, 7, 8], cache)
        host.next_logits([9, 10], cache)
    assert {weights.shape for weights in watch.weights.values()} == {(2, 6)}


def test_question_is_watched_behind_gaps_as_it_is_answered(host: ModelHost) -> None:
    context, question = asked(host)
    answers = []
    for watch in (False, True):
        cache = host.new_cache()
        host.prefill(context, cache)
        read = host.watched_logits if watch else host.all_logits
        found = read(question, cache, num_gaps=9)
        answers.append(found[0] if isinstance(found, tuple) else found)
    assert (answers[0] - answers[1]).abs().max() < 1e-4
    assert (answers[0] - plain_logits(host)).abs().max() > 1e-3


def test_model_is_as_it_was_afterwards(host: ModelHost) -> None:
    before, name = plain_logits(host), implementation(host)
    watched(host)
    assert implementation(host) == name
    assert torch.equal(plain_logits(host), before)


def test_model_is_as_it_was_after_an_exception_inside(host: ModelHost) -> None:
    before, name = plain_logits(host), implementation(host)

    def leave(layer: LayerKV) -> None:
        if layer.layer_idx == 1:
            raise Cancelled("enough was read")

    with pytest.raises(Cancelled), watching(host._model):
        host.next_logits([5, 6, 7], host.new_cache(leave))
    assert implementation(host) == name
    assert torch.equal(plain_logits(host), before)


def test_watch_within_a_watch_leaves_the_outer_one_to_go_on(host: ModelHost) -> None:
    with watching(host._model) as outer:
        with watching(host._model) as inner:
            host.next_logits([5, 6, 7], host.new_cache())
        assert not outer.weights
        host.next_logits([5, 6], host.new_cache())
    assert inner.weights[0].shape == (3, 3)
    assert outer.weights[0].shape == (2, 2)


@pytest.mark.parametrize("name", UNWATCHABLE)
def test_model_with_an_attention_of_its_own_is_refused_and_left_as_it_was(
    name: str, tmp_path: Path, tiny_folder: Path, cache_dir: Path
) -> None:
    host = load_random(UNWATCHABLE[name], tmp_path / name, tiny_folder, cache_dir)
    before, own = plain_logits(host), implementation(host)
    with pytest.raises(UnsupportedModel, match=rf"{name} shows the attention of 0 of its 2 layers; fit maps"):
        watched(host)
    assert implementation(host) == own
    assert torch.equal(plain_logits(host), before)


def test_model_that_changes_its_scores_is_refused_and_left_as_it_was(
    tmp_path: Path, tiny_folder: Path, cache_dir: Path
) -> None:
    config = Gemma2Config(
        **TINY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        layer_types=["full_attention"] * 2,
    )
    host = load_random(config, tmp_path / "gemma", tiny_folder, cache_dir)
    before, own = plain_logits(host), implementation(host)
    with pytest.raises(UnsupportedModel, match="uses softcap, which cannot be watched"):
        watched(host)
    assert implementation(host) == own
    assert torch.equal(plain_logits(host), before)


def load_random(config: PreTrainedConfig, folder: Path, tiny_folder: Path, cache_dir: Path) -> ModelHost:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    return ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)
