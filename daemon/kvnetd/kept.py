"""What a fit or a training leaves on disk, to be taken up again. Knows no mathematics."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

from kvnet.durable import sync_folder
from kvnet.errors import KvnetError, StoreFull
from kvnet.types import canonical_json
from kvnetd.store.disk import require_room

if TYPE_CHECKING:  # else imported where it is used: a node without a model sweeps, and has no torch
    import torch

FITS: Final = "fits"  # folders in the state folder
TRAININGS: Final = "trainings"
_SAVE_EVERY_S: Final = 60.0
_KEPT_FOR_S: Final = 7 * 24 * 3600.0
_log = logging.getLogger(__name__)


class Resumable(Protocol):
    """What can be kept as tensors and taken up again."""

    def to_tensors(self) -> dict[str, torch.Tensor]: ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self: ...


S = TypeVar("S", bound=Resumable)


class KeptState(Generic[S]):
    """The state of one fit or training on disk, so that it can be left and taken up again.

    For the model's thread.
    """

    def __init__(self, folder: Path, what: object, kind: type[S]) -> None:
        """`what` is all that the work depends on: the same again finds the same state, which is a `kind`."""
        name = hashlib.sha256(canonical_json(what)).hexdigest()
        self._path = folder / f"{name}.safetensors"
        self._kind = kind
        self._state: S | None = None
        self._saved_at = time.monotonic()

    def load(self) -> S | None:
        """What an earlier call left; None if it left nothing that can be read."""
        import safetensors.torch
        from safetensors import SafetensorError

        try:
            self._state = self._kind.from_tensors(safetensors.torch.load_file(self._path))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KvnetError, KeyError, ValueError, RuntimeError) as exc:
            _log.warning("what a fit or training left cannot be read, it starts anew: %s", exc)
            return None
        return self._state

    def note(self, state: S, *, at_once: bool = False) -> None:
        """How far the work is; written at most once a minute, but `at_once` where a long phase follows."""
        self._state = state
        if at_once or time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write what was noted last. A disk that has no room for it costs a resume, not the work."""
        if self._state is None:
            return
        import safetensors.torch
        from safetensors import SafetensorError

        self._saved_at = time.monotonic()
        # A file holds rows; a solver may have left columns.
        tensors = {name: tensor.contiguous() for name, tensor in self._state.to_tensors().items()}
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            require_room(self._path.parent, sum(t.nbytes for t in tensors.values()), what="state")
            safetensors.torch.save_file(tensors, fresh)
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            fresh.replace(self._path)
            sync_folder(self._path.parent)
        except (OSError, SafetensorError, StoreFull) as exc:
            fresh.unlink(missing_ok=True)
            _log.warning("the state of a fit or training cannot be kept: %s", exc)

    def drop(self) -> None:
        """The work came to its end."""
        self._path.unlink(missing_ok=True)


def sweep_states(root: Path) -> None:
    """Unlink the states of fits and trainings in this state folder that nobody came back to for a week.

    They are as large as they are useless. Blocks.
    """
    for folder in (FITS, TRAININGS):
        for path in (root / folder).glob("*"):
            with suppress(FileNotFoundError):  # it came to its end meanwhile
                if time.time() - path.stat().st_mtime > _KEPT_FOR_S:
                    path.unlink()
