"""How a memory drifts: along a reply, over hops from model to model, and by being coded again and again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from kvnet.align.corpus import Lesson
from kvnet.align.exam import Asked, ask_behind
from kvnet.align.map import AlignmentMap
from kvnet.align.reading import LocalReader, hold
from kvnet.errors import RequestError
from kvnet.model.host import ModelHost
from kvnet.model.memory import encode_memory
from kvnet.model.quality import read_tokens
from kvnet.model.slots import Slots
from kvnet.protocols.protocol import MARK_METRICS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab, stranger_to
from kvnet.protocols.tasks import draw_lessons
from kvnet.protocols.trial import Trial
from kvnet.types import RawMemory

LENGTH = "length"  # a task of its own: the model's own greedy words after the text, in stretches
_STRETCH = 32  # tokens


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Along `path` a+b+...: `chained` maps, hop by hop; `direct`, the first model to the last; `recoded`, the
    last model's own memory coded as often as there are hops, and once where there are none.
    """
    names = setting["path"].split("+")
    if not all(names):
        raise RequestError(f"path is {setting['path']!r:.60}, wanted models as in ref-a+ref-b+ref-a")
    trial = _trial(lab, setting, names)
    host = trial.exam.host
    hops = len(names) - 1
    chained = _chain(lab, trial, names) if hops else None
    trial.log_controls(log, chained, source=names[0])
    if chained is not None:
        trial.log_arm(log, "chained", trial.behind(chained.__getitem__), source=names[0], hops=hops)
        if hops > 1 and names[0] != names[-1]:
            direct = _chain(lab, trial, [names[0], names[-1]])
            trial.log_arm(log, "direct", trial.behind(direct.__getitem__), source=names[0], hops=1)
    for codec in setting["codecs"]:
        memories = [_recode(host, lesson, codec, max(1, hops)) for lesson in trial.exam.lessons]
        say = trial.behind_memories(memories.__getitem__)
        trial.log_arm(log, "recoded", say, hops=max(1, hops), codec=codec)


def _trial(lab: Lab, setting: Setting, names: list[str]) -> Trial:
    """The last model's exam; in raw, the first one's memory, or a stranger's where that is the same model."""
    other = stranger_to(names[-1], names[0])
    counts = {"lessons": setting["lessons"], "questions": setting["questions"], "seed": setting.seed}
    if setting["task"] != LENGTH:
        return lab.trial(task=setting["task"], model=names[-1], other=other, **counts)
    lessons = draw_lessons("facts", lab.host(names[-1]), setting["lessons"], 1, setting.seed)
    num_stretches = setting["reply_tokens"] // _STRETCH

    def asked_of(host: ModelHost, lesson: Lesson, lesson_idx: int) -> list[Asked]:
        return _stretches(host, lesson, lesson_idx, num_stretches)

    trial = lab.trial_of(LENGTH, names[-1], other, lessons, asked_of)
    trial.parameters_of = lambda i: _stretch_of(i, num_stretches)
    trial.leave_out = frozenset({"right"})  # 32 tokens of one's own ramble are no answer
    return trial


def _stretch_of(question: int, num_stretches: int) -> Mapping[str, Any]:
    return {"upto": _STRETCH * (question % num_stretches + 1)}


def _stretches(host: ModelHost, lesson: Lesson, lesson_idx: int, num_stretches: int) -> list[Asked]:
    """What the model says greedily after the text and a prompt, whatever ends a reply, cut into stretches."""
    cache = host.new_cache()
    host.prefill(host.tokenize_context(lesson.text), cache)
    prompt_ids = host.tokenize_question(lesson.questions[0].prompt, after_memory=True)
    said: list[int] = []
    with ask_behind(cache):
        fed = prompt_ids
        while len(said) < num_stretches * _STRETCH:
            logits = host.next_logits(fed, cache)
            logits[list(host.eos_ids)] = -float("inf")
            fed = [int(logits.argmax())]
            said += fed
    whole = (*prompt_ids, *said)
    first = len(prompt_ids)
    return [
        Asked(lesson_idx, whole[: stop - 1], stop - _STRETCH - 1, whole[stop - _STRETCH : stop])
        for stop in range(first + _STRETCH, len(whole) + 1, _STRETCH)
    ]


def _chain(lab: Lab, trial: Trial, names: list[str]) -> list[Slots]:
    """The texts as the first model holds them, through each map in turn."""
    hosts = [lab.host(name) for name in names]
    bridges = [lab.bridge(a, b) for a, b in pairwise(hosts)]
    closing = bridges[0].alignment.manifest.closing
    read = LocalReader(hosts[0]).read([lesson.text + closing for lesson in trial.exam.lessons])
    slots = [reading.slots for reading in hold(read)]
    for bridge, receiver in zip(bridges, hosts[1:], strict=True):
        alignment: AlignmentMap = bridge.alignment
        slots = [alignment.apply(one, bridge.port, rows_of=receiver.rows_of) for one in slots]
    return slots


def _recode(host: ModelHost, lesson: Lesson, codec: str, times: int) -> RawMemory:
    """The text's memory, coded and decoded so often."""
    memory = read_tokens(host, host.tokenize_context(lesson.text))
    for _ in range(times):
        memory = encode_memory(encode_memory(memory, codec), "exact")
    return memory


PROTOCOL = Protocol(
    name="drift",
    version=1,
    question="How does a memory drift along a reply, and over hops from model to model?",
    measure=measure,
    metrics=MARK_METRICS,
)
