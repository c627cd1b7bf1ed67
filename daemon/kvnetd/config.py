"""The daemon's settings: defaults, then config.toml, then KVNET_* variables, then flags. Built once.

A name that was given once stays until another is given.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvnet.codec.presets import CODECS, DEFAULT_PRESET
from kvnet.compat import Policy
from kvnet.errors import ConfigError
from kvnet.paths import Home
from kvnet.types import Compression, DType
from kvnetd.limits import Limits, limits_from, limits_of_environ

DEFAULT_MODEL = "ref-a"
_BOOLS = {"1": True, "true": True, "0": False, "false": False}
_CHOICES = {
    "quantization": ("none", "int8", "nf4"),
    "dtype": ("auto", *(dtype.value for dtype in DType)),
    "device": ("auto", "cpu", "cuda"),
    "compression": tuple(choice.name.lower() for choice in Compression),
    "codec": CODECS,
    "align": tuple(policy.value for policy in Policy),
}


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon can be told. Nothing reads the environment after this is built."""

    home: Home
    name: str = ""
    model: str = DEFAULT_MODEL
    quantization: str = "none"
    dtype: str = "auto"
    device: str = "auto"
    listen: str = "0.0.0.0:0"  # nobody unpaired is answered there
    namespace: str = "default"
    mdns: bool = True
    interfaces: tuple[str, ...] = ()
    codec: str = DEFAULT_PRESET  # of memories that are sent
    compression: str = "split"  # of memories that are kept
    keep_text: bool = False  # beside memories that are made here
    align: str = Policy.ALIGN.value  # what may be done with memories of other models
    log_max_nbytes: int = 16 << 20
    encrypt_at_rest: bool = True  # memories, texts and unfinished transfers
    unfinished_life_s: int = 24 * 3600  # how long a transfer on its way in can be resumed
    outbox_life_s: int = 7 * 24 * 3600  # how long a memory waits for its peer
    limits: Limits = field(default_factory=Limits)

    @property
    def listen_host(self) -> str:
        """The address the peer port binds to."""
        return _split_listen(self.listen)[0]

    @property
    def listen_port(self) -> int:
        """The peer port; 0 lets the system choose."""
        return _split_listen(self.listen)[1]


def load_config(home: Home, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """Merge the sources. Raises ConfigError naming the source, the key and what it takes."""
    environ = os.environ if environ is None else environ
    merged: dict[str, Any] = {"name": _kept_name(home) or socket.gethostname().split(".")[0][:40] or "node"}
    limits: dict[str, Any] = {}
    given = {key: value for key, value in flags.items() if value is not None}
    for source in (_from_file(home), _from_environ(environ), given):
        limits.update(_table(source.pop("limits", {})))
        merged.update(source)
    settings = {key: _typed(key, value) for key, value in merged.items()}
    config = Config(home=home, limits=limits_from(limits), **settings)
    _check(config)
    return config


def keep_name(config: Config) -> None:
    """Have the next start use this name too. Raises OSError."""
    path = config.home.name
    if _kept_name(config.home) != config.name:
        fresh = path.with_suffix(".new")
        fresh.write_text(config.name, encoding="utf-8")
        fresh.replace(path)


def _kept_name(home: Home) -> str:
    try:
        return home.name.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{home.name}: cannot be read ({exc}); remove it") from exc


def _from_file(home: Home) -> dict[str, Any]:
    try:
        text = home.config.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{home.config}: cannot be read ({exc})") from exc
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{home.config}: not TOML ({exc})") from exc
    for key in found:
        if key not in (*_KINDS, "limits"):
            known = ", ".join(sorted((*_KINDS, "limits")))
            raise ConfigError(f"{home.config}: unknown key {key!r}; known are {known}")
    return found


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {key: environ[f"KVNET_{key.upper()}"] for key in _KINDS if f"KVNET_{key.upper()}" in environ}
    return {**found, "limits": limits_of_environ(environ)}


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"setting limits: {value!r:.60} is not a table; write [limits] and the keys below it"
        )
    return value


def _typed(key: str, value: Any) -> Any:
    kind = _KINDS[key]
    try:
        if kind == "bool":
            return value if isinstance(value, bool) else _BOOLS[value]
        if kind == "int":
            return _natural(value)
        if kind == "tuple[str, ...]":
            return tuple(filter(None, value.split(","))) if isinstance(value, str) else tuple(map(str, value))
    except (KeyError, ValueError, TypeError) as exc:
        raise ConfigError(f"setting {key}: {value!r} is not a {kind}") from exc
    if not isinstance(value, str):
        raise ConfigError(f"setting {key}: {value!r} is not text")
    return value


def _natural(value: Any) -> int:
    if isinstance(value, bool | float) or int(value) < 0:
        raise ValueError(value)
    return int(value)


def _check(config: Config) -> None:
    for key, allowed in _CHOICES.items():
        if getattr(config, key) not in allowed:
            raise ConfigError(f"setting {key}: {getattr(config, key)!r} is none of {', '.join(allowed)}")
    if not config.name or len(config.name) > 40 or "/" in config.name:
        raise ConfigError(f"setting name: {config.name!r:.60} must have 1 to 40 characters and no slash")
    if not config.namespace or len(config.namespace) > 40:
        raise ConfigError(f"setting namespace: {config.namespace!r:.60} must have 1 to 40 characters")
    _split_listen(config.listen)


def _split_listen(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"setting listen: {listen!r} is not HOST:PORT; for example 0.0.0.0:7447")
    return host, int(port)


_KINDS: dict[str, str] = {f.name: str(f.type) for f in fields(Config) if f.name not in ("home", "limits")}
