"""One cell, measured: whatever happens inside, what comes back can be written into a run's log.

Knows protocols; no folders, no other cells.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kvnet.errors import KvnetError
from kvnet.experiments.record import Closed, Event, Failure
from kvnet.protocols.protocol import CellLog, Setting
from kvnet.protocols.registry import find_protocol
from kvnet.protocols.settings import Lab, seed_everything


@dataclass(frozen=True, slots=True)
class CellJob:
    """What a worker is told; plain data."""

    protocol: str
    version: int
    setting: Setting
    cache_dir: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a cell: its events, if it is closed."""

    end: Closed | Failure
    events: tuple[Event, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def measure_cell(job: CellJob) -> Outcome:
    """Never raises what a cell can be guilty of; interrupts pass."""
    setting = job.setting
    started = time.monotonic()
    try:
        protocol = find_protocol(job.protocol, job.version)
        log = CellLog(protocol, setting)
        seed_everything(setting.seed)
        with torch.no_grad():
            protocol.measure(lab_of(job.cache_dir), setting, log)
        seconds = time.monotonic() - started
        return Outcome(log.close(seconds), tuple(log.events), log.summary, seconds)
    except KvnetError as error:
        return failed(setting, error.message, error.code, time.monotonic() - started)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        said = next(iter(str(error).splitlines()), "")
        return failed(setting, f"{type(error).__name__}: {said}", "internal", time.monotonic() - started)


def failed(setting: Setting, reason: str, code: str, seconds: float = 0.0) -> Outcome:
    """A cell that is a row with its reason."""
    end = Failure(setting.cell, reason, code, dict(setting.parameters), setting.seed)
    return Outcome(end, seconds=seconds)


@cache
def lab_of(cache_dir: Path) -> Lab:
    """One a process, so that cells share what was loaded."""
    torch.set_num_threads(1)  # sums are then the same whatever runs beside; small models gain nothing by more
    return Lab(cache_dir)
