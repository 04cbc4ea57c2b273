"""Makes ``python -m maskwise.cli`` work, which torchrun needs."""

from __future__ import annotations

from maskwise.cli import main

if __name__ == "__main__":
    main()
