"""Transfer experiments as logs: run folders, recipes, and everything that is computed from them. No torch.

`init`, `log` and `finish` write a run folder of one's own, by the names that trackers use.
"""

from __future__ import annotations

from kvnet.experiments.tracker import finish, init, log

__all__ = ["finish", "init", "log"]
