"""The fuzz targets still run: each takes two hundred inputs made from the corpus, and refuses most in good
order.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.fuzz_inputs import mutate, scrambler, seeds
from tests.hostile.fuzz_targets import TARGETS, run_target

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz"
NUM_INPUTS = 200
MOST_NBYTES = 1 << 16


@pytest.mark.parametrize("target", TARGETS)
def test_target_raises_nothing_but_refusals_on_two_hundred_inputs(target: str) -> None:
    rng = random.Random(target)
    starts = seeds(target)
    scramble = scrambler(rng)
    verdicts = set()
    for _ in range(NUM_INPUTS):
        data = mutate(target, rng.choice(starts), MOST_NBYTES, rng, scramble)
        verdicts.add(run_target(target, data))
    assert verdicts - {"ok"}


@pytest.mark.parametrize("target", TARGETS)
def test_target_accepts_one_of_its_seeds(target: str) -> None:
    assert any(run_target(target, data) == "ok" for data in seeds(target))


def test_the_script_names_every_target() -> None:
    asked = [sys.executable, str(SCRIPT), "--help"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "{" + ",".join(TARGETS) + "}" in said.replace("\n", "").replace(" ", "")
