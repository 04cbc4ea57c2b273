"""Studies: pre-train every arm with every seed, evaluate on tasks, and compare by fixed rules.

An arm is one way to pre-train. A run is one arm with one seed, and consists of stages, such as
preparing the text or fine-tuning on a task. The name of a stage is a hash of its inputs. Read in
this order: ``plan`` (runs and their stages), ``design`` (which runs are planned, and the decisions
between plans), ``work`` and ``pretraining`` (what stages do), ``run`` (execute all stages, and
judge the results by ``maskwise.verdict``). ``forecast`` plans a study without running it.
``single`` does one training run without a study.
"""

from maskwise.studies.forecast import check, dry_run
from maskwise.studies.plan import Plan, Run, make_plan
from maskwise.studies.pretraining import pretrain
from maskwise.studies.result import StudyResult, study
from maskwise.studies.run import run_study
from maskwise.studies.stages import Stage
from maskwise.studies.work import run_stage

__all__ = [
    "Plan",
    "Run",
    "Stage",
    "StudyResult",
    "check",
    "dry_run",
    "make_plan",
    "pretrain",
    "run_stage",
    "run_study",
    "study",
]
