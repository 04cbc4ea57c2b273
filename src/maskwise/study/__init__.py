"""Studies: pre-train every arm with every seed, evaluate on tasks, and compare by fixed rules.

Stages are addressed by content and run by workers. Read in this order: ``plan`` (runs and their
stages), ``design`` (the order of plans, and the decisions between them), ``work`` and
``pretraining`` (what stages do), ``run`` (run them all), ``verdict`` (compare the results).
``forecast`` plans a study without running it. ``single`` does one training run without a study.
"""

from maskwise.study.forecast import dry_run
from maskwise.study.plan import Plan, Run, make_plan
from maskwise.study.pretraining import pretrain
from maskwise.study.run import run_study
from maskwise.study.stages import Stage
from maskwise.study.work import run_stage

__all__ = ["Plan", "Run", "Stage", "dry_run", "make_plan", "pretrain", "run_stage", "run_study"]
