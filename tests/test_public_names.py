"""Public names of the first release candidate (commit 7a7d19a3) work, or say what they are called
now.
"""

from __future__ import annotations

import warnings
from importlib import import_module

import numpy as np
import pytest

from masking_tools import padded, random_rows, vocabulary
from maskwise.masking import Masker
from maskwise.text import Document, Rows, read_pieces, tokenise, train_tokenizer

PUBLIC = {
    "maskwise": """MaskedBatch Masker MaskingCollator MaskingTrainer MaskwiseError Noising
        PackedCollator StepBatchSampler SteppedDataset __version__ annotate_rows corrupt encode
        push_to_hub samplers schedules""",
    "maskwise.masking": """CORRUPTIONS IGNORE POLICIES SCHEDULES AnnotatedBatch MaskedBatch Masker
        MaskingCollator Noising Pieces Policy Rows StepBatchSampler SteppedDataset UnitKind
        Vocabulary corrupt gather schedules""",
    "maskwise.masking.schedules": """Schedule FunctionSchedule constant SCHEDULES published linear
        cosine step linear_decay cosine_decay linear_ascend square_above square_below triangle vee
        warm_decay cosine_parabola elliptical piecewise warm_up then scaled clipped uniform beta
        bell cosine_rates mixture schedule""",
    "maskwise.samplers": """SAMPLERS LossProportional Mometas MometasPlus Sampler Sequential Shares
        Single Uniform sampler""",
    "maskwise.text": """Document Documents PieceBatch Pieces Prepared Rows Stream Tokens
        annotate_rows bundled_path encode load_tokenizer read_documents read_pieces
        require_documents shards_of split tokenise train_tokenizer word_ids""",
    "maskwise.annotate.run": "annotate_corpus",
    "maskwise.annotate.store": "Store",
    "maskwise.annotate.registry": "annotator",
    "maskwise.tasks": """BUNDLED_TASKS CARDS KINDS METRICS FinetuneSettings Score Task TaskRecord
        TaskSource encode evaluate_tasks finetune load_task task_record""",
    "maskwise.evaluation": "overlap_record",
    "maskwise.training": "train TrainingSettings leave",
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]
RENAMED = {
    ("maskwise.masking", "AnnotatedBatch"): "Line",
    ("maskwise.masking", "Pieces"): "Line",
    ("maskwise.masking", "Rows"): "UserRows",
    ("maskwise.text", "PieceBatch"): "Line",
}


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_works_or_says_its_new_name(module: str, name: str) -> None:
    if (module, name) not in RENAMED:
        assert getattr(import_module(module), name) is not None
        return
    with pytest.raises(AttributeError, match=f"{name} is now .*{RENAMED[module, name]}"):
        getattr(import_module(module), name)


def test_renamed_attributes_answer_with_a_warning() -> None:
    batch = Masker(vocabulary())(padded(random_rows(3)), epoch=0)
    with pytest.warns(DeprecationWarning, match=r"MaskedBatch\.line"):
        assert batch.source is batch.line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(batch.line.input_ids.shape, (batch.input_ids.numel(),))


def test_rows_of_a_corpus_have_their_former_method() -> None:
    tools = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    tokens = tokenise([Document("a", "the cat sat")], tools)
    rows = Rows.of(read_pieces(tokens, tokenizer=tools, length=8))
    with pytest.warns(DeprecationWarning, match=r"Rows\.line"):
        line = rows.batch([0])
    assert np.array_equal(line.input_ids, rows.line([0]).input_ids)
