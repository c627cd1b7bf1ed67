"""Measure a finished model and write its card. Knows cells, JSON and Markdown; trains nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kvnet.model.reference.world import HELDOUT_FAMILY, AskKind, Context, Question, Style
from reference_training.measure import answer_exactly, mean_context_tokens, measure_recall
from reference_training.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the card: `num_questions` asked over contexts of `num_facts` facts."""

    meaning: str
    style: Style
    num_facts: int
    num_questions: int
    kind: AskKind | None = None
    with_context: bool = True


_TRAIN, _HELDOUT, _FOREIGN = Style("train"), Style("heldout"), Style("foreign")
CELLS: Final[dict[str, Cell]] = {
    "facts_8": Cell("8 facts, new combinations of known words", _TRAIN, 8, 1000),
    "facts_12": Cell("12 facts, likewise", _TRAIN, 12, 1000),
    "facts_16": Cell("16 facts, likewise", _TRAIN, 16, 1000),
    "facts_24": Cell("24 facts, likewise", _TRAIN, 24, 480),
    "facts_32": Cell("32 facts, likewise", _TRAIN, 32, 480),
    "facts_40": Cell("40 facts, likewise", _TRAIN, 40, 480),
    "cloze": Cell("12 facts, asked as an unfinished sentence", _TRAIN, 12, 480, kind="cloze"),
    "question": Cell("12 facts, asked as a question", _TRAIN, 12, 480, kind="question"),
    "without_context": Cell("12 facts, context withheld", _TRAIN, 12, 480, with_context=False),
    "novel_words": Cell("12 facts, names and values never trained on", _HELDOUT, 12, 1000),
    "novel_words_40": Cell("40 facts, likewise", _HELDOUT, 40, 480),
    "english_words": Cell("8 facts, ordinary names and words from outside the lists", _FOREIGN, 8, 480),
    "novel_phrasing": Cell(
        "12 facts, stated in phrasings never trained on", Style("train", families=(HELDOUT_FAMILY,)), 12, 480
    ),
    "few_facts": Cell("2 facts, names and values never trained on", _HELDOUT, 2, 480),
    "idle_sentences": Cell(
        "12 facts among sentences that state none", Style("train", filler_share=0.3), 12, 480
    ),
    "lines": Cell("12 facts, one a line", Style("train", separator="\n"), 12, 480),
}

_TYPED: Final = Context("The code of the north gate is 4821. Mira's dog is called Pixel.", ())
_TYPED_QUESTIONS: Final = (
    Question("What is Mira's dog called?", "Pixel."),
    Question("What is the code of the north gate?", "4821."),
    Question("Mira's dog is called", "Pixel."),
)


def measure_card(
    name: str, recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """The card of a model as JSON-ready values, without its training record."""
    recall = {}
    for cell_name, cell in CELLS.items():
        counted = measure_recall(
            model,
            tokenizer,
            cell.style,
            num_facts=cell.num_facts,
            num_questions=cell.num_questions,
            kind=cell.kind,
            with_context=cell.with_context,
        )
        recall[cell_name] = {"meaning": cell.meaning, **asdict(counted), "share": round(counted.share, 4)}
    typed = answer_exactly(model, tokenizer, _TYPED, _TYPED_QUESTIONS)
    return {
        "name": name,
        "num_parameters": model.num_parameters(),
        "shape": asdict(recipe.shape),
        "tokenizer": {"scheme": recipe.tokenizer, "vocab_size": len(tokenizer)},
        "context_tokens": {str(n): mean_context_tokens(tokenizer, n) for n in (8, 12, 16, 40)},
        "recall": recall,
        "typed": {
            "context": _TYPED.text,
            "answers": [
                {**asdict(question), "right": right}
                for question, right in zip(_TYPED_QUESTIONS, typed, strict=True)
            ],
        },
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write card.json and, from the same numbers, README.md."""
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")


def render_readme(card: dict[str, Any]) -> str:
    """The model card as Markdown."""
    shape, training = card["shape"], card["training"]
    rows = [
        f"| {cell['meaning']} | {100 * cell['share']:.1f} % | {cell['num_asked']} |"
        for cell in card["recall"].values()
    ]
    typed = [
        f"- `{a['prompt']}` → {'`' + a['expected'] + '`' if a['right'] else 'a wrong answer'}"
        for a in card["typed"]["answers"]
    ]
    return "\n".join(
        [
            f"# {card['name']}",
            "",
            "A tiny Llama trained from scratch on generated text, for the tests and demonstrations of kvnet.",
            "It does one thing: read short facts and give back their values. It knows nothing of the world.",
            "",
            f"- {card['num_parameters']:,} parameters, fp32, tied embeddings",
            f"- {shape['num_layers']} layers, hidden size {shape['hidden_size']}, {shape['num_heads']} heads,"
            f" {shape['num_kv_heads']} KV heads, head_dim {shape['head_dim']}, "
            f"RoPE theta {shape['rope_theta']:g}",
            f"- tokenizer: {card['tokenizer']['scheme']} BPE, {card['tokenizer']['vocab_size']} entries; "
            f"12 facts are about {card['context_tokens']['12']} tokens",
            f"- training: {training['num_steps']} steps of about {training['tokens_per_step']} tokens, "
            f"seed {training['seed']}, {training['seconds']} s on one CPU core",
            "",
            f"Made by `{training['command']}`; the data is generated, nothing was downloaded.",
            "",
            "## Recall",
            "",
            "An answer counts only if greedy decoding gives the whole value, the full stop and `<eos>`.",
            "",
            "| Questions | Recall | n |",
            "| --- | --- | --- |",
            *rows,
            "",
            f'Typed by hand: "{card["typed"]["context"]}"',
            "",
            *typed,
            "",
            "## Limits",
            "",
            "One seed; the figures come from the generator of the training text with other draws. The value",
            "must follow the name and the attribute in its sentence. Free text, arithmetic, several values",
            "for one fact and other languages were not trained.",
            "",
        ]
    )
