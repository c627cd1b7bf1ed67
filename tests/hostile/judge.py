"""Has kvnet judge every file of a corpus, in a process of its own: `python -m tests.hostile.judge CORPUS`.

Prints one JSON object: the verdict of each case, and how far the process's memory rose. A case that takes a
second of processor time is "slow", one that raises anything but a KvnetError is "crash: …". Memory is the
high-water mark of the resident set, which sees what the compressors and torch allocate; what tracemalloc
counts would miss both. The valid files go first, so that the rise is due to the others.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import torch

from tests.hostile.kvnet_verdict import kvnet_verdict
from tests.hostile.make_corpus import named_by

MOST_CPU_S = 1.0


def main() -> None:
    """Judge the corpus named on the command line."""
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    signal.signal(signal.SIGVTALRM, _give_up)
    expected: dict[str, str] = json.loads((root / "expected.json").read_text(encoding="utf-8"))
    paths = {path.stem if path.is_file() else path.name: path for path in root.iterdir()}
    warm = {
        name: _judge(paths[name], named_by(name, root)) for name, code in expected.items() if code == "ok"
    }
    before = _high_water_nbytes()
    others = [name for name in expected if name not in warm]
    verdicts = warm | {name: _judge(paths[name], named_by(name, root)) for name in others}
    print(json.dumps({"verdicts": verdicts, "rise_nbytes": _high_water_nbytes() - before}))


def _judge(path: Path, basis: bytes) -> str:
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_S)
    try:
        return kvnet_verdict(path, basis)
    except TimeoutError:
        return "slow"
    except Exception as exc:
        return f"crash: {type(exc).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _give_up(*_: object) -> None:
    raise TimeoutError


def _high_water_nbytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
