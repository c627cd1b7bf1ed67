"""Train the two tokenizers of the reference models. Knows text and vocabularies; no torch.

Both begin every piece of text with one space, so that the tokens of "A. B" are those of "A." and
then those of "B". A digit never shares a token with another digit or with a letter.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from kvnet.model.reference.words import REAL_NAMES
from kvnet.model.reference.world import Style, ask, is_heldout, sample_context

PAD, BOS, EOS = SPECIALS = ("<pad>", "<bos>", "<eos>")
_SPACE: Final = "\u2581"
_WORD_PATTERN: Final = "'s|{s}?\\p{{L}}+|{s}?\\d|{s}?[^{s}\\s\\p{{L}}\\d]|{s}|\\s+"


def train_metaspace(seed: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Llama-style BPE: "\u2581" for a space, bytes of anything unknown (ref-a and ref-b)."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.pre_tokenizer = _split(_SPACE)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=[*SPECIALS, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return _finish(_demote(tokenizer, byte_tokens))


def train_byte_level(seed: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """GPT-2-style BPE over bytes, a space shown as "\u0120" (ref-c)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [_split(" "), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return _finish(tokenizer)


def _split(space: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_WORD_PATTERN.format(s=space)), behavior="isolated")


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    style = Style(name_weights=(0.75, 0.1, 0.15), value_weights=(0.8, 0.2), made_up_attributes=0.0)
    common = [name for name in REAL_NAMES if not is_heldout(name)]
    for _ in range(4000):
        context = sample_context(rng, 12, style=style)
        yield context.text
        yield " ".join(rng.sample(common, 8))
        for fact in context.facts[:4]:
            yield ask(fact, rng.choice(("cloze", "question")), rng).prompt


def _demote(tokenizer: Tokenizer, tokens: list[str]) -> Tokenizer:
    """Turn special `tokens` into plain entries of the BPE vocabulary, so that text cannot name them."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in set(tokens)]
    return Tokenizer.from_str(json.dumps(state))


def _finish(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
