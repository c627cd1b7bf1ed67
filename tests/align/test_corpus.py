"""kvnet.align.corpus: lessons that are the same wherever they are made, and files of text as lessons."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align import recipe
from kvnet.align.corpus import (
    FAMILIAR,
    Lesson,
    Question,
    calibration_lessons,
    digest_lessons,
    fact_lessons,
    read_lessons,
)
from kvnet.errors import RequestError, TooFewSamples
from kvnet.model.reference.world import is_heldout

texts = st.text(max_size=20)
lessons = st.builds(Lesson, texts, st.lists(st.builds(Question, texts, texts), max_size=3).map(tuple))


def write_paragraphs(path: Path, *paragraphs: str, between: str = "\n\n") -> Path:
    path.write_text(between.join(paragraphs), encoding="utf-8")
    return path


def numbered(count: int) -> list[str]:
    return [f"one two three four five six seven {i}" for i in range(count)]


# Facts


def test_same_seed_gives_the_same_lessons_and_another_seed_others() -> None:
    one, again, other = (list(fact_lessons(5, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert not {lesson.text for lesson in one} & {lesson.text for lesson in other}


def test_fewer_lessons_are_the_first_of_more() -> None:
    assert list(fact_lessons(3, seed=4)) == list(fact_lessons(6, seed=4))[:3]


def test_every_expected_answer_stands_in_its_text() -> None:
    for lesson in fact_lessons(20, seed=0):
        assert lesson.questions
        for question in lesson.questions:
            assert question.expected.strip(" .") in lesson.text


@pytest.mark.parametrize("num_questions", [1, 3, 99])
def test_at_most_as_many_questions_as_asked_for_and_as_facts(num_questions: int) -> None:
    for lesson in fact_lessons(8, seed=0, fact_counts=(4,), num_questions=num_questions):
        assert len(lesson.questions) == min(num_questions, 4)
        assert len({question.prompt for question in lesson.questions}) == len(lesson.questions)


def test_both_kinds_of_question_are_asked() -> None:
    prompts = [question.prompt for lesson in fact_lessons(4, seed=0) for question in lesson.questions]
    assert any(prompt.endswith("?") for prompt in prompts)
    assert any(not prompt.endswith(("?", ".")) for prompt in prompts)


def test_familiar_lessons_are_of_words_that_the_models_were_trained_on() -> None:
    def answers(split_style: object) -> set[str]:
        style = replace(FAMILIAR, split=split_style)
        found = fact_lessons(10, seed=0, style=style)
        return {question.expected.strip(" .") for lesson in found for question in lesson.questions}

    assert not any(is_heldout(word) for word in answers("train"))
    assert all(is_heldout(word) for word in answers("heldout"))


# Calibration


def test_calibration_has_no_text_in_common_with_what_it_is_judged_and_chosen_on() -> None:
    """Of as many texts as the recipe takes of each."""
    fitted = {one.text for one in recipe.fit_lessons()}
    tuned = calibration_lessons(recipe._TUNE_LESSONS, seed=recipe._TUNE_SEED, num_questions=6)
    others = {
        "tuning": {one.text for one in tuned},
        "gate": {one.text for one in fact_lessons(recipe._GATE_LESSONS, seed=recipe._GATE_SEED)},
        "port": {one.text for one in fact_lessons(recipe._PORT_LESSONS, seed=recipe._PORT_SEED)},
        "probe": {one.text for one in fact_lessons(recipe._PROBE_LESSONS, seed=recipe._PROBE_SEED)},
    }
    assert len(fitted) == recipe.DEFAULT_LESSONS
    for name, texts in others.items():
        assert not texts & fitted, name
    assert not others["tuning"] & (others["gate"] | others["port"] | others["probe"])


def test_one_calibration_text_in_eight_has_a_fact_a_line_and_one_idle_sentences() -> None:
    found = list(calibration_lessons(80, seed=9))
    assert len(found) == 80
    by_line = [place for place, lesson in enumerate(found) if "\n" in lesson.text]
    assert by_line == list(range(7, 80, 8))
    facts, idle = ([len(found[place].questions) for place in range(first, 80, 8)] for first in (0, 6))
    sentences = [found[place].text.count(".") for place in range(6, 80, 8)]
    assert min(facts) > 0
    assert sum(sentences) > 1.2 * sum(idle)


@pytest.mark.parametrize("count", [0, 1, 7, 9, 16])
def test_calibration_is_the_same_each_time_and_fewer_are_the_first_of_more(count: int) -> None:
    found = list(calibration_lessons(count, seed=4, num_questions=2))
    assert len(found) == count
    assert found == list(calibration_lessons(24, seed=4, num_questions=2))[:count]
    assert all(len(lesson.questions) <= 2 for lesson in found)


# Digest


def test_digest_is_that_of_canonical_json() -> None:
    lesson = Lesson("A boat.", (Question("What?", "boat"),))
    # printf '[{"questions":[{"expected":"boat","prompt":"What?"}],"text":"A boat."}]' | sha256sum
    assert (
        digest_lessons([lesson]) == "sha256:bd540334d8206d0a888e1693e65497746a279de1d581b8f7b5bd1f7184bcea87"
    )


@given(st.lists(lessons, max_size=4), st.lists(lessons, max_size=4))
def test_digests_are_equal_only_of_equal_lessons(one: list[Lesson], other: list[Lesson]) -> None:
    assert (digest_lessons(one) == digest_lessons(other)) == (one == other)


def test_any_change_of_a_lesson_changes_the_digest() -> None:
    first, *rest = fact_lessons(3, seed=0)
    question = first.questions[0]
    changed = [
        replace(first, text=first.text + " "),
        replace(first, questions=first.questions[1:]),
        replace(first, questions=(replace(question, prompt="x"), *first.questions[1:])),
        replace(first, questions=(replace(question, expected="x"), *first.questions[1:])),
        replace(first, questions=first.questions[::-1]),
    ]
    digests = {digest_lessons([lesson, *rest]) for lesson in (first, *changed)}
    digests |= {digest_lessons([*rest, first]), digest_lessons(rest)}
    assert len(digests) == len(changed) + 3


# Files


def test_last_quarter_of_a_paragraph_stands_for_a_question(tmp_path: Path) -> None:
    found = read_lessons(write_paragraphs(tmp_path / "corpus.txt", *numbered(16)))
    assert len(found) == 16
    assert found[3] == Lesson("one two three four five six", (Question("", "seven 3"),))


@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n", "\n\n\n\n", "\n \n", "\n\t\n\n"])
def test_paragraphs_are_apart_by_lines_without_a_letter(tmp_path: Path, between: str) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(between.join(numbered(16)).encode())
    assert [lesson.questions[0].expected for lesson in read_lessons(path)] == [
        f"seven {i}" for i in range(16)
    ]


def test_lines_of_a_paragraph_and_runs_of_blanks_become_single_blanks(tmp_path: Path) -> None:
    path = write_paragraphs(tmp_path / "corpus.txt", "  one\ntwo \t three\n   four ", *numbered(16))
    assert read_lessons(path)[0] == Lesson("one two three", (Question("", "four"),))


def test_paragraph_of_one_word_is_passed_over(tmp_path: Path) -> None:
    path = write_paragraphs(tmp_path / "corpus.txt", "Chapter", *numbered(16), "", "***")
    assert len(read_lessons(path)) == 16


def test_long_paragraph_is_cut_to_what_a_context_holds(tmp_path: Path) -> None:
    first = read_lessons(write_paragraphs(tmp_path / "corpus.txt", "word " * 5000, *numbered(16)))[0]
    assert 3900 < len(f"{first.text} {first.questions[0].expected}") <= 4000


def test_paragraph_without_a_blank_is_no_lesson_however_long(tmp_path: Path) -> None:
    path = write_paragraphs(tmp_path / "corpus.txt", "x" * 100_000, *numbered(16))
    assert len(read_lessons(path)) == 16


@pytest.mark.parametrize("count", [0, 1, 15])
def test_file_of_too_few_paragraphs_is_refused(tmp_path: Path, count: int) -> None:
    path = write_paragraphs(tmp_path / "corpus.txt", *numbered(count))
    with pytest.raises(TooFewSamples, match=rf"corpus.txt has {count} paragraphs .*, a fit needs 16"):
        read_lessons(path)


def test_file_that_is_no_utf8_is_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(RequestError, match=r"corpus.txt: not UTF-8 at byte 3"):
        read_lessons(path)


def test_file_beyond_the_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.touch()
    os.truncate(path, (64 << 20) + 1)  # sparse, and zeros: reading it would end in too few paragraphs
    with pytest.raises(RequestError, match=r"67108865 bytes of corpus, at most 67108864"):
        read_lessons(path)
