"""scripts/soak in short: sixty faults of one seed, and nothing is lost, changed or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 60


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixty_faults_lose_change_and_double_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    command = [str(ROOT / "scripts" / "soak"), "--faults", str(FAULTS), "--seed", "1", "--json"]
    ended = subprocess.run(
        [sys.executable, *command, "--report", str(file)],
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report == json.loads(file.read_text(encoding="utf-8"))
    broken = {name: report[name] for name in ("lost", "mismatches", "duplicates", "crashes", "bytes_lost")}
    assert set(broken.values()) == {0}, report["problems"]
    assert ended.returncode == 0
    assert (report["faults"], report["recovered_over_30s"]) == (FAULTS, 0)
    assert report["receipts_verified"] >= FAULTS
    assert sum(report["not_struck"].values()) < FAULTS / 4
    assert report["resumed_transfers"] > 0
    assert report["spool_nbytes_after_gc"] == 0
