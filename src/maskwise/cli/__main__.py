"""``python -m maskwise.cli``, for torchrun."""

from __future__ import annotations

from maskwise.cli import main

if __name__ == "__main__":
    main()
