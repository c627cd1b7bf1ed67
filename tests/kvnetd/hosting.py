"""Nodes that host real reference models, and memories that those read."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvnetd.actions.ask import Question, ask
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord

from kvnet.api import Answer
from kvnet.files.alignments import read_alignment
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from tests.files.alignment_files import make_map_file
from tests.kvnetd.nodes import making

TEXTS = ("Petra's drink is tea.", "Omar's city is Rome.", "The code of the north gate is 4711.")


def load_host(name: str, cache_dir: Path) -> ModelHost:
    """A reference model."""
    return ModelHost.load(ModelSpec(name), cache_dir)


def hosting(services: Services, host: ModelHost, **settings: Any) -> Services:
    """The same node with this model and these settings."""
    return replace(services, host=host, config=replace(services.config, **settings))


def read(services: Services, host: ModelHost, text: str) -> MemoryRecord:
    """A memory of a text, as the model of `host` reads it."""
    return services.memories.put(host.capture(text), making(), services.key)


def add_map(services: Services, source: ModelHost, receiver: ModelHost) -> str:
    """A map from one model to the other that its gate admitted, of numbers that mean nothing; its id."""
    encoded = make_map_file(
        key=services.key,
        source=source.fingerprint,
        source_geometry=source.geometry,
        receiver=receiver.fingerprint,
        receiver_geometry=receiver.geometry,
        source_layers=(0,),
        window=(0, 0),
    )
    return services.alignments.put(read_alignment(encoded)).id


async def answer_to(services: Services, prompt: str, *memories: str, **options: Any) -> Answer:
    """The last thing that `ask` yields."""
    question = Question(prompt, memories=memories, max_tokens=options.pop("max_tokens", 6), **options)
    async with aclosing(ask(services, question)) as steps:
        found = [step async for step in steps][-1]
    assert isinstance(found, Answer)
    return found
