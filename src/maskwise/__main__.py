"""Entry point of ``python -m maskwise``, which torchrun needs: ``torchrun -m maskwise …``."""

from __future__ import annotations

from maskwise.cli import main

if __name__ == "__main__":
    main()
