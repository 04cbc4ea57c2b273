"""Arms × seeds × tasks → statistics. Stages addressed by content, run by workers, judged by fixed rules.

Read in this order: ``stages`` (the pieces of work), ``plan`` (which), ``phases`` (in which order, and what is decided
between them), ``work`` (what is done), ``runner`` (do them all), ``verdict`` (what follows).
Imports every room below; ``report`` only reads the files.
"""

from maskwise.study.dry import dry_run
from maskwise.study.plan import Plan, Run, make_plan
from maskwise.study.runner import run_study
from maskwise.study.stages import Stage
from maskwise.study.work import Prepared, pretrain, run_stage

__all__ = ["Plan", "Prepared", "Run", "Stage", "dry_run", "make_plan", "pretrain", "run_stage", "run_study"]
