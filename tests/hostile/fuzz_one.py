"""One fuzz target under atheris: `python -m tests.hostile.fuzz_one TARGET FLAGS…`.

Only what kvnet imports from here on is instrumented, so the imports below come in two halves.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]
import torch

with atheris.instrument_imports(include=["kvnet", "kvnetd"]):
    from tests.hostile.fuzz_inputs import mutate, seeds
    from tests.hostile.fuzz_targets import run_target


def main() -> None:
    """Write the seeds into the folder that is the last argument, and fuzz until libFuzzer ends it."""
    target, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    folder = Path(flags[-1])
    for i, data in enumerate(seeds(target)):
        (folder / f"seed_{i:04}").write_bytes(data)
        run_target(target, data)  # what is made once, like a parsed basis, is made before the clock runs

    def mutator(data: bytes, max_nbytes: int, seed: int) -> bytes:
        return mutate(target, data, max_nbytes, random.Random(seed), atheris.Mutate)[:max_nbytes]

    atheris.Setup([sys.argv[0], *flags], lambda data: _once(target, data), custom_mutator=mutator)
    atheris.Fuzz()


def _once(target: str, data: bytes) -> None:
    run_target(target, data)


if __name__ == "__main__":
    main()
