"""Where the stages of a study are done: processes on this machine, or a Ray cluster.

``base`` says what an engine is, ``local`` and ``cluster`` are the two, ``schedule`` is the one loop that hands
stages to either. A third engine is a class with four methods and a line in ``schedule.ENGINES``.
"""

from maskwise.study.engines.schedule import ENGINES, RETRIES, execute, require_engine

__all__ = ["ENGINES", "RETRIES", "execute", "require_engine"]
