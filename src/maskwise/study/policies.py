"""``maskwise learn``, and the learning of a policy by the recipe of a run.

Beside what ``learning.run`` writes, the folder of ``maskwise learn`` gets ``recipe.yaml``,
``stage.json`` (what the policy depends on), ``done.json`` and ``report.html``. The same command
goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

from maskwise.constants import rank_here
from maskwise.errors import MaskwiseError
from maskwise.folders import claim, finite, read_json, require_own, write_json, write_whole
from maskwise.learning.run import Lesson
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.stages import DONE, STAGE, learn_stage, prepare_stage

LOCK = ".learning.lock"


def run_learn(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """``maskwise learn``: learn a policy in a folder of its own, which is finished once.

    Under torchrun every process calls this; rank 0 writes.

    Raises:
        MaskwiseError: bad input; a folder that holds something else, or the policy of another
            recipe or of other data.
    """
    first = rank_here() == 0
    if first:
        require_own(out, "recipe.yaml", what="a policy of this recipe")
    new = not out.is_dir() or not any(out.iterdir())
    text = recipe.to_yaml()
    done = read_json(out / DONE)
    kept = out / "recipe.yaml"
    if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") != text:
        raise MaskwiseError(
            f"--out {out} holds the policy of another recipe", do="give a new folder"
        )
    link = recipe.links()[0]
    stage = learn_stage(link, recipe.learned_task, prepare_stage(link)).as_dict()
    before = read_json(out / STAGE)
    # the recipe is the same, and what it names is not
    if before and before != json.loads(json.dumps(stage)):
        what = (
            f"--out {out} holds a policy learned from other data: a file, a library or the "
            f"machine changed"
        )
        raise MaskwiseError(what, do="give a new folder")
    if done:
        return done
    with claim(out, "another process learns in", lock=LOCK) if first else nullcontext():
        try:
            if first:
                write_whole(kept, text)
                write_json(out / STAGE, stage)
            began = time.perf_counter()
            result = lesson_of(recipe, out, quiet=quiet).learn()
            result = finite({**result, "seconds": round(time.perf_counter() - began, 1)})
            if first:
                # not at the top: altair takes a second
                from maskwise.report.policy import write_policy_page

                result["report"] = str(write_policy_page(out, title=recipe.name, measures=result))
                write_json(out / DONE, result)
        except MaskwiseError:
            # nothing stays of what never took a step
            if first and new and not any(out.rglob("metrics.jsonl")):
                shutil.rmtree(out)
            raise
    return result


def lesson_of(recipe: Recipe, folder: Path, *, quiet: bool = True) -> Lesson:
    """The learning of a policy by the recipe of one run.

    Raises:
        MaskwiseError: a recipe that learns no policy.
    """
    task = recipe.learned_task
    assert recipe.learning is not None, "what has a task to learn from has settings"
    return Lesson(
        learning=recipe.learning,
        task=task,
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        model=recipe.model,
        kind=recipe.kind,
        training=recipe.training,
        finetune=recipe.finetune,
        folder=folder,
        quiet=quiet,
    )
