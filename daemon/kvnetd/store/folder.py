"""The store's folder as a whole: its version, and which key its memories are sealed with.

`store.json` is written before anything else is. A folder of a newer version, or sealed with a key that is
not here, is refused and left as it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kvnet.durable import write_durably
from kvnet.errors import KvnetError, StateCorrupt
from kvnet.format import strict_json
from kvnet.identity.secret_file import load_or_create_secret
from kvnet.types import canonical_json
from kvnetd.store.vault import Vault

STORE_VERSION: Final = 3  # 1 had no such file, and sealed nothing; 2 held other digests and frames
STORE_FILE: Final = "store.json"


@dataclass(frozen=True, slots=True)
class _About:
    version: int
    vault: str  # id of the key


def open_folder(store: Path, key_file: Path, *, seals: bool) -> Vault:
    """The vault of a store, of which `key_file` is or will be the key. Raises StateCorrupt."""
    path = store / STORE_FILE
    about = _read(path)
    if about is not None and not key_file.exists():
        raise StateCorrupt(
            f"{key_file}: is missing, and what lies in {store} was sealed with it; restore it from a backup, "
            f"or move {path} away to begin with a new key: sealed memories stay unreadable then"
        )
    vault = Vault(load_or_create_secret(key_file, what="vault key"), seals=seals)
    if about is None:
        write_durably(path, canonical_json(asdict(_About(STORE_VERSION, vault.key_id))))
    elif about.vault != vault.key_id:
        raise StateCorrupt(
            f"{key_file}: is not the key that {store} was sealed with; restore that one, or move {path} away "
            "to go on with this one: memories sealed with the other stay unreadable then"
        )
    return vault


def _read(path: Path) -> _About | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return _parse(data, path)
    except StateCorrupt:
        raise
    except KvnetError as exc:
        raise StateCorrupt(f"{exc.message}; restore {path} from a backup, kvnet left it untouched") from exc


def _parse(data: bytes, path: Path) -> _About:
    document = strict_json.loads(data, what=str(path))
    version = document.get("version") if isinstance(document, dict) else None
    # Before its fields: those of a newer version are unknown, and that is not what is wrong with it.
    if isinstance(version, int) and version > STORE_VERSION:
        raise StateCorrupt(
            f"{path.parent}: a store of version {version}, this kvnet reads up to {STORE_VERSION}; "
            "install the newer kvnet, this one left it untouched"
        )
    if isinstance(version, int) and version < STORE_VERSION:
        raise StateCorrupt(
            f"{path.parent}: a store of version {version}, this kvnet reads {STORE_VERSION}; move it away: "
            "memories are made or sent again"
        )
    return strict_json.from_plain(_About, document, what=str(path))
