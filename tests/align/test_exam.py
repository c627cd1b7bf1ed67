"""Questions behind a memory: own ones answer all, others nothing, and asking changes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvnet.align.corpus import Lesson, Question, fact_lessons
from kvnet.align.exam import Exam, Marks, ask_behind, asked_of
from kvnet.align.reading import LocalReader, Reading
from kvnet.errors import Cancelled, TooFewSamples
from kvnet.model.cache import export_layers
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS, reference_path
from kvnet.model.slots import Slots
from kvnet.model.text import leading_bos

NUM_LESSONS = 16
CHAT_TEMPLATE = (
    "{% for message in messages %}User: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Reply:{% endif %}"
)
DOG = "Mira's dog is called Pixel. The code of the north gate is 4821."
ASKED = Question("Mira's dog is called", "Pixel.")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


def load(name: str, cache_dir: Path) -> ModelHost:
    return ModelHost.load(ModelSpec(name), cache_dir)


def copied(name: str, folder: Path) -> Path:
    """A reference model's folder that may be changed."""
    found = reference_path(name)
    assert found is not None
    return Path(shutil.copytree(found, folder))


def read(host: ModelHost, lessons: list[Lesson]) -> list[Reading]:
    return list(LocalReader(host).read([lesson.text for lesson in lessons]))


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return list(fact_lessons(NUM_LESSONS, seed=31, fact_counts=(6,), num_questions=3))


@pytest.fixture(scope="module", params=REFERENCE_MODELS)
def sat(
    request: pytest.FixtureRequest, lessons: list[Lesson], cache_dir: Path
) -> tuple[Exam, list[Reading], Marks]:
    """An exam, the lessons as its model read them, and its marks without a memory."""
    host = load(request.param, cache_dir)
    exam = Exam(host, lessons)
    return exam, read(host, lessons), exam.sit(lambda _: None)


@pytest.fixture(scope="module")
def exam(lessons: list[Lesson], cache_dir: Path) -> Exam:
    return Exam(load("ref-a", cache_dir), lessons)


@pytest.fixture(scope="module")
def own(exam: Exam) -> list[Slots]:
    return [reading.slots for reading in read(exam.host, list(exam.lessons))]


# Arms


def test_own_slots_answer_as_the_text_does(sat: tuple[Exam, list[Reading], Marks]) -> None:
    exam, readings, none = sat
    marks = exam.sit(lambda lesson_idx: readings[lesson_idx].slots)
    gap = exam.gap_recovered(marks, none)
    assert (gap.value, gap.low, gap.high) == (1.0, 1.0, 1.0)
    assert torch.equal(marks.right, exam.text.right)
    assert float(marks.kl.abs().max()) < 1e-4


def test_text_teaches_and_nothing_recovers_nothing(sat: tuple[Exam, list[Reading], Marks]) -> None:
    exam, _, none = sat
    assert exam.text.recall > 0.9
    assert exam.text.mean_kl == 0
    assert none.recall < 0.1
    assert none.mean_kl > 1
    assert exam.gap_recovered(none, none).value == 0


def test_memories_of_other_texts_recover_nearly_nothing(sat: tuple[Exam, list[Reading], Marks]) -> None:
    exam, readings, none = sat
    marks = exam.sit(lambda lesson_idx: readings[(lesson_idx + 1) % len(readings)].slots)
    assert abs(exam.gap_recovered(marks, none).value) < 0.1
    assert marks.mean_kl > 1


# The interval


def half_right(exam: Exam, num_right: int) -> Marks:
    """Marks of an arm that knows the first lessons and nothing of the others."""
    right = torch.tensor([float(asked.lesson_idx < num_right) for asked in exam.asked], dtype=torch.float64)
    return Marks(right, torch.zeros_like(right))


def nothing(exam: Exam) -> Marks:
    return Marks(torch.zeros_like(exam.text.right), torch.zeros_like(exam.text.right))


@pytest.mark.parametrize("num_right", [1, 4, 8, 15])
def test_interval_contains_the_value(exam: Exam, num_right: int) -> None:
    gap = exam.gap_recovered(half_right(exam, num_right), nothing(exam))
    assert 0 <= gap.low < gap.value < gap.high <= 1.1


def test_interval_is_narrower_for_more_lessons(exam: Exam, lessons: list[Lesson]) -> None:
    few = Exam(exam.host, lessons[4:8])
    wide, narrow = (
        one.gap_recovered(half_right(one, len(one.lessons) // 2), nothing(one)) for one in (few, exam)
    )
    assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low)


def test_interval_is_that_of_its_seed(exam: Exam) -> None:
    marks = half_right(exam, 5)
    first, again = ([exam.gap_recovered(marks, nothing(exam), seed=n) for n in range(8)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


def test_gap_is_nothing_where_the_text_teaches_nothing(exam: Exam) -> None:
    wrong = [Lesson(DOG, (replace(ASKED, expected="quicksilver and tin."),))]
    untaught = Exam(exam.host, wrong)
    assert untaught.text.recall == 0
    knowing = Marks(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert untaught.gap_recovered(knowing, untaught.text).value == 0


# Asking changes nothing


def test_asking_twice_gives_the_same_marks_and_leaves_the_slots(exam: Exam, own: list[Slots]) -> None:
    before = [slots.rows.clone() for slots in own]
    first, second = (exam.sit(own.__getitem__) for _ in range(2))
    assert torch.equal(first.right, second.right)
    assert torch.equal(first.kl, second.kl)
    assert all(torch.equal(slots.rows, rows) for slots, rows in zip(own, before, strict=True))


def test_marks_do_not_depend_on_the_order_of_questions(exam: Exam, own: list[Slots]) -> None:
    other = Exam(exam.host, [replace(one, questions=one.questions[::-1]) for one in exam.lessons])
    shuffled = own[1:] + own[:1]
    there, back = (one.sit(shuffled.__getitem__).kl.view(NUM_LESSONS, -1) for one in (exam, other))
    assert torch.equal(there, back.flip(1))  # [lessons, questions]


def test_cache_is_as_it_was_after_a_question_that_fails(exam: Exam, own: list[Slots]) -> None:
    cache = exam.host.inject_slots(own[0])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in export_layers(cache)]
    beyond = [exam.host.vocab_size]
    with ask_behind(cache):
        exam.host.all_logits(exam.asked[0].token_ids, cache)
    with pytest.raises(IndexError), ask_behind(cache):
        exam.host.all_logits(beyond, cache)
    for layer, (keys, values) in zip(export_layers(cache), before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


# Slots with gaps


def keep(slots: Slots, at: torch.Tensor) -> Slots:
    return Slots(slots.geometry, slots.rows[at], slots.positions[at], slots.span)


def test_question_behind_gaps_is_the_question_behind_masked_slots(exam: Exam, own: list[Slots]) -> None:
    slots, asked, host = own[0], exam.asked[0], exam.host
    at = torch.arange(slots.num_slots)[torch.arange(slots.num_slots) % 3 > 0]
    num_before = host.num_sinks + slots.num_slots
    stop = num_before + len(asked.token_ids)
    mask = torch.ones(1, stop, dtype=torch.long)
    mask[0, host.num_sinks : num_before] = 0
    mask[0, at + host.num_sinks] = 1
    with torch.no_grad():
        logits = host._model(
            input_ids=torch.tensor([asked.token_ids]),
            attention_mask=mask,
            position_ids=torch.arange(num_before, stop)[None],
            past_key_values=host.inject_slots(slots),
        ).logits[0]
    masked = logits[asked.first_scored :].log_softmax(-1)
    alone = Exam(host, exam.lessons[:1])
    heard = alone._heard[0]
    wanted = float((heard.exp() * (heard - masked)).sum(-1).mean())
    found = float(alone.sit(lambda _: keep(slots, at)).kl[0])
    assert found > 0.01  # the gaps are felt
    assert found == pytest.approx(wanted, rel=1e-3)


def test_slots_with_gaps_stand_where_they_stood(exam: Exam, own: list[Slots]) -> None:
    at = torch.arange(0, own[0].num_slots, 2)
    closed_up = Slots(own[0].geometry, own[0].rows[at], torch.arange(len(at)), len(at))
    alone = Exam(exam.host, exam.lessons[:1])
    with_gaps, without = (alone.sit([slots].__getitem__).kl for slots in (keep(own[0], at), closed_up))
    assert not torch.allclose(with_gaps, without, rtol=1e-3)


# Which questions are asked


def test_question_is_scored_on_its_answer_alone(exam: Exam) -> None:
    tokenizer = exam.host.tokenizer
    (asked,) = asked_of(exam.host, Lesson(DOG, (ASKED,)), 7)
    assert asked.lesson_idx == 7
    assert tokenizer.decode(asked.answer_ids) == "Pixel."
    assert asked.token_ids[asked.first_scored + 1 :] == asked.answer_ids[:-1]
    assert tokenizer.decode(asked.token_ids[: asked.first_scored + 1]) == ASKED.prompt


def test_text_may_be_its_own_question(exam: Exam) -> None:
    (asked,) = asked_of(exam.host, Lesson("Mira's dog is", (Question("", "called Pixel."),)), 0)
    whole = exam.host.tokenizer.encode("called Pixel.", add_special_tokens=False)
    assert (asked.token_ids, asked.answer_ids) == (tuple(whole[:-1]), tuple(whole[1:]))
    assert asked.first_scored == 0


def test_question_whose_answer_melts_into_the_prompt_is_left_out(cache_dir: Path) -> None:
    host = load("ref-a", cache_dir)
    host.tokenizer.add_tokens(["called Pixel"])
    other = Question("The code of the north gate is", "4821.")
    (asked,) = asked_of(host, Lesson(DOG, (ASKED, other)), 0)
    assert host.tokenizer.decode(asked.answer_ids) == "4821."


def test_question_without_an_answer_is_left_out(exam: Exam) -> None:
    assert asked_of(exam.host, Lesson(DOG, (replace(ASKED, expected=""),)), 0) == []
    assert asked_of(exam.host, Lesson(DOG, (Question("", ""),)), 0) == []


def test_exam_without_questions_is_refused(exam: Exam) -> None:
    with pytest.raises(TooFewSamples, match="no question"):
        Exam(exam.host, [Lesson(DOG, (replace(ASKED, expected=""),))])


def test_chat_model_is_asked_in_a_turn_and_scored_on_its_reply(cache_dir: Path, tmp_path: Path) -> None:
    folder = copied("ref-a", tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    host = load(str(folder), cache_dir)
    (asked, continued) = asked_of(host, Lesson(DOG, (ASKED, Question("", "And so on."))), 0)
    turn = host.tokenize_question(ASKED.prompt, after_memory=True)
    assert host.tokenizer.decode(turn).startswith("User:")
    assert list(asked.token_ids[: asked.first_scored + 1]) == turn
    assert host.tokenizer.decode(asked.answer_ids) == "Pixel."
    assert host.tokenizer.decode(continued.token_ids[: len(continued.answer_ids)]) == "And so on"


# Other models, and callers that leave


def test_model_without_a_first_token_of_its_own_sits_an_exam(cache_dir: Path, tmp_path: Path) -> None:
    folder = copied("ref-a", tmp_path / "plain")
    described = folder / "tokenizer.json"
    tokenizer = json.loads(described.read_text(encoding="utf-8")) | {"post_processor": None}
    described.write_text(json.dumps(tokenizer), encoding="utf-8")
    host = load(str(folder), cache_dir)
    assert leading_bos(host.tokenizer) == []
    exam = Exam(host, [Lesson(DOG, (ASKED,))])
    (reading,) = read(host, list(exam.lessons))
    assert exam.sit(lambda _: reading.slots).mean_kl == pytest.approx(0, abs=1e-4)
    assert exam.sit(lambda _: None).mean_kl > 0.1


def test_caller_that_leaves_ends_an_exam_and_a_sitting(exam: Exam, own: list[Slots]) -> None:
    with pytest.raises(Cancelled):
        Exam(exam.host, exam.lessons, cancelled=lambda: True)
    sat: list[int] = []

    def slots_for(lesson_idx: int) -> Slots:
        sat.append(lesson_idx)
        return own[lesson_idx]

    with pytest.raises(Cancelled):
        exam.sit(slots_for, cancelled=lambda: len(sat) == 2)
    assert sat == [0, 1]
