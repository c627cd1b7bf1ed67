"""The command line inside this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvnet.cli.main import main as kvnet_main
from tests.cli.outcomes import Kvnet, Said


@pytest.fixture
def kvnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kvnet:
    """`kvnet` inside this process, on a home where no daemon runs."""
    monkeypatch.setenv("KVNET_HOME", str(tmp_path / "nobody"))

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kvnet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            kvnet_main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    return run
