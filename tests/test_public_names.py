"""Public names of the first release candidate (commit 7a7d19a3) work, or say what they are called
now.
"""

from __future__ import annotations

from importlib import import_module

import pytest

PUBLIC = {
    "maskwise": """MaskedBatch Masker MaskingCollator MaskingTrainer MaskwiseError Noising
        PackedCollator StepBatchSampler SteppedDataset __version__ annotate_rows corrupt encode
        push_to_hub samplers schedules""",
    "maskwise.masking": """CORRUPTIONS IGNORE POLICIES SCHEDULES MaskedBatch Masker
        MaskingCollator Noising Policy StepBatchSampler SteppedDataset UnitKind
        Vocabulary corrupt gather schedules""",
    "maskwise.masking.schedules": """Schedule FunctionSchedule constant SCHEDULES published linear
        cosine step linear_decay cosine_decay linear_ascend square_above square_below triangle vee
        warm_decay cosine_parabola elliptical piecewise warm_up then scaled clipped uniform beta
        bell cosine_rates mixture schedule""",
    "maskwise.samplers": """SAMPLERS LossProportional Mometas MometasPlus Sampler Sequential Shares
        Single Uniform sampler""",
    "maskwise.text": """Document Documents Pieces Prepared Rows Stream Tokens
        bundled_path load_tokenizer read_documents read_pieces
        require_documents shards_of split tokenise train_tokenizer word_ids""",
    "maskwise.annotate.run": "annotate_corpus",
    "maskwise.annotate.kept": "Store",
    "maskwise.annotate.registry": "annotator",
    "maskwise.tasks": """BUNDLED_TASKS CARDS KINDS METRICS FinetuneSettings Score Task TaskRecord
        TaskSource evaluate_tasks finetune load_task task_record task_tensors""",
    "maskwise.evaluation": "overlap_record",
    "maskwise.training": "train TrainingSettings leave",
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_works(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is not None
