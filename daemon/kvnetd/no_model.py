"""What stands in the place of a model on a node that hosts none: it keeps and passes on memories, no more.

The one place that says so. Whoever asks it for a model's work hears why there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from kvnet.compat import NO_GEOMETRY, NO_MODEL
from kvnet.errors import NoModelHosted

if TYPE_CHECKING:
    from kvnet.model.host import ModelHost

NONE: Final = "none"  # the setting `model` of such a node


class _NoHost:
    """What is known of a model that is not there; all else of a ModelHost raises NoModelHosted."""

    name = NONE
    fingerprint = NO_MODEL
    geometry = NO_GEOMETRY
    max_seq_len = (1 << 31) - 1  # of a memory that is kept; its bytes are bounded as any node's

    def __getattr__(self, name: str) -> Any:
        raise _refusal()


def no_host() -> ModelHost:
    """A host without a model."""
    return cast("ModelHost", _NoHost())


def refuse_without_model(host: object) -> None:
    """Raise NoModelHosted unless there is a model: before anything is loaded that only a model needs."""
    if isinstance(host, _NoHost):
        raise _refusal()


def _refusal() -> NoModelHosted:
    return NoModelHosted(
        "this node hosts no model, it keeps memories and passes them on; "
        "ask a node that has one, or start this one with `kvnet up --model NAME`"
    )
