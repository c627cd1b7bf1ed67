"""`kvnetd`: run one node in the foreground. Flags in, exit status out."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from kvnet.errors import KvnetError, StateCorrupt
from kvnet.extras import require_node_extra
from kvnet.paths import Home, find_home
from kvnetd.allocator import keep_chunks_mapped
from kvnetd.config import load_config
from kvnetd.no_model import NONE


def main(arguments: list[str] | None = None) -> int:
    """Parse flags, run the node; errors are one JSON line on stderr, for whoever started it."""
    flags = vars(_parser().parse_args(arguments))
    as_json = bool(flags.pop("json"))
    try:
        named = flags.pop("home")
        home = Home(Path(named).absolute()) if named else find_home()
        config = load_config(home, flags)
        if config.model != NONE:
            require_node_extra()
        # gRPC's core would write a line for every stranger whose handshake fails.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        keep_chunks_mapped()
        # Here, not above: a bad setting must not cost the seconds that torch takes to import.
        from kvnetd.app import run

        asyncio.run(run(config, as_json=as_json))
    except KvnetError as error:
        return _say(error)
    except OSError as exc:
        return _say(StateCorrupt(f"state folder: cannot be used ({exc.strerror}: {exc.filename}); mend it"))
    return 0


def _say(error: KvnetError) -> int:
    print(json.dumps({"code": error.code, "message": error.message}), file=sys.stderr, flush=True)
    return error.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvnetd", description="Run one kvnet node in the foreground.")
    parser.add_argument("--home", help="state folder (default: KVNET_HOME or the platform's data folder)")
    parser.add_argument("--json", action="store_true", help="say that it is ready as one JSON line")
    parser.add_argument("--name", help="what this node calls itself")
    parser.add_argument("--model", help="ref-a, ref-b, ref-c, a folder, random:tinyllama, a hub id, or none")
    parser.add_argument("--quantization", help="none, int8 or nf4")
    parser.add_argument("--dtype", help="auto, float32, float16 or bfloat16")
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--listen", help="HOST:PORT of the peer port")
    parser.add_argument("--namespace", help="nodes of other namespaces are not seen")
    parser.add_argument("--interfaces", help="comma-separated interface names or addresses for mDNS")
    parser.add_argument("--mdns", help="1 or 0")
    parser.add_argument("--codec", help="for memories sent: auto, exact, int8, k8v4, int4, compact")
    parser.add_argument("--compression", help="none, lz4, zstd or split, for memories kept here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
