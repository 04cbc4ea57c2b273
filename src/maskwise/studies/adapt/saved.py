"""Save the adapted model for transformers and for sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from maskwise.base.folders import (
    CARD,
    MANIFEST,
    file_hash,
    fill_folder,
    read_json,
    write_json,
    write_whole,
)
from maskwise.models.cards import MADE_BY, with_metadata
from maskwise.models.families import most_tokens
from maskwise.models.loading import load_config, load_task_model, without_advice
from maskwise.recipe.yamls import Plain
from maskwise.report.reading import read_outcomes
from maskwise.studies.adapt.answer import arm_that_helps
from maskwise.studies.adapt.forgotten import forgotten_of, forgotten_words
from maskwise.studies.adapt.request import OTHER_TEXT
from maskwise.studies.checkpoints import card_of, needed_run, origin_of, save_model, trained_run
from maskwise.text import load_tokenizer

SENTENCES = {
    "library_name": "sentence-transformers",
    "pipeline_tag": "sentence-similarity",
    "tags": ["sentence-transformers", MADE_BY],
}
SENTENCE_CARD = """
Sentence embeddings: mean pooling over the token embeddings of the encoder described below.
Load the model with `SentenceTransformer(FOLDER)`.

"""


class Saved(TypedDict):
    """The adapted model of a study: the content of adapted.json, which the page reads.

    ``arm`` and ``seed`` name the run whose checkpoint was saved. ``helps`` says whether the study
    decided that the arm is better than the unchanged model. ``checkpoint`` is a hash of what was
    saved. ``mean_difference`` is the lead of the arm's mean in ``unit`` (negative if the arm is
    worse), which may be due to chance; both are None without scores. ``folders`` are the paths for
    transformers and for sentence-transformers. ``forgotten`` says what was forgotten of general
    text (``forgotten_words``). ``sentence`` says all of this, and ``next`` what to do next
    (``NextStep``).
    """

    arm: str
    seed: int
    helps: bool
    checkpoint: str | None
    mean_difference: float | None
    unit: str | None
    folders: list[str]
    sentence: str
    forgotten: str
    next: dict[str, str]


ADAPTED = "adapted.json"


def save_best(out: Path, result: Plain, *, next_step: dict[str, str]) -> Saved | None:
    """Save the adapted model, whether or not it is better than the unchanged model.

    The arm that is shown to help is saved, otherwise the one with the best mean. If no arm has a
    score, the first arm that was trained is saved. ``out``/adapted.json says what was saved. If
    this checkpoint was saved before, nothing is written again, because users may have added files
    to the folders.

    Args:
        out: the folder of the finished study.
        result: the result of ``run_study``.
        next_step: the fields of ``NextStep``.

    Returns:
        What was saved; None if no run has finished its training.

    Raises:
        MaskwiseError: the checkpoints of the arm were deleted, and no model of it was saved before;
            or another checkpoint would replace a folder to which files were added.
    """
    gains, unit = gains_of(out)
    study = read_json(out / "study.json") or {}
    # The model of a control is trained on other text than the user's.
    arms = [arm for arm in study.get("arms", ()) if not arm.endswith(OTHER_TEXT)]
    gains = {arm: gain for arm, gain in gains.items() if arm in arms}
    helps = arm_that_helps(result)
    if helps is not None:
        arm = helps
    elif gains:
        arm = max(gains, key=gains.__getitem__)
    else:
        trained = [arm for arm in arms if trained_run(out, arm) is not None]
        if not trained:
            return None
        arm = trained[0]
    saved_before = read_json(out / ADAPTED) or {}
    folders = saved_folders(out, saved_before)
    run = trained_run(out, arm)
    checkpoint = hash_of(run[1]) if run else saved_before.get("checkpoint")
    # Users may delete checkpoints to free disk space. The model that was saved is then kept.
    # Earlier versions did not write which checkpoint it was.
    before = saved_before.get("checkpoint", checkpoint)
    same = run is None or (
        checkpoint is not None and (run[0], checkpoint) == (saved_before.get("seed"), before)
    )
    if same and saved_before.get("arm") == arm and _all_there(folders):
        seed = saved_before["seed"]
    else:
        seed, folders = save_adapted(out, arm)
    saved: Saved = {
        "arm": arm,
        "seed": seed,
        "helps": helps == arm,
        "checkpoint": checkpoint,
        "mean_difference": gains.get(arm),
        "unit": unit if arm in gains else None,
        "folders": [str(folder) for folder in folders],
        "sentence": kept_of(arm, folders, gain=gains.get(arm), helps=helps == arm),
        "forgotten": forgotten_words(forgotten_of(out)),
        "next": next_step,
    }
    write_json(out / ADAPTED, saved)
    return saved


def saved_folders(out: Path, saved: Mapping[str, Any]) -> list[Path]:
    """Return the folders of the saved model, below ``out``, which may have been moved since."""
    return [out / Path(folder).name for folder in saved.get("folders", ())]


def kept_of(arm: str, folders: Sequence[Path], *, gain: float | None, helps: bool) -> str:
    """Return a sentence that names the saved arm, and says whether it is shown to help.

    Args:
        arm: the arm that was saved.
        folders: the folders in which it was saved.
        gain: its mean gain over the unchanged model; None if it has no score.
        helps: whether the arm is decided to be better than the unchanged model, by more than does
            not matter.
    """
    where = f"is in {' and '.join(map(str, folders))}"
    if gain is None:
        return f"The adapted model ({arm}) {where}. It has no score."
    if gain <= 0:
        return f"The adapted model ({arm}) {where}. No lead of it was measured."
    if helps:
        return f"The adapted model ({arm}, which is shown to help) {where}."
    return (
        f"The adapted model ({arm}, which has the best mean) {where}. Its lead may be due to "
        "chance, or too small to matter, so keep the unchanged model for now."
    )


class Gains(NamedTuple):
    """The mean gain of each arm over the unchanged model, positive if the arm is better.

    The unit is score (between 0 and 1), nats, or SDs: see ``Contrast`` in docs/files.md.
    """

    means: dict[str, float]
    unit: str


def gains_of(out: Path) -> Gains:
    """Return the gain of each arm over the unchanged model; no gains if there are no scores.

    A gain is the mean of paired differences over the seeds for which the runs of all arms are
    finished. With several tasks, the differences are those of standardised scores, or, with one run
    and different units, those of the first task.
    """
    table = read_outcomes(out)
    # If every fine-tuning run failed, no arm has a score.
    if table is None or table.start is None or not (table.averaged and table.study["arms"]):
        return Gains({}, "")
    outcome = "plain:tasks" if len(table.averaged) == 1 else "tasks"
    if outcome not in table.scales:
        # One run has no SDs, in which tasks with different units have a mean.
        outcome = table.averaged[0]
    return Gains(table.means(outcome, over=table.start), table.scales[outcome].unit)


def hash_of(checkpoint: Path) -> str | None:
    """Return a hash of a checkpoint, which its manifest has; None without a manifest."""
    manifest = checkpoint / MANIFEST
    return file_hash(manifest) if manifest.is_file() else None


def _all_there(folders: Sequence[Path]) -> bool:
    """Return whether no file that was saved is missing."""
    written = [(folder, read_json(folder / MANIFEST) or {}) for folder in folders]
    return bool(written) and all(
        manifest and all((folder / name).is_file() for name in manifest["sha256"])
        for folder, manifest in written
    )


def save_adapted(out: Path, arm: str) -> tuple[int, list[Path]]:
    """Save a checkpoint for two libraries: that of the arm's first finished run.

    Returns:
        The seed of the run, and the folders ``out``/model for transformers and
        ``out``/sentence-model for sentence-transformers.

    Raises:
        MaskwiseError: no finished run of the arm has a checkpoint.
    """
    seed, checkpoint = needed_run(out, arm)
    whole = out / "model"
    sentences = out / "sentence-model"
    config = load_config(checkpoint)
    of = origin_of((read_json(out / "study.json") or {}).get("name", out.name), arm, seed)
    card = card_of(checkpoint, of)
    # The tokenizer is saved in both folders, so that each of them can be used alone.
    tokenizer = load_tokenizer(str(checkpoint))

    def fill_sentences(folder: Path) -> None:
        load_task_model(checkpoint, config, head="embedding", seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_whole(folder / CARD, with_metadata(card, SENTENCES, before=SENTENCE_CARD))
        length = min(512, most_tokens(config))
        write_sentence_folder(folder, width=config.hidden_size, length=length)

    save_model(checkpoint, whole, of=of)
    with without_advice():
        fill_folder(sentences, fill_sentences)
    return seed, [whole, sentences]


def write_sentence_folder(folder: Path, *, width: int, length: int) -> None:
    """Write the configuration files of sentence-transformers for a model with mean pooling."""
    module = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    # Pooling modes that are not named are off.
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False}
    )
    common: Plain = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", common)
