"""Settings for every test: no deadline per hypothesis example, since a busy machine is not a bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kvnet", deadline=None)
settings.load_profile("kvnet")
