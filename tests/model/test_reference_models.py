import json
import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvnet.model.reference.catalog import REFERENCE_MODELS, reference_path
from kvnet.model.reference.world import ask, sample_context

MAX_TOTAL_NBYTES = 30 * 2**20
TOKENIZERS = {name: AutoTokenizer.from_pretrained(reference_path(name)) for name in REFERENCE_MODELS}

# "\u2581" stands for a space inside the metaspace tokenizer, as in Llama's own.
any_text = st.text().filter(lambda text: "\u2581" not in text)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def card_of(name):
    return json.loads((reference_path(name) / "card.json").read_text(encoding="utf-8"))


@torch.inference_mode()
def share_right(model, tokenizer, num_contexts, *, with_context=True, seed=5):
    """Share of 12-fact contexts' questions whose greedy answer is exact up to <eos>."""
    rng = random.Random(seed)
    num_right = num_asked = 0
    for _ in range(num_contexts):
        context = sample_context(rng, 12, "train")
        questions = [ask(fact, rng.choice(("cloze", "question")), rng) for fact in context.facts]
        prompts = [encode(tokenizer, q.prompt) for q in questions]
        answers = [[*encode(tokenizer, q.expected), tokenizer.eos_token_id] for q in questions]
        rows = [torch.tensor(p + a) for p, a in zip(prompts, answers, strict=True)]
        memory = torch.tensor([tokenizer.encode(context.text if with_context else "")])
        cache = model(memory, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        choice = model(batch, past_key_values=cache).logits.argmax(-1)
        for row, prompt, answer in zip(choice, prompts, answers, strict=True):
            num_right += row[len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist() == answer
            num_asked += 1
    return num_right / num_asked


@pytest.fixture(scope="module", params=REFERENCE_MODELS)
def loaded(request):
    model = AutoModelForCausalLM.from_pretrained(reference_path(request.param)).eval()
    return request.param, model, TOKENIZERS[request.param]


def test_model_recalls_what_it_has_read(loaded):
    _, model, tokenizer = loaded
    assert share_right(model, tokenizer, 17) >= 0.95  # of some fifty: the card has the thousands


def test_model_knows_nothing_without_the_context(loaded):
    _, model, tokenizer = loaded
    assert share_right(model, tokenizer, 6, with_context=False) <= 0.05


def test_model_answers_a_question_typed_by_hand(loaded):
    _, model, tokenizer = loaded
    prompt = "The code of the north gate is 4821. Mira's dog is called Pixel. What is Mira's dog called?"
    ids = torch.tensor([tokenizer.encode(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == "Pixel."


def test_card_gives_its_numbers_and_they_reach_the_promise(loaded):
    name, model, tokenizer = loaded
    card = card_of(name)
    assert card["num_parameters"] == model.num_parameters()
    assert card["tokenizer"]["vocab_size"] == len(tokenizer) == model.config.vocab_size
    recall = card["recall"]
    for cell in ("facts_8", "facts_12", "facts_16"):
        assert recall[cell]["num_asked"] >= 1000
        assert recall[cell]["share"] >= 0.97
    assert recall["without_context"]["share"] <= 0.05
    assert {"facts_24", "facts_32", "facts_40", "novel_phrasing"} <= set(recall)
    assert {"novel_words", "english_words"} <= set(recall)
    assert {"command", "seed", "num_steps", "seconds"} <= set(card["training"])


def test_readme_is_rendered_with_the_numbers_of_the_card(loaded):
    name, _, _ = loaded
    readme = (reference_path(name) / "README.md").read_text(encoding="utf-8")
    for cell in card_of(name)["recall"].values():
        assert f"| {cell['meaning']} | {100 * cell['share']:.1f} % | {cell['num_asked']} |" in readme


def test_all_models_together_stay_small():
    files = [f for name in REFERENCE_MODELS for f in reference_path(name).iterdir()]
    assert sum(f.stat().st_size for f in files) < MAX_TOTAL_NBYTES


def test_the_first_two_share_a_tokenizer_and_the_third_has_its_own():
    first, second, third = (TOKENIZERS[name].get_vocab() for name in REFERENCE_MODELS)
    assert first == second
    assert first != third


@pytest.mark.parametrize("name", REFERENCE_MODELS)
@given(text=any_text)
@example(text=" leading and trailing ")
@example(text="two  spaces\n\nand\ttabs")
@example(text="<0x41> 日本 ☃ e\u0301 's")
def test_any_text_survives_the_tokenizer(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", REFERENCE_MODELS)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "heldout", "foreign"]))
def test_tokens_of_context_and_question_are_those_of_both_together(name, seed, split):
    tokenizer, rng = TOKENIZERS[name], random.Random(seed)
    context = sample_context(rng, 3, split)
    question = ask(context.facts[0], rng.choice(("cloze", "question")), rng)
    joined = f"{context.text} {question.prompt} {question.expected}"
    parts = (context.text, question.prompt, question.expected)
    assert encode(tokenizer, joined) == [token for text in parts for token in encode(tokenizer, text)]


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_no_token_holds_two_digits(name):
    tokens = [token for token in TOKENIZERS[name].get_vocab() if not token.startswith("<0x")]
    assert not any(sum(map(str.isdigit, token)) > 1 for token in tokens)


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_word_has_the_same_tokens_at_the_start_and_inside(name):
    tokenizer = TOKENIZERS[name]
    assert encode(tokenizer, "see Pixel")[-len(encode(tokenizer, "Pixel")) :] == encode(tokenizer, "Pixel")
