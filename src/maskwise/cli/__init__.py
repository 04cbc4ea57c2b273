"""The command line: every command is a function with typed arguments, and calls a room that does the work.

``app`` knows all commands and turns bad input into one line and exit code 2; ``runs`` are the commands that write a
folder, ``views`` those that look; ``tables`` prints verdicts and plans, ``terminal`` what all share. It sees every room
and imports each only when its command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

from maskwise.cli.app import app, main

__all__ = ["app", "main"]
