"""`python -m kvnet.model.inspect_main`: the structure study as one JSON document on stdout.

Its `num_layers` and `layers` are the seed's Appendix B, from the first prompt; every prompt's own
structure is under `rows`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from kvnet.errors import KvnetError
from kvnet.model.host import ModelHost
from kvnet.model.inspect import inspect_cache, report_to_plain
from kvnet.model.loader import ModelSpec


def main(arguments: list[str] | None = None) -> int:
    """Load the model, generate from the seed's prompts, print what the cache looks like."""
    flags = _parser().parse_args(arguments)
    try:
        spec = ModelSpec(flags.model, flags.quantization, flags.dtype, flags.device)
        report = inspect_cache(ModelHost.load(spec, flags.cache_dir))
    except KvnetError as error:
        print(json.dumps({"error": {"code": error.code, "message": error.message}}))
        print(f"error: {error.message} [{error.code}]", file=sys.stderr)
        return error.exit_status
    appendix_b = asdict(report.rows[0].structure)
    print(json.dumps({**appendix_b, **report_to_plain(report)}, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show the structure of a model's cache.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache-dir", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
