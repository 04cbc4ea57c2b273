"""Where the stages of a study are done, and the one loop that hands them out."""

from maskwise.study.engines.schedule import execute

__all__ = ["execute"]
