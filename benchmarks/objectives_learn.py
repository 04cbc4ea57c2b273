"""Train each objective alone on real text for some hundred steps, and evaluate it on held-out rows.

    python benchmarks/objectives_learn.py FILE   # writes the table of docs/masking.md

There are two baselines. *Chance* is the loss of a uniform guess (ln V for a word, ln 2 for a binary
label). The *best constant* is the loss of always predicting the frequencies of the labels. For
example, if 13 % of the tokens were inserted, the best constant has a loss of .39 nats in atd, far
below ln 2 = .69. Binary objectives are therefore compared with the best constant. They are also
measured by ROC AUC, which is .5 for any constant prediction. For cse (contrastive learning of
sentence embeddings), the best constant is chance. Its second baseline is the untrained encoder.
This encoder is better than chance, because the two encodings of a sentence differ only by dropout.

dtd (does a token directly follow a deletion?) must learn which words occur next to each other. A
table of bigrams has an AUC of .89. Binary labels teach this slowly. From random weights, dtd was no
better than the best constant after 400 steps (AUC .50). After 500 steps of mlm, it was no better
after 300 more steps (.51). dtd therefore starts from a model whose mlm loss is already below that
of token frequencies. The paper starts from BERT.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from command import run
from figures import Figures, surroundings
from sklearn.metrics import roc_auc_score
from torch import Tensor

from maskwise.masking import IGNORE
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import ObjectiveSettings
from maskwise.recipe import read_recipe
from maskwise.studies.pretraining import learning
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Prepared
from maskwise.training import log_frequencies, train

ROWS, SEED = 480, 1
"""Number of held-out rows to evaluate, and the seed of the evaluation (dropout of cse, replacements
of rtd).
"""


def laboratory_in(folder: Path) -> tuple[Any, Prepared]:
    """Return the quick-start recipe with the layer for emlm, and 800 prepared articles."""
    recipe = read_recipe(
        "quick-start", ["corpus.layers=[salient]", "corpus.limit=800", "corpus.held_out=0.06"]
    )
    stage = prepare_stage(recipe)
    run_stage(stage, StageStore(folder))
    return recipe, Prepared.open(StageStore(folder).folder(stage) / "data")


def learnt(
    laboratory: tuple[Any, Prepared], name: str, *, start: Any = None, **training: Any
) -> tuple[Any, Figures, Figures]:
    """Train a new model, or a copy of ``start``, on one objective alone.

    Returns:
        The model, and the result of ``judged`` before and after training.
    """
    recipe, data = laboratory
    changes = {"eval_every": 0, "save_every": 0, **training}
    settings = recipe.training.model_copy(update=changes)
    unigram = log_frequencies(torch.from_numpy(data.training.unigram_counts(len(data.tokenizer))))
    shape = new_config(
        recipe.model.architecture, data.tokenizer, data.training.length, **recipe.model.settings
    )
    network = new_model(shape, seed=0, log_unigram=unigram)
    if start is not None:
        network.load_state_dict(start.state_dict())
    arms = {"objective": {name: ObjectiveSettings(objective=name)}, "sampler": f"single({name})"}
    made = learning(network, data, recipe.model_copy(update={"training": settings, **arms}))
    arm, source = made.objective.arm(name), made.source.sources[name]  # type: ignore[attr-defined]
    held_out = data.held_out if arm.layout == "any" else data.held_out.laid(arm.layout)
    rows = torch.arange(ROWS) * len(held_out) // ROWS
    when = {"step": settings.steps // 2, "total_steps": settings.steps, "epoch": 0}
    parts = rows.split(settings.batch_size)
    batches = [source.masker(held_out.line(part), **when) for part in parts]
    learn = [source.masker(source.rows.line(part), **when) for part in torch.arange(960).split(64)]
    before = judged(arm, batches, learn)
    train(made.objective, made.source, settings, learners=made.learners)
    return network, before, judged(arm, batches, learn)


def judged(arm: Any, batches: list[Any], learn: list[Any]) -> Figures:
    """Return the losses of an objective on held-out batches, in nats per target.

    Returns:
        ``loss`` and ``constant`` (the best constant). Binary objectives also have ``share`` (of
        positive labels) and ``auc``. For rtd, these figures are for the detector; ``generator`` and
        ``unigram`` are the generator's loss and best constant."""
    spoken = []
    read = []
    base = arm.model.base_model
    hooks = [
        base.register_forward_pre_hook(
            lambda _, args, given: read.append(given["input_ids"]), with_kwargs=True
        )
    ]
    if hasattr(arm, "head"):
        hooks.append(arm.head.register_forward_hook(lambda _, args, out: spoken.append(out)))
    arm.eval()
    torch.manual_seed(SEED)
    with torch.no_grad():
        outcomes = [arm(batch) for batch in batches]
    arm.train()
    for hook in hooks:
        hook.remove()
    count = sum(float(outcome.divisor) for outcome in outcomes)
    loss = sum(float(outcome.total) for outcome in outcomes) / count
    kind = type(arm).__name__
    if kind == "ContrastiveSentences":
        return {"loss": loss, "constant": math.log(len(batches[0].input_ids) - 1)}
    truth = torch.cat([batch.labels[batch.labels != IGNORE] for batch in batches])
    # The losses of predicted words. For rtd, these are the losses of the generator.
    known = [outcome.each for outcome in outcomes if outcome.each is not None]
    words = sum(float(losses.sum()) for losses in known) / count
    if not kind.endswith("TokenDetection"):
        return {"loss": words, "constant": unigram_loss(truth, learn), "borders": loss - words}
    found = {"loss": loss}
    if kind == "ReplacedTokenDetection":
        found["loss"] = (loss - words) / arm.weight
        found |= {"generator": words, "unigram": unigram_loss(truth, learn)}
        replaced = []
        for ids, batch in zip(read, batches, strict=True):
            text = torch.where(batch.labels == IGNORE, batch.input_ids, batch.labels)
            replaced.append((ids != text).flatten()[batch.line.content])
        truth = torch.cat(replaced)
    share = float(truth.double().mean())
    found["constant"] = -share * math.log(share) - (1 - share) * math.log(1 - share)
    score = torch.cat([s[:, -1] - (s[:, 0] if s.shape[1] == 2 else 0) for s in spoken])
    return {**found, "share": share, "auc": float(roc_auc_score(truth, score))}


def unigram_loss(truth: Tensor, learn: list[Any]) -> float:
    """Return the loss of always predicting the frequencies of the objective's target words."""
    targets = torch.cat([batch.labels[batch.labels != IGNORE] for batch in learn])
    return -float(log_frequencies(torch.bincount(targets, minlength=1024))[truth].mean())


FRESH = {"mlm": 500, "emlm": 300, "atd": 300, "cse": 150, "dtd": 400, "rtd": 300}
SPOKEN = {"dtd": 300, "rtd": 300}
"""Numbers of steps from random weights, and from a model that has left the plateau."""


def main(file: Path) -> None:
    """Train each objective alone, and write its losses before and after training."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = laboratory_in(Path(folder))
        start, *_ = learnt(place, "mlm", steps=1400)
        runs = [(name, steps, None) for name, steps in FRESH.items()]
        runs += [(name, steps, start) for name, steps in SPOKEN.items()]
        for name, steps, begin in runs:
            _, before, after = learnt(place, name, start=begin, steps=steps)
            row = {"objective": name, "steps": steps, "fresh": begin is None}
            rows.append(row | {"before": before, "after": after})
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
    table = {**surroundings(), "rows": rows}
    file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, __doc__)
