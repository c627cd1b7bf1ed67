"""The house: which folders are packages, what the wheel holds, and what no file may do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE_FOLDERS = ("kvnet", "daemon", "scripts", "tests")
MODEL_FILES = (
    "basis.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
)
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SECTION = re.compile(r"FORMAT\.md §(\d+(?:\.\d+)?)")
CODE_SWITCHES = {"allow_pickle", "trust_remote_code"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle"}

BASELINES = {"scripts/bench/codec_arms.py": {"torch.save", "torch.load"}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from this tree."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as packed:
        return set(packed.namelist())


def _sources() -> Iterator[Path]:
    """Every Python file, those of scripts/ without a suffix included."""
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix == ".py" or (folder == "scripts" and path.is_file() and _is_python(path)):
                yield path


def _is_python(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and b"python" in first


def _sins(path: Path) -> Iterator[str]:
    """Lines of a file that would load or write code in the guise of data."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named: list[str] = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or ""]
        if any(name.split(".")[0] in FORBIDDEN_MODULES for name in named):
            yield f"{path.relative_to(ROOT)}:{node.lineno} imports {', '.join(named)}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS - _baselines(path, node):
            yield f"{path.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}"
        if isinstance(node, ast.keyword) and node.arg in CODE_SWITCHES and ast.unparse(node.value) != "False":
            yield f"{path.relative_to(ROOT)}:{node.lineno} sets {node.arg}"


def _baselines(path: Path, call: ast.Call) -> set[str]:
    """What this call may be, where a bench measures it beside ours: never with code in what is loaded."""
    allowed = BASELINES.get(path.relative_to(ROOT).as_posix(), set())
    weights_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    return allowed if weights_only else allowed - {"torch.load"}


@pytest.mark.parametrize("folder", ["daemon", "proto", "scripts"])
def test_a_top_level_folder_that_is_no_package_has_no_init_file(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_import_name_daemon_is_not_ours() -> None:
    look = (
        "import importlib.util, sys; spec = importlib.util.find_spec('daemon'); print(spec and spec.origin)"
    )
    # From elsewhere, as an installed kvnet is used: PyPI's python-daemon, if any, owns the name.
    found = subprocess.run(
        [sys.executable, "-c", look], cwd="/", capture_output=True, text=True, timeout=60, check=True
    )
    assert str(ROOT) not in found.stdout


def test_both_packages_say_that_they_are_typed() -> None:
    assert (ROOT / "kvnet" / "py.typed").is_file()
    assert (ROOT / "daemon" / "kvnetd" / "py.typed").is_file()


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {"kvnet", "kvnetd"} < tops
    (metadata,) = tops - {"kvnet", "kvnetd"}
    assert metadata.endswith(".dist-info")
    entry_points = f"{metadata}/entry_points.txt"
    assert entry_points in wheel
    for package, source in (("kvnet", ROOT / "kvnet"), ("kvnetd", ROOT / "daemon" / "kvnetd")):
        wanted = {f"{package}/{path.relative_to(source).as_posix()}" for path in source.rglob("*.py")}
        assert wanted <= wheel
    assert not [name for name in wheel if "__pycache__" in name or name.endswith((".pyc", ".pt", ".bin"))]


@pytest.mark.parametrize("model", ["ref-a", "ref-b", "ref-c"])
def test_the_wheel_holds_the_reference_models(wheel: set[str], model: str) -> None:
    assert {f"kvnet/model/reference/data/{model}/{name}" for name in MODEL_FILES} <= wheel


def test_the_wheel_holds_the_geometries(wheel: set[str]) -> None:
    geometries = (ROOT / "kvnet" / "model" / "geometries").glob("*.json")
    assert {f"kvnet/model/geometries/{path.name}" for path in geometries} <= wheel


def test_the_wheel_holds_what_files_and_codecs_read(wheel: set[str]) -> None:
    schemas = (ROOT / "kvnet" / "files" / "schemas").glob("*.json")
    names = {f"kvnet/files/schemas/{path.name}" for path in schemas}
    assert len(names) >= 4
    assert names | {"kvnet/model/probe.txt"} <= wheel


def test_the_wheel_holds_what_experiments_read(wheel: set[str]) -> None:
    folder = ROOT / "kvnet" / "experiments"
    names = {
        path.relative_to(ROOT).as_posix()
        for name in ("page", "recipes", "schema")
        for path in (folder / name).iterdir()
        if path.is_file()
    }
    assert len(names) >= 3 + 11 + 2
    assert names <= wheel


def test_no_file_unpickles_or_runs_remote_code() -> None:
    # What others do is measured beside what kvnet does, by the bench alone, of what it wrote itself.
    rival = ROOT / "scripts" / "bench" / "stream_rivals.py"
    paths = [path for path in _sources() if path != rival]
    assert len(paths) > 100
    assert _sins(rival)
    assert [sin for path in paths for sin in _sins(path)] == []


def test_sections_of_the_format_that_are_cited_are_there() -> None:
    page = (ROOT / "proto" / "FORMAT.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\b", page, re.MULTILINE))
    texts = [*_sources(), *(ROOT / "proto").rglob("*.proto"), *ROOT.glob("*.md")]
    cited = {number for path in texts for number in SECTION.findall(path.read_text(encoding="utf-8"))}
    assert "15" in cited
    assert cited - headings == set()
