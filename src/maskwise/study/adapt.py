"""Continue pre-training an encoder on the user's text: does it help, by how much, at what cost?

By default one arm is trained, ``words-30``, and compared with the unchanged model. Checkpoints are
evaluated on the user's tasks, or without tasks by matching titles to texts. If the model has no
head for filling masks, a head is trained on the frozen encoder first, once for all runs.

    the unchanged model     the model without further training
    words-30                whole words at 30 %, the best choice in our studies
    token-15, token-30      single tokens; 15 % is the usual choice
    tsdae                   a decoder restores the text from a sentence vector
    learned                 the policy in a folder, if one is given
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError, duration, require_known
from maskwise.families import most_tokens, require_kind
from maskwise.folders import CARD, read_json, write_json, write_whole
from maskwise.models import (
    has_head,
    load_config,
    load_model,
    load_task_model,
    weights_of,
    without_advice,
)
from maskwise.recipe import Recipe, apply_overrides, validate
from maskwise.recipe.overrides import Plain, nested, parse_override
from maskwise.specs import with_options
from maskwise.study.checks import cut_share, row_sizes
from maskwise.study.outcomes import ALL_TASKS, read_outcomes
from maskwise.study.stages import DONE
from maskwise.study.starter import look_at, write_pairs
from maskwise.study.statistics import P_FROM_RUNS, can_decide
from maskwise.tasks import load_task
from maskwise.tasks.finetuning import interpolated
from maskwise.text import load_tokenizer

BEST = "words-30"
STEPS = 600
"""The number of further training steps, and the largest default number of steps that train a new
head before."""
ARMS: dict[str, Plain] = {
    BEST: {"masking.policy": "whole-word", "masking.ratio": 0.30},
    "token-15": {"masking.ratio": 0.15},
    "token-30": {"masking.ratio": 0.30},
    "tsdae": {"objectives": {"tsdae": {}}},
}
OPTIONS = {"training.steps": "--steps", "study.seeds": "--seeds"}
"""Settings that are options of the command, which uses them for more than this setting."""
ROW_TOKENS = 128
USUAL_TOKENS = 512
FITTING_SHARE = 0.99
"""Texts are packed into rows of 128 tokens. Labelled rows of up to 512 tokens are not truncated.
If more than 1 % are longer, the limit is the length that 99 % fit into: the few longest rows would
need much memory."""
# Fewer steps of further training are not advised.
LEAST_STEPS = 100
SHORTER = (["finetune.steps=250"], ["corpus.length=64"])
"""Overrides that shorten a study if fewer steps alone are not enough."""
RATES = {4e6: 1e-3, 22e6: 1e-4, 110e6: 5e-5, 340e6: 3e-5}
"""AdamW's learning rate for each number of weights: first for the bundled encoder and MiniLM, then
the usual rates for larger encoders."""
SENTENCE_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, maskwise]
---

Sentence embeddings: the encoder below with mean pooling over its tokens.
`SentenceTransformer(FOLDER)` loads it.

"""


def adapt_recipe(
    model: str,
    texts: str,
    tasks: Sequence[str] = (),
    *,
    arms: Sequence[str] = (BEST,),
    policy: str | None = None,
    steps: int = STEPS,
    head_steps: int | None = None,
    seeds: int | list[int] = 6,
    pairs: Path | None = None,
    aside: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Write the recipe of the study.

    Args:
        model: a folder, a hub id, ``bundled:encoder`` or ``package:NAME``.
        texts: a corpus, as ``read_documents`` accepts it.
        tasks: files of labels; without any, titles and texts are written to ``pairs``.
        arms: names in ``ARMS``; the first is compared with the unchanged model.
        policy: the folder of a learned policy, which adds an arm.
        steps: the number of further training steps.
        head_steps: the number of steps that train a new head beforehand; if None, the same as
            ``steps``, but at most ``STEPS``.
        seeds: the number of runs of each arm, or their seeds.
        pairs, aside: as in ``write_pairs``, for the titles and texts.
        overrides: ``key=value`` settings, which replace the recipe's, except ``OPTIONS``.

    Raises:
        MaskwiseError: bad input, or neither tasks nor titles.
    """
    for key, _ in map(parse_override, overrides):
        if key in OPTIONS:
            raise MaskwiseError(f"adapt has an option for {key}", do=f"use {OPTIONS[key]}")
    config = load_config(model, kind=None)
    do = "use the recipe intermediate, whose first lines explain how (maskwise list recipes)"
    require_kind(config, "encoder", use="maskwise adapt", do=do)
    # Bad labels are found before the texts are read, which takes seconds.
    for spec in tasks:
        load_task(spec)
    facts = look_at(texts)
    weights = weights_of(config)
    warm = not has_head(model)
    if not tasks:
        if pairs is None:
            raise MaskwiseError("there is nothing to evaluate on", do="give --task FILE")
        pairs = write_pairs(texts, pairs, text_field=facts.text_field, aside=aside)
        tasks = [with_options(str(pairs), kind="retrieval", name="title-to-text")]
    # Small models learn faster with Muon; large models keep the optimiser of their own training.
    small = weights < 15_000_000
    training: Plain = {
        "steps": steps,
        "batch_size": 16,
        "optimizer": "muon" if small else "adamw",
        "learning_rate": interpolated(weights, RATES),
        "muon_learning_rate": 5e-3,
        "eval_every": max(1, steps // 4),
        "save_every": max(1, steps // 4),
    }
    changes = {}
    for name in arms:
        require_known("arm", name, ARMS)
        changes[name] = ARMS[name]
    # Whole words are found by white space, so other scripts get spans of tokens.
    if BEST in changes and not facts.spaced:
        changes[BEST] = {"masking.policy": "span", "masking.ratio": 0.30}
    if policy:
        changes["learned"] = {"masking.policy": f"learned({policy!r})", "masking.ratio": 0.30}
    contrast = [arms[0], REFERENCE]
    room = most_tokens(config)
    settings: Plain = {
        "name": "adapt",
        "description": f"Does further training on {texts} help {model}?",
        "corpus": {
            "source": texts,
            "text_field": facts.text_field,
            "length": min(ROW_TOKENS, room),
        },
        "model": {"pretrained": model},
        "masking": {"corruption": "mask-only"},
        "training": training,
        "evaluation": {"rows": 128, "ratios": [0.15]},
        "tasks": list(tasks),
        "finetune": {"seeds": 1, "max_length": min(_longest(model, tasks), room)},
        "study": {
            "seeds": seeds,
            "contrasts": [contrast],
            # The unchanged model has no settings to tune, so it is not part of a search.
            "gate": contrast,
        },
    }
    if warm:
        head_steps = head_steps or min(STEPS, steps)
        # With a fixed training seed, the head is trained once for the runs of all arms and seeds.
        head = {"freeze": "encoder", "steps": head_steps, "optimizer": "muon", "seed": 0}
        # Chosen by the search of benchmarks/recipes/continual-minilm.yaml.
        head |= {"learning_rate": 1e-2, "muon_learning_rate": 2e-2}
        settings["phases"] = [{"training": head}, {}]
        for name, arm in changes.items():
            changes[name] = {f"phases.1.{key}": value for key, value in arm.items()}
    settings["study"]["arms"] = changes
    apply_overrides(settings, overrides)
    recipe = validate(nested(settings) | {"study": settings["study"]}, origin="adapt")
    new_head = _new_head(recipe)
    if new_head:
        said = f"{recipe.description} It starts with {new_head}."
        recipe = recipe.model_copy(update={"description": said})
    return recipe


def _new_head(recipe: Recipe) -> str:
    """Describe the head that is trained first; "" if the model has a head."""
    first, *further = recipe.links()
    if not further or first.training.freeze != "encoder":
        return ""
    steps = f"{first.training.steps:,} steps on the frozen encoder"
    return f"a new masked-language-model head, trained {steps}"


def _longest(model: str, tasks: Sequence[str]) -> int:
    """Find the length that nearly all labelled rows fit into."""
    tokenizer = load_tokenizer(model)
    longest = ROW_TOKENS
    for spec in tasks:
        sizes = sorted(row_sizes(load_task(spec), tokenizer)) or [0]
        most = sizes[math.ceil(FITTING_SHARE * (len(sizes) - 1))]
        # Batches are padded to their longest row, so a higher limit costs little.
        longest = max(longest, most, min(sizes[-1], USUAL_TOKENS))
    return longest


def cut_rows(recipe: Recipe) -> dict[str, float]:
    """Return the share of truncated labelled rows of each task."""
    tokenizer = load_tokenizer(recipe.tokenizer_name or "")
    shares = {}
    for spec in recipe.tasks:
        task = load_task(spec)
        shares[task.name] = cut_share(row_sizes(task, tokenizer), recipe.finetune.max_length)
    return shares


def smaller_plan(
    recipe: Recipe, seconds_of: Callable[[list[str], int], float], limit_seconds: float
) -> Plain | None:
    """Find ``overrides`` and ``steps`` with which a study takes no longer than a limit.

    Args:
        seconds_of: forecasts the seconds of the study from overrides and steps.

    Returns:
        ``overrides``, ``steps``, and the ``seconds`` that the study then takes; None if even the
        smallest study takes longer.
    """
    least = min(LEAST_STEPS, recipe.training.steps)
    changes = []
    if len(recipe.study.arms) > 1:
        changes.append(f"study.arms={recipe.study.pairs[0][0]}")
    # Fewer steps come first, because they change nothing else.
    for shorter in ([], *SHORTER):
        changes += shorter
        shortest = seconds_of(changes, least)
        if shortest > limit_seconds:
            continue
        steps = recipe.training.steps
        seconds = seconds_of(changes, steps)
        while seconds > limit_seconds and steps > least:
            # Between these two numbers of steps, the time is about linear in the steps.
            share = (limit_seconds - shortest) / (seconds - shortest)
            steps = least + 10 * int(share * (steps - least) / 10)
            seconds = seconds_of(changes, steps)
        return {"overrides": changes, "steps": steps, "seconds": seconds}
    return None


# The answer
# ------------------------------------------------------------------------------------------------


ANSWERS = {
    ("decided", "arm"): "Yes, further training helps.",
    ("decided", "baseline"): "No, further training hurts.",
    ("no difference that matters", None): "No, it makes no difference that matters.",
}


def answer_of(result: Plain, recipe: Recipe) -> str:
    """Answer in words: does further training help, by how much, at what cost?"""
    row = _primary(result)
    if row is None:
        return "Nothing was compared."
    if row["verdict"] == "not comparable":
        return row["sentence"]
    answer = ANSWERS.get((row["verdict"], row["better"]), "These runs cannot tell:")
    steps = recipe.arm(row["arm"], seed=0).links()[-1].training.steps
    cost = f"Training takes {steps:,} steps per run"
    head = _new_head(recipe)
    if head:
        cost += f" and starts with {head}, once for all runs"
    # The answer already says that the question is open.
    sentence = row["sentence"].removeprefix("Open: ")
    return f"{answer} {sentence} {cost}; the study took {duration(result['seconds'])}."


def next_of(
    result: Plain, recipe: Recipe, tasks: Sequence[str], out: Path, command: Callable[..., str]
) -> str:
    """Say what to do after the answer, with a complete command.

    Args:
        tasks: files of labels, as the user gave them.
        command: writes the user's command with further overrides and changed options.
    """
    row = _primary(result)
    model = str(recipe.model.pretrained)
    if result["failures"] or row is None:
        return f"Next: fix what failed; this command repeats only the failed work: {command()}"
    verdict = row["verdict"]
    if verdict == "open" and not can_decide(row["n"], 1):
        enough = command(seeds=P_FROM_RUNS)
        return f"Next: a decision needs at least {P_FROM_RUNS} runs; this adds runs: {enough}"
    if verdict in ("decided", "no difference that matters"):
        keep = f"keep {model}"
        if arm_that_helps(result):
            model = str(out / "model")
            keep = f"use {model} in place of {recipe.model.pretrained}"
        if not tasks:
            return f"Next: {keep}."
        words = ["maskwise", "finetune", model]
        for task in tasks:
            words += ["--task", task]
        return f"Next: {keep}: {shlex.join(words)}"
    changes = []
    # A second study keeps the first one.
    options: dict[str, object] = {"out": out.with_name(f"{out.name}-2")}
    if verdict == "not comparable" and tasks:
        why = "fine-tuning learned nothing, but may learn at a different learning rate"
        changes.append("finetune.search_rate=true")
    elif row["runs_to_decide"]:
        # Testing again after more runs inflates the error rate, so other seeds are used.
        last = max(recipe.study.seed_list)
        why = "this would decide the question if the difference is as large as it looks"
        options["seeds"] = f"{last + 1}-{last + row['runs_to_decide']}"
    else:
        why = "more runs would not decide this, but more steps may"
        options["steps"] = 2 * recipe.training.steps
    return f"Next: keep {model} for now; {why}: {command(*changes, **options)}"


def arm_that_helps(result: Plain) -> str | None:
    """Return the arm that was decided to be better than the model; None if there is no such arm."""
    row = _primary(result)
    if row is None or (row["verdict"], row["better"]) != ("decided", "arm"):
        return None
    return row["arm"]


def _primary(result: Plain) -> Plain | None:
    """Find the primary contrast on the tasks, or else the first primary contrast."""
    rows = [row for row in result["contrasts"] if row["primary"]]
    return min(rows, key=lambda row: row["outcome"] != "tasks", default=None)


def kept_of(best: str | None, folders: Sequence[Path], *, helps: str | None) -> str:
    """State which arm was saved, and whether it was shown to be better than the model.

    Args:
        best: the arm with the best mean, if it is better than the model.
        folders: the folders where this arm was saved.
        helps: the arm that was decided to be better than the model, if any.
    """
    if best is None:
        return "No arm has a better mean than the model as it is, so nothing is saved."
    where = " and ".join(map(str, folders))
    if helps is None:
        doubt = "which may be due to chance; it is saved in"
        return f"{best} has the best mean, {doubt} {where}. For now, keep the model as it is."
    saved = f"{best} has the best mean, and is saved in {where}."
    if helps == best:
        return saved
    return f"{saved} {helps} is shown to help; the lead of {best} over it may be due to chance."


def best_arm(out: Path) -> str | None:
    """Find the arm that gains most over the unchanged model on the runs that all arms finished.

    Returns:
        None if no arm gains. A gain is the mean of paired differences, standardised as in verdicts.
    """
    table = read_outcomes(out)
    # If every fine-tuning run failed, no arm has a score.
    if table is None or not table.tasks or not table.study["arms"]:
        return None
    arms = np.array(list(table.study["arms"]))
    runs = np.array([table.runs(ALL_TASKS, arm) for arm in arms])
    finished = np.isfinite(runs).sum(axis=1)
    # If an arm lacks runs that other arms have, its remaining runs may look better by luck.
    complete = finished == finished.max()
    gains = runs[complete] - table.runs(ALL_TASKS, REFERENCE)
    shared = np.isfinite(gains).all(axis=0)
    sums = gains[:, shared].sum(axis=1)
    best = sums.argmax()
    if sums[best] <= 0:
        return None
    return str(arms[complete][best])


def save_adapted(out: Path, arm: str) -> tuple[Path, Path]:
    """Save the checkpoint of an arm's first finished run for two libraries.

    Returns:
        ``out``/model for transformers and ``out``/sentence-model for sentence-transformers.

    Raises:
        MaskwiseError: no run of the arm is finished and still has its checkpoint.
    """
    study = read_json(out / "study.json") or {}
    runs = study["arms"][arm]["runs"]
    for seed in sorted(runs, key=int):
        checkpoint = out / runs[seed] / "checkpoint"
        # Users may remove checkpoints to free space.
        if checkpoint.is_dir() and (out / runs[seed] / DONE).is_file():
            break
    else:
        raise MaskwiseError(
            f"no run of {arm} has a checkpoint to save",
            got=f"{len(runs)} runs, unfinished or removed",
            do="run the same command again",
        )
    whole = out / "model"
    sentences = out / "sentence-model"
    config = load_config(checkpoint)
    card = (checkpoint / CARD).read_text(encoding="utf-8")
    tokenizer = load_tokenizer(str(checkpoint))
    encoder = load_task_model(checkpoint, config, head="embedding", seed=0)
    with without_advice():
        load_model(checkpoint, kind=None).save_pretrained(whole)
        encoder.save_pretrained(sentences)
    # Each folder has its own tokenizer, so that it can be moved alone.
    for folder in (whole, sentences):
        tokenizer.save_pretrained(folder)
    write_whole(whole / CARD, card)
    write_whole(sentences / CARD, SENTENCE_CARD + card.partition("---\n\n")[2])
    length = min(512, most_tokens(config))
    write_sentence_folder(sentences, width=config.hidden_size, length=length)
    return whole, sentences


def write_sentence_folder(folder: Path, *, width: int, length: int) -> None:
    """Write the configuration that sentence-transformers needs: modules and mean pooling."""
    module = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    # Other pooling modes are off by default.
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False}
    )
    common: Plain = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", common)
