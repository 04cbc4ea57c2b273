"""Arms × seeds × tasks → statistics. Stages addressed by content, run by workers, judged by fixed
rules.

Read in this order: ``plan`` (the stages, and which a run is made of), ``design`` (in which order,
and what is decided between them), ``work`` (what is done), ``run`` (do them all), ``verdict`` (what
follows). ``single`` is one training without a study. Imports every room below; ``report`` only
reads the files.
"""

from maskwise.study.forecast import dry_run
from maskwise.study.plan import Plan, Run, make_plan
from maskwise.study.pretraining import pretrain
from maskwise.study.run import run_study
from maskwise.study.stages import Stage
from maskwise.study.work import run_stage

__all__ = ["Plan", "Run", "Stage", "dry_run", "make_plan", "pretrain", "run_stage", "run_study"]
