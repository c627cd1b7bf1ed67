"""The script that takes checks out of the verifier finds them all, and tells which of them no test misses."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "mutate_verifier"
MODULE = """
def check(a, b, c):
    if a > 1 and b:
        raise ValueError(a)
    verify_other(a)
    use(b)
    return 0 <= a < c
"""


@pytest.fixture(scope="module")
def mutating() -> Any:
    """The parts of the script that run nothing."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from mutating import mutants, scope
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return {"mutants": mutants, "scope": scope}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=120, check=False
    )


def test_every_check_of_a_module_goes_once(mutating: Any) -> None:
    found = mutating["mutants"].find_mutants("m.py", MODULE)
    left = {
        (one.kind, one.removed): ast.unparse(mutating["mutants"].mutated(MODULE, one).body[0]).splitlines()[
            1:
        ]
        for one in found
    }
    plain = ast.unparse(ast.parse(MODULE).body[0]).splitlines()[1:]
    assert {key: [line for line in lines if line not in plain] for key, lines in left.items()} == {
        ("operand", "a > 1"): ["    if b:"],
        ("operand", "b"): ["    if a > 1:"],
        ("raise", "raise ValueError(a)"): ["        pass"],
        ("call", "verify_other(a)"): ["    pass"],
        ("link", "0"): ["    return a < c"],
        ("link", "c"): ["    return 0 <= a"],
    }


def test_boundaries_are_moved_only_when_asked_for(mutating: Any) -> None:
    find, change = mutating["mutants"].find_mutants, mutating["mutants"].mutated
    moved = [one for one in find("m.py", MODULE, with_boundaries=True) if one.kind == "boundary"]
    texts = [ast.unparse(change(MODULE, one)) for one in moved]
    assert [[part in text for part in ("a >= 1", "0 < a < c", "0 <= a <= c")] for text in texts] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_every_module_of_the_verifier_is_there_with_its_tests_and_has_checks(mutating: Any) -> None:
    for path, groups in mutating["scope"].TESTS.items():
        assert mutating["mutants"].find_mutants(path, (ROOT / path).read_text("utf-8")), path
        assert [test for group in groups for test in group if not (ROOT / test).is_file()] == []


def test_list_names_places_and_runs_nothing() -> None:
    listed = run("--list", "--only", "kvnet/files/receipts.py")
    assert listed.returncode == 0
    assert "kvnet/files/receipts.py:" in listed.stdout
    assert 'raise BadSignature("receipt: answers another offer than the one beside it")' in listed.stdout


def test_checks_of_receipts_are_each_missed_by_a_test() -> None:
    tried = run("--only", "kvnet/files/receipts.py", "--json")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    found = json.loads(tried.stdout.splitlines()[-1])
    assert found["killed"] == found["mutants"] >= 7
    assert (found["survived"], found["survivors"]) == (0, [])


TRY = """
import pathlib, sys
sys.path.insert(0, "scripts")
from mutating.mutants import find_mutants, mutated
from mutating.trial import Trial, import_heavy, run_all
path = "kvnet/identity/codes.py"
source = pathlib.Path(path).read_text("utf-8")
first = next(one for one in find_mutants(path, source) if one.kind == "raise")
import_heavy()
trials = [Trial((tests,), path, mutated(source, first)) for tests in sys.argv[1:]]
run_all(trials, pathlib.Path.cwd(), jobs=2, limit_s=60)
print(*(trial.outcome for trial in trials), sep=",")
"""


def test_check_is_missed_by_the_tests_of_its_module_and_not_by_those_of_another() -> None:
    tests = ("tests/identity/test_codes.py", "tests/identity/test_keys.py")
    tried = subprocess.run(
        [sys.executable, "-c", TRY, *tests], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert tried.stdout.splitlines()[-1] == "failed,passed"


def test_excuse_for_a_check_that_is_gone_is_told() -> None:
    loader = SourceFileLoader("mutate_verifier", str(SCRIPT))
    script = module_from_spec(spec_from_loader(loader.name, loader) or pytest.fail("no spec"))
    loader.exec_module(script)
    path = "kvnet/files/receipts.py"
    (there, *_) = script.find_mutants(path, (ROOT / path).read_text("utf-8"))
    kept, gone = script.key_of(there), (path, "verify_receipt", "raise", "raise Nothing")
    assert script.stale({kept: "", gone: ""}, [path]) == [gone]
