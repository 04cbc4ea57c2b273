"""``python -m maskwise.cli``, as torchrun wants it."""

from __future__ import annotations

from maskwise.cli import main

if __name__ == "__main__":
    main()
