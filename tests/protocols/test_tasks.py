"""Tasks: fresh texts, refusals in one sentence, and a user's own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvnet.align.corpus import calibration_lessons
from kvnet.align.exam import asked_of
from kvnet.errors import RequestError
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.world import FACT_FAMILIES, HELDOUT_FAMILY
from kvnet.protocols.tasks import TASKS, draw_lessons


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))


def test_each_task_draws_the_same_texts_of_a_seed_and_others_of_another(host: ModelHost) -> None:
    for name in TASKS:
        first, again, other = (draw_lessons(name, host, 3, 2, seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert all(lesson.questions for lesson in first)


def test_unseen_phrasings_are_of_a_family_that_nothing_was_trained_or_calibrated_on(
    host: ModelHost,
) -> None:
    beginnings = tuple(template.split(" {")[0] for template in FACT_FAMILIES[HELDOUT_FAMILY])
    said = [lesson.text for lesson in draw_lessons("unseen", host, 4, 2, 0)]
    assert all(any(b in text for b in beginnings) for text in said)
    assert not any(b in one.text for b in beginnings for one in calibration_lessons(64, seed=0))


def test_answers_to_be_copied_or_continued_have_32_tokens_and_more(host: ModelHost) -> None:
    for name in ("copy", "continuation"):
        for i, lesson in enumerate(draw_lessons(name, host, 3, 4, 0)):
            assert min(len(asked.answer_ids) for asked in asked_of(host, lesson, i)) >= 32


def test_multi_hop_answer_stands_in_no_sentence_with_the_name_that_is_asked_for(host: ModelHost) -> None:
    for lesson in draw_lessons("multi-hop", host, 3, 4, 0):
        for question in lesson.questions:
            name = question.prompt.partition("'")[0]
            about = [sentence for sentence in lesson.text.split(". ") if name in sentence]
            assert about
            assert not any(question.expected.rstrip(".") in sentence for sentence in about)


def write(path: Path, lines: list[object]) -> str:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_lines_of_a_file_with_one_context_are_one_lesson(host: ModelHost, tmp_path: Path) -> None:
    lines: list[object] = [
        {"context": "Ada's pet is owl.", "question": "Ada's pet is", "answer": "owl."},
        {"context": "Ada's pet is owl.", "question": "What is Ada's pet?", "answer": "owl."},
        {"context": "Bela's code is 12.", "question": "Bela's code is", "answer": "12."},
    ]
    first, second = draw_lessons(write(tmp_path / "own.jsonl", lines), host, 9, 9, 0)
    assert [len(first.questions), len(second.questions)] == [2, 1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"context": "a", "question": "b"}, "answer"),
        ({"context": "a", "question": "b", "answer": "c", "extra": 1}, "extra"),
        ({"context": " ", "question": "b", "answer": "c"}, "hold a word"),
        (["a"], "line 1"),
    ],
)
def test_line_of_a_file_that_is_no_question_is_named_in_one_sentence(
    host: ModelHost, tmp_path: Path, line: object, told: str
) -> None:
    with pytest.raises(RequestError, match="line 1") as caught:
        draw_lessons(write(tmp_path / "own.jsonl", [line]), host, 9, 9, 0)
    assert told in caught.value.message
    assert "\n" not in caught.value.message


def test_model_that_cannot_hold_a_task_is_refused_with_both_lengths(host: ModelHost, tmp_path: Path) -> None:
    text = " ".join(["Ada's pet is owl."] * 600)
    lines: list[object] = [
        {"context": text + end, "question": "Ada's pet is", "answer": "owl."} for end in ("", " Yes.")
    ]
    with pytest.raises(RequestError, match=r"does not fit ref-a: .* tokens, the model holds 2048"):
        draw_lessons(write(tmp_path / "long.jsonl", lines), host, 9, 9, 0)


def test_task_that_does_not_exist_is_refused_with_those_that_do(host: ModelHost) -> None:
    with pytest.raises(RequestError, match=r"no task 'recall'; there are facts, unseen"):
        draw_lessons("recall", host, 2, 2, 0)
    with pytest.raises(RequestError, match="cannot be read"):
        draw_lessons("nowhere.jsonl", host, 2, 2, 0)


def test_single_text_is_refused_as_it_has_no_other_for_a_control(host: ModelHost, tmp_path: Path) -> None:
    one: list[object] = [{"context": "Ada's pet is owl.", "question": "Ada's pet is", "answer": "owl."}]
    with pytest.raises(RequestError, match="another text needs 2"):
        draw_lessons(write(tmp_path / "one.jsonl", one), host, 9, 9, 0)
