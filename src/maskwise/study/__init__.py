"""Studies: pre-train every arm with every seed, evaluate on tasks, and compare by fixed rules.

An arm is one way to pre-train. A run is one arm with one seed, and consists of stages, such as
preparing the text or fine-tuning on a task. The name of a stage is a hash of its inputs. Read in
this order: ``plan`` (runs and their stages), ``design`` (which runs are planned, and the decisions
between plans), ``work`` and ``pretraining`` (what stages do), ``run`` (execute all stages, and
judge the results by ``maskwise.verdict``). ``forecast`` plans a study without running it.
``single`` does one training run without a study.

The package is also a function: ``maskwise.study(recipe, out=…)`` runs a study (``result.study``).
"""

import sys
from types import ModuleType

from maskwise.study.forecast import check, dry_run
from maskwise.study.plan import Plan, Run, make_plan
from maskwise.study.pretraining import pretrain
from maskwise.study.result import StudyResult, study
from maskwise.study.run import run_study
from maskwise.study.stages import Stage
from maskwise.study.work import run_stage

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


class _Callable(ModuleType):
    # Importing a package makes it an attribute of ``maskwise``, which would hide a function.
    __call__ = staticmethod(study)


sys.modules[__name__].__class__ = _Callable
