"""Entry point of ``python -m maskwise.cli``, which torchrun needs."""

from __future__ import annotations

from maskwise.cli import main

if __name__ == "__main__":
    main()
