"""Arms, seeds and tasks → statistics. Stages are addressed by content, run by workers, and their
results are compared by fixed rules.

Read in this order: ``plan`` (runs and their stages), ``design`` (their order, and what is decided
between them), ``work`` and ``pretraining`` (what stages do), ``run`` (run them all), ``verdict``
(what follows). ``single`` runs one training without a study.
"""

from maskwise.study.forecast import dry_run
from maskwise.study.plan import Plan, Run, make_plan
from maskwise.study.pretraining import pretrain
from maskwise.study.run import run_study
from maskwise.study.stages import Stage
from maskwise.study.work import run_stage

__all__ = ["Plan", "Run", "Stage", "dry_run", "make_plan", "pretrain", "run_stage", "run_study"]
