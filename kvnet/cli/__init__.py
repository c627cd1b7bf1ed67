"""`kvnet`: answers on stdout, progress on stderr, `--json` everywhere.

Talks to the daemon through the SDK, starts it as a process, and never imports it.
"""
