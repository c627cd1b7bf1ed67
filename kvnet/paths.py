"""Where a node keeps its things: one folder, from KVNET_HOME or the platform's data folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvnet.errors import ConfigError

# A Unix socket's path is limited by the kernel to 107 bytes and a zero.
MAX_SOCKET_PATH_NBYTES = 107


@dataclass(frozen=True, slots=True)
class Home:
    """The layout of a node's state folder."""

    root: Path

    @property
    def config(self) -> Path:
        """Settings, TOML."""
        return self.root / "config.toml"

    @property
    def identity(self) -> Path:
        """The private key, mode 0600."""
        return self.root / "identity" / "node.key"

    @property
    def vault_key(self) -> Path:
        """What memories are sealed with at rest, mode 0600."""
        return self.root / "identity" / "vault.key"

    @property
    def name(self) -> Path:
        """What this node called itself when it last ran."""
        return self.root / "name"

    @property
    def peers(self) -> Path:
        """Added peers."""
        return self.root / "peers.json"

    @property
    def store(self) -> Path:
        """Memories and transfers."""
        return self.root / "store"

    @property
    def cache(self) -> Path:
        """What can be computed again: weight digests, random checkpoints."""
        return self.root / "cache"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.root / "log" / "events.jsonl"

    @property
    def daemon_log(self) -> Path:
        """What the daemon prints."""
        return self.root / "log" / "daemon.log"

    @property
    def run(self) -> Path:
        """Socket, token and lock of the running daemon, mode 0700."""
        return self.root / "run"

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.run / "control.sock"

    @property
    def token(self) -> Path:
        """What a caller on the control socket must show, mode 0600."""
        return self.run / "token"

    @property
    def lock(self) -> Path:
        """Held by the running daemon; contains its pid."""
        return self.run / "kvnetd.lock"

    def check(self) -> None:
        """Raise ConfigError where the kernel could not bind the control socket."""
        nbytes = len(os.fsencode(self.socket))
        if nbytes > MAX_SOCKET_PATH_NBYTES:
            raise ConfigError(
                f"state folder {self.root}: its control socket's path has {nbytes} bytes, the kernel allows "
                f"{MAX_SOCKET_PATH_NBYTES}; set KVNET_HOME to a shorter path"
            )


def find_home(environ: dict[str, str] | None = None) -> Home:
    """KVNET_HOME, or the platform's data folder for kvnet (XDG on Linux)."""
    named = (os.environ if environ is None else environ).get("KVNET_HOME")
    if named:
        try:
            return Home(Path(named).expanduser().absolute())
        except RuntimeError as exc:
            raise ConfigError(f"KVNET_HOME {named}: there is no such user; name a folder") from exc
    import platformdirs

    return Home(Path(platformdirs.user_data_dir("kvnet")))
