"""Headers with keys in content space, and ropes that turn them or cannot; correctly signed.

Rule 5 of FORMAT.md §7.2, Content space of §8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile.bases import OK, Case, Header, changed, grouped
from tests.second_reader.awkg_builder import Draft


def cases() -> Iterator[Case]:
    """Every case of this page."""
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 8192}
    ropes: dict[str, Header] = {
        "theta_0": {"ropeTheta": 0},
        "theta_negative": {"ropeTheta": -10000.0},
        "theta_below_1": {"ropeTheta": 0.5},
        "theta_1e300": {"ropeTheta": 1e300},
        "linear_without_factor": {"ropeType": "linear"},
        "linear_by_tiny": {"ropeType": "linear", "extra": {"factor": 1e-320}},
        "linear_by_1e13": {"ropeType": "linear", "extra": {"factor": 1e13}},
        "linear_by_0": {"ropeType": "linear", "extra": {"factor": 0}},
        "linear_by_text": {"ropeType": "linear", "extra": {"factor": "2"}},
        "linear_by_list": {"ropeType": "linear", "extra": {"factor": [2]}},
        "linear_by_true": {"ropeType": "linear", "extra": {"factor": True}},
        "llama3_low_is_high": {"ropeType": "llama3", "extra": llama3 | {"low_freq_factor": 4.0}},
    }
    for key in llama3:
        without = {name: value for name, value in llama3.items() if name != key}
        ropes[f"llama3_without_{key}"] = {"ropeType": "llama3", "extra": without}
        ropes[f"llama3_{key}_0"] = {"ropeType": "llama3", "extra": llama3 | {key: 0}}
    for name, rope in ropes.items():
        yield changed(f"content_rope_{name}", _set("rope", _ROPE | rope), draft=_turned())
    for name, rope in _scaled_ropes():
        yield changed(f"content_rope_{name}", _set("rope", _ROPE | rope), draft=_turned(headDim=4))
    for start in (2**31, 2**53, 2**62, 2**63 - 1):
        huge = _turned(startPosition=start)
        yield changed(f"content_position_{start}", lambda header: None, draft=huge)
    for factor in (0, -0.5, 1.0625, 2, 1e300):
        partial = _ROPE | {"partialRotaryFactor": factor}
        yield changed(f"partial_rotary_factor_{factor}", _set("rope", partial))
        yield changed(f"content_rope_partial_{factor}", _set("rope", partial), draft=_turned())
    yield changed("raw_keys_in_content_space", _set("keySpace", "content"))
    yield changed("rotated_rope_theta_0", _set("rope", _ROPE | {"ropeTheta": 0}), OK)
    yield changed("content_rope_llama3", _set("rope", ropes["theta_0"] | _LLAMA3), OK, _turned())
    for kind, extra in _SCALED.items():
        scaled = {"ropeType": kind, "ropeTheta": 10000.0, "extra": extra}
        yield changed(f"content_rope_{kind}", _set("rope", scaled), OK, _turned(headDim=4))


def _scaled_ropes() -> Iterator[tuple[str, Header]]:
    """Scalings whose parameters do not fit; those that do are at the end of `cases`."""
    breaks: dict[str, dict[str, list[Any]]] = {
        "dynamic": {"factor": [None, 0, "2"], "max_position_embeddings": [-1, True, "64"]},
        "yarn": {
            "original_max_position_embeddings": [None, 0],
            "factor": [None, 0, -1, False],
            "attention_factor": [0.2, 4.5, [1]],
            "beta_fast": [1e13, "32"],
            "mscale": [-1.0],
            "truncate": [None, 1, "no"],
        },
        "longrope": {
            "original_max_position_embeddings": [1],
            "factor": [None],
            "short_factor": [[1.0], [1.0, 0], 1.0, "11"],
            "long_factor": [[1.0] * 3, [1.0, True], None],
        },
        "proportional": {"factor": [-1.0, 1e13]},
    }
    for kind, names in breaks.items():
        for name, values in names.items():
            for i, value in enumerate(values):
                yield f"{kind}_{name}_{i}", {"ropeType": kind, "extra": _SCALED[kind] | {name: value}}
    yield "yarn_theta_1", {"ropeType": "yarn", "ropeTheta": 1, "extra": _SCALED["yarn"]}


def _set(key: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[key] = value

    return change


def _turned(**changes: Any) -> Draft:
    """A grouped memory whose keys are in content space."""
    return grouped(keySpace="content", **changes)


_ROPE: Header = {"ropeType": "default", "ropeTheta": 10000.0}
_LLAMA3: Header = {
    "ropeType": "llama3",
    "ropeTheta": 500000.0,
    "extra": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_OLD: Header = {"original_max_position_embeddings": 2}
_SCALED: dict[str, Header] = {
    "dynamic": {"factor": 2.0, "max_position_embeddings": 2},
    "yarn": {"factor": 4.0, **_OLD},
    "longrope": {"factor": 4.0, "short_factor": [1, 1.5], "long_factor": [1, 8.0], **_OLD},
    "proportional": {"factor": 2},
}
