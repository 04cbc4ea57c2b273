"""Entry point of ``python -m maskwise.cli``, the former spelling of ``python -m maskwise``."""

from __future__ import annotations

from maskwise.cli import main

if __name__ == "__main__":
    main()
