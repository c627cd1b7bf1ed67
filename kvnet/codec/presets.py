"""Codings by name, and the seed's names for their parts. Knows no tensors: it imports without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from kvnet.errors import RequestError
from kvnet.types import Coding, Compression, Scheme

Quantization = Literal["none", "int8", "int4"]
Codec = Literal["none", "zstd", "lz4"]

_MAX_LEVELS: Final = {"none": 0, "lz4": 0, "zstd": 22}


@dataclass(frozen=True, slots=True)
class Preset:
    """A coding (of a transform: without its basis), and how its chunks are compressed.

    `level` 0 is the compression's own default.
    """

    name: str
    coding: Coding
    compression: Compression
    level: int = 0

    @property
    def needs_basis(self) -> bool:
        """Whether encoding and decoding take a calibration of the model."""
        return self.coding.scheme is Scheme.TRANSFORM


def _grouped(key_bits: int, value_bits: int, group_size: int, *, hadamard: bool = False) -> Coding:
    return Coding(Scheme.GROUPED, key_bits, value_bits, group_size, hadamard)


# Grouped codes go uncompressed: zstd takes off another tenth, and halves the speed of decoding.
PRESETS: Final[dict[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset("exact", Coding(), Compression.SPLIT, 1),
        Preset("int8", _grouped(8, 8, 64), Compression.NONE),
        Preset("k8v4", _grouped(8, 4, 128), Compression.NONE),
        Preset("int4", _grouped(4, 4, 64), Compression.NONE),
        Preset("int4-hadamard", _grouped(4, 4, 64, hadamard=True), Compression.NONE),
        Preset("compact", Coding(Scheme.TRANSFORM, sink_tokens=1, recent_tokens=2), Compression.ZSTD, 3),
    )
}
DEFAULT_PRESET: Final = "int8"
AUTO: Final = "auto"  # not a preset: the cheapest one that measures well enough on the model
CODECS: Final = (*PRESETS, AUTO)


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises RequestError, naming those that exist."""
    try:
        return PRESETS[name]
    except KeyError:
        raise RequestError(f"no codec {name[:40]!r}; there are {', '.join(CODECS)}") from None


def preset_name(coding: Coding) -> str:
    """The preset whose coding this is, or a label of its parts.

    Whatever its calibration or port, its pruned heads, and the groups it was fitted with.
    """
    if coding.scheme is Scheme.PORT:
        return f"{coding.scheme}{coding.key_bits}"
    plain = replace(coding, basis="", basis_nbytes=0, pruned_heads=())
    for preset in PRESETS.values():
        if preset.coding == replace(plain, group_size=preset.coding.group_size):
            return preset.name
    if coding.scheme is Scheme.GROUPED:
        mixed = "-hadamard" if coding.hadamard else ""
        return f"k{coding.key_bits}v{coding.value_bits}g{coding.group_size}{mixed}"
    return str(coding.scheme)


def compose_preset(quantization: str = "none", codec: str = "none", level: int = 0) -> Preset:
    """A preset of the seed's parts: int8, int4 or none, then none, zstd or lz4 at a level.

    Raises RequestError for a part that does not exist.
    """
    _refuse_unknown("quantization", quantization, get_args(Quantization))
    _refuse_unknown("codec", codec, get_args(Codec))
    if not 0 <= level <= _MAX_LEVELS[codec]:
        raise RequestError(f"level {level}; {codec} has 0 (its default) to {_MAX_LEVELS[codec]}")
    coding = Coding() if quantization == "none" else PRESETS[quantization].coding
    name = f"{quantization}+{codec}" + (f":{level}" if level else "")
    return Preset(name, coding, Compression[codec.upper()], level)


def fit_groups(coding: Coding, num_channels: int) -> Coding:
    """The coding with groups that divide a token's channels, if a size up to twice its own does.

    Else the last group of every token is a short one, whose scale costs as much as a whole one's.
    """
    if coding.scheme is not Scheme.GROUPED:
        return coding
    sizes = range(coding.group_size, 2 * coding.group_size + 1)
    fitting = next((size for size in sizes if num_channels % size == 0), coding.group_size)
    return replace(coding, group_size=fitting)


def with_basis(coding: Coding, digest: str, nbytes: int) -> Coding:
    """A transform coding that names its calibration."""
    return replace(coding, basis=digest, basis_nbytes=nbytes)


def _refuse_unknown(part: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RequestError(f"{part} is {value[:40]!r}, it must be one of {', '.join(choices)}")
