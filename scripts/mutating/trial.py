"""Runs tests on a module as it is in a syntax tree, not as it is on disk: a fork for each trial.

The parent holds what takes long to import and none of the project; the child imports the project, the one
module from the tree. Nothing is written but into a folder of its own, which goes with it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType

_HEAVY = ("pytest", "pytest_asyncio", "pytest_timeout", "hypothesis", "torch", "grpc.aio", "google.protobuf")
_HEAVY_TOO = ("cryptography.x509", "nacl.signing", "spake2", "transformers", "numpy", "zeroconf", "lz4.block")
PASSED, FAILED, TIMED_OUT = "passed", "failed", "timed out"


@dataclass(slots=True)
class Trial:
    """Tests on one changed module, or on none; `outcome` is there once it has ended."""

    tests: tuple[str, ...]
    path: str = ""  # of the module, from the root
    tree: ast.Module | None = None
    outcome: str = ""
    seconds: float = 0.0
    said: str = ""
    _pid: int = 0
    _folder: Path = field(default_factory=Path)
    _since: float = 0.0

    def start(self, root: Path, compiled: str) -> None:
        """Fork; the child never returns."""
        self._folder = Path(tempfile.mkdtemp(prefix="kvm-"))
        self._since = time.monotonic()
        self._pid = os.fork()
        if not self._pid:
            try:
                os.setsid()
                _run(self, root, self._folder, compiled)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(3)

    def stop(self) -> None:
        """Kill the child, and what its tests may have left running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def ended(self, limit_s: float) -> bool:
        """Whether the child is gone, killed if it took longer; looks, and does not wait."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        self.seconds = time.monotonic() - self._since
        if not pid and self.seconds < limit_s:
            return False
        self.stop()
        if not pid:
            os.waitpid(self._pid, 0)
        passed = os.waitstatus_to_exitcode(status) == 0 if pid else False
        self.outcome = PASSED if passed else FAILED if pid else TIMED_OUT
        with contextlib.suppress(OSError):
            self.said = (self._folder / "said").read_text(errors="replace")[-2000:]
        shutil.rmtree(self._folder, ignore_errors=True)
        return True


def import_heavy() -> None:
    """What every child will need. Only what starts no thread: a fork has none of its parent's."""
    for name in (*_HEAVY, *_HEAVY_TOO):
        importlib.import_module(name)


def run_all(trials: Sequence[Trial], root: Path, *, jobs: int, limit_s: float) -> None:
    """So many at a time, until all have their outcome."""
    waiting, running = list(trials), list[Trial]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1].start(root, _compiled().name)
            running = [trial for trial in running if not trial.ended(limit_s)]
            time.sleep(0.01)
    finally:
        for trial in running:  # only where we were interrupted
            trial.stop()


@cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kvm-")


def _run(trial: Trial, root: Path, folder: Path, compiled: str) -> None:
    out = os.open(folder / "said", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(root)
    sys.dont_write_bytecode = False  # what is compiled once serves all; a tree's code is never among it
    sys.pycache_prefix = compiled
    sys.path[:0] = [str(root), str(root / "daemon")]
    if trial.tree is not None:
        name = trial.path.removeprefix("daemon/").removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _Overlay(name.removesuffix(".__init__"), trial.tree))

    import hypothesis
    import pytest
    import torch

    torch.set_num_threads(1)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")

    class Quick:
        """Nobody reads a counterexample here: none is made smaller, none is kept."""

        def pytest_sessionstart(self) -> None:
            phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
            hypothesis.settings.register_profile("mutants", deadline=None, phases=phases, database=None)
            hypothesis.settings.load_profile("mutants")

    imported = "ignore:Module already imported"  # on purpose, by the parent; and every warning is an error
    options = [
        "-x",
        "-q",
        "-W",
        imported,
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "--assert=plain",
        "--hypothesis-seed=1",
        f"--rootdir={root}",
    ]
    code = pytest.main([*options, f"--basetemp={folder / 't'}", *trial.tests], plugins=[Quick()])
    sys.stdout.flush()
    os._exit(int(code))


class _Overlay(importlib.abc.MetaPathFinder):
    """Finds one module as everybody would, and has its code come from a tree."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self._name = name
        self._tree = tree

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, with another loader."""
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _TreeLoader(fullname, spec.origin, self._tree)
        return spec


class _TreeLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, tree: ast.Module) -> None:
        super().__init__(fullname, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        """The tree compiled; what lies compiled on disk is not looked at."""
        code = compile(self._tree, self.path, "exec", dont_inherit=True)
        assert isinstance(code, CodeType)
        return code
