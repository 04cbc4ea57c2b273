"""maskwise: pre-train masked and denoising language models well.

    text → annotated tokens → masked batch → loss → checkpoint → task score → report
           annotate/          masking/       objectives/  training/   tasks/       report/

A training run combines five independent choices: *what* is masked (policy), *how much* is masked at
each step (schedule), *how* the model sees masked tokens (corruption), *which loss* is minimised
(objective), and *which objective* is trained next (sampler).
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0rc1"

if TYPE_CHECKING:
    from maskwise import samplers
    from maskwise.api import annotate_rows, encode, evaluate, finetune, learn, load
    from maskwise.base.errors import MaskwiseError
    from maskwise.changes import change
    from maskwise.hf.packed_collator import PackedCollator
    from maskwise.hf.trainer import MaskingTrainer
    from maskwise.masking import (
        MaskedBatch,
        Masker,
        MaskingCollator,
        Noising,
        StepBatchSampler,
        SteppedDataset,
        corrupt,
        schedules,
    )
    from maskwise.models.cards import push_to_hub
    from maskwise.scores.compared import compare
    from maskwise.studies.result import StudyResult, adapt, check, study
    from maskwise.tasks.loading import load_task

_HOMES = {
    "adapt": "maskwise.studies.result",
    "annotate_rows": "maskwise.api",
    "encode": "maskwise.api",
    "evaluate": "maskwise.api",
    "finetune": "maskwise.api",
    "learn": "maskwise.api",
    "load": "maskwise.api",
    "MaskwiseError": "maskwise.base.errors",
    "MaskedBatch": "maskwise.masking",
    "Masker": "maskwise.masking",
    "MaskingCollator": "maskwise.masking",
    "MaskingTrainer": "maskwise.hf.trainer",
    "Noising": "maskwise.masking",
    "PackedCollator": "maskwise.hf.packed_collator",
    "StepBatchSampler": "maskwise.masking",
    "SteppedDataset": "maskwise.masking",
    "StudyResult": "maskwise.studies.result",
    "change": "maskwise.changes",
    "check": "maskwise.studies.result",
    "compare": "maskwise.scores.compared",
    "corrupt": "maskwise.masking",
    "schedules": "maskwise.masking",
    "load_task": "maskwise.tasks",
    "push_to_hub": "maskwise.models.cards",
    "study": "maskwise.studies.result",
    "samplers": "maskwise",
}

__all__ = [
    "MaskedBatch",
    "Masker",
    "MaskingCollator",
    "MaskingTrainer",
    "MaskwiseError",
    "Noising",
    "PackedCollator",
    "StepBatchSampler",
    "SteppedDataset",
    "StudyResult",
    "__version__",
    "adapt",
    "annotate_rows",
    "change",
    "check",
    "compare",
    "corrupt",
    "encode",
    "evaluate",
    "finetune",
    "learn",
    "load",
    "load_task",
    "push_to_hub",
    "samplers",
    "schedules",
    "study",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because ``maskwise --help`` must not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        if _HOMES[name] == "maskwise":  # ``samplers`` is a package
            return import_module(f"maskwise.{name}")
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'maskwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Add the public names, which are imported on first use."""
    return [*globals(), *__all__]
