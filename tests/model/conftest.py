"""Tiny random models with a small tokenizer of their own, made once per test run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec

VOCAB_SIZE = 400
BYTE_IDS = slice(3, 3 + 256)
TEXTS = (
    "The harbour opens at seven. Anna keeps the key in the blue tin.",
    "When two nodes talk, one of them has read the letter.",
    "A memory of the sea: salt, rope, and the colour of rust.",
    "Zürich, São Paulo and 東京 are cities; each has a river.",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def metaspace_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Llama-style: "\u2581" for a blank, single bytes for anything unknown."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = sorted({char for text in TEXTS for char in text if char.isascii() and char != " "})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=specials + byte_tokens,
        initial_alphabet=[*alphabet, "\u2581"],
        limit_alphabet=len(alphabet) + 1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    # The trainer takes the bytes for special tokens, which decoding would skip.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    return finish(Tokenizer.from_str(json.dumps(state)), chat_template)


def train_byte_level() -> PreTrainedTokenizerFast:
    """GPT-2-style: bytes shown as characters, a blank as "\u0120"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return finish(tokenizer)


def finish(tokenizer: Tokenizer, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Give a tokenizer its BOS and EOS."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def llama_config(**changes: Any) -> LlamaConfig:
    """Three layers, four heads on two KV heads."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,  # large enough that a different context gives different text
    }
    return LlamaConfig(**{**values, **changes})


def save_checkpoint(
    folder: Path, config: Any, *, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """A random-weight checkpoint folder, as `from_pretrained` takes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[BYTE_IDS] = 0  # so that it writes letters, and single bytes but rarely
    model.save_pretrained(folder)
    (tokenizer or metaspace_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from a second core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    return TEXTS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A fresh random checkpoint folder whose config differs by the given values."""

    def make(name: str = "model", *, seed: int = 0, chat_template: str | None = None, **changes: Any) -> Path:
        tokenizer = metaspace_tokenizer(chat_template)
        return save_checkpoint(tmp_path / name, llama_config(**changes), seed=seed, tokenizer=tokenizer)

    return make


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    return train_byte_level()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 Llama without chat template."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", llama_config())


@pytest.fixture(scope="session")
def host(tiny_folder: Path, cache_dir: Path) -> ModelHost:
    return ModelHost.load(ModelSpec(str(tiny_folder), device="cpu"), cache_dir)


@pytest.fixture(scope="session")
def chat_host(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> ModelHost:
    folder = tmp_path_factory.mktemp("models") / "chat"
    save_checkpoint(folder, llama_config(), tokenizer=metaspace_tokenizer(CHAT_TEMPLATE))
    return ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)


@pytest.fixture(scope="session")
def load_host(tiny_folder: Path, cache_dir: Path) -> Callable[..., ModelHost]:
    """The tiny model, loaded another way."""

    def load(**choices: Any) -> ModelHost:
        return ModelHost.load(ModelSpec(str(tiny_folder), **{"device": "cpu", **choices}), cache_dir)

    return load
