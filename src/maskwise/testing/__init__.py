"""For the tests of packages that add policies and corruptions: does yours keep the contract?

``check_policy`` and ``check_corruption`` mask invented rows that break careless code, or rows of
your own, and say in one line which rule is broken. The invented rows are those of ``RowMaker``.
"""

from maskwise.testing.checks import check_corruption, check_policy
from maskwise.testing.rows import LAYERS, RowMaker, small_vocabulary

__all__ = ["LAYERS", "RowMaker", "check_corruption", "check_policy", "small_vocabulary"]
