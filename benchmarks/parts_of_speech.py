"""Which parts of speech does a model recover, how well, and when?

    python benchmarks/parts_of_speech.py train FILE --seeds 2000-2006   # one line of FILE per run
    python benchmarks/parts_of_speech.py judge FILE                     # the table and the tests

Models of ``recipes/pos-weighted-replication.yaml`` train on whole words that are masked evenly. For
each part of speech, the losses of the masked tokens are added up over ``WINDOW`` steps, before the
update that learns from them. No row is read twice, so these are losses on unseen text. Beside them
are the losses of word frequencies on the same tokens: a part of speech whose words are frequent has
a low loss before anything is learned.

Function words are compared with content words within each run, so runs are the pairs of the test.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from command import in_one_line, worked
from figures import Figures, surroundings
from numpy.typing import NDArray
from torch import Tensor

from maskwise.base.constants import UPOS
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines
from maskwise.cli.terminal import seeds_of
from maskwise.recipe import read_recipe
from maskwise.studies.design import Design
from maskwise.studies.pretraining import learning, network_of
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Prepared
from maskwise.training import log_frequencies, train
from maskwise.training.learners import Learner
from maskwise.verdict.statistics import holm, sign_flip_interval, sign_flip_test

RECIPE = Path(__file__).resolve().parent / "recipes" / "pos-weighted-replication.yaml"
WINDOW = 20
"""The number of steps whose losses are added up."""
LAST = 5
"""The number of windows at the end of a run whose mean is its final loss."""
FUNCTION = ("ADP", "AUX", "CCONJ", "DET", "PART", "PRON", "SCONJ")
CONTENT = ("ADJ", "ADV", "NOUN", "NUM", "PROPN", "VERB")

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)
Floats = NDArray[np.float64]


class LossesByGroup(Learner):
    """Adds up losses of targets by the group of their tokens. It changes nothing in training.

    Args:
        layer: the layer with the number of each token's group.
        groups: the number of groups.
        log_unigram: (V,) the log frequencies of the tokens.

    Attributes:
        sums: for each step, (3, groups) float64: the number of targets, their losses, and the
            losses of word frequencies.
    """

    def __init__(self, layer: str, groups: int, log_unigram: Tensor):
        self.layer = layer
        self.groups = groups
        self.log_unigram = log_unigram.double()
        self.sums: list[Tensor] = []

    def observe(self, batch: Any, loss: Any) -> None:
        row, column = loss.where.unbind(1)
        group = batch.line.tensor(batch.line.layer(self.layer))[row, column].long()
        # Tokens without a group are added to a last one, which is dropped.
        group = group.where(group >= 0, self.groups)
        losses = loss.each.double()
        expected = -self.log_unigram[batch.labels[row, column]]
        sums = torch.zeros(3, self.groups + 1, dtype=torch.float64)
        for number, values in enumerate((torch.ones_like(losses), losses, expected)):
            sums[number].index_add_(0, group, values)
        self.sums.append(sums[:, :-1])


def losses_of_run(recipe: Any, data: Prepared) -> Figures:
    """Train one model, and return its losses by window and part of speech."""
    rows = recipe.training.steps * recipe.training.batch_size
    if rows > len(data.training):
        raise MaskwiseError("a row would be read twice", got=f"{rows} of {len(data.training)} rows")
    counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
    log_unigram = log_frequencies(counts)
    made = learning(network_of(recipe, data, log_unigram), data, recipe)
    watch = LossesByGroup("pos", len(UPOS), log_unigram)
    settings = recipe.training.model_copy(update={"eval_every": 0, "save_every": 0})
    train(made.objective, made.source, settings, learners={**made.learners, "watch": watch})
    steps = torch.stack(watch.sums)
    windows = steps.unflatten(0, (-1, WINDOW)).sum(1)
    return {
        "targets": windows[:, 0].int().tolist(),
        "losses": windows[:, 1].round(decimals=2).tolist(),
        "frequencies": windows[:, 2].round(decimals=2).tolist(),
    }


@app.command("train")
def train_models(
    file: Path, seeds: Annotated[str, typer.Option()], steps: int | None = None
) -> None:
    """Train a model for each seed, such as 2000-2006, and add a line to FILE."""
    numbers = seeds_of(seeds, "--seeds")
    known = [line["seed"] for line in read_lines(file)] if file.exists() else []
    if again := [seed for seed in numbers if seed in known]:
        raise MaskwiseError(f"{file} has lines of these seeds already", got=again)
    changes = [f"study.seeds={numbers}", "study.arms=words"]
    changes += ["study.contrasts=null"]
    changes += [] if steps is None else [f"training.steps={steps}"]
    study = read_recipe(RECIPE, changes)
    if study.training.steps % WINDOW:
        raise MaskwiseError(
            "steps are added up in windows",
            got=study.training.steps,
            allowed=f"multiples of {WINDOW}",
        )
    with tempfile.TemporaryDirectory() as folder:
        store = StageStore(Path(folder))
        *_, plan = Design(study, store).plans()
        for one in plan.runs:
            if not one.trained:
                continue
            text = one.stages[0]
            run_stage(text, store)
            began = worked()
            line = {"seed": one.seed, "groups": UPOS}
            line |= losses_of_run(one.recipe, Prepared.open(store.folder(text) / "data"))
            line |= {"processor_seconds": round(worked() - began, 1), **surroundings()}
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")


def curve(line: Figures, groups: tuple[str, ...]) -> tuple[Floats, Floats]:
    """Return the losses and the losses of word frequencies of some groups together, by window."""
    chosen = [line["groups"].index(name) for name in groups]
    count, loss, expected = (
        np.array(line[name], dtype=float)[:, chosen].sum(1)
        for name in ("targets", "losses", "frequencies")
    )
    return loss / count, expected / count


def final(values: Floats) -> float:
    """Return the mean of the last windows."""
    return float(values[-LAST:].mean())


def half_way(gain: Floats) -> float:
    """Return the step at which half of the final gain is first reached, between two windows.

    The gain of a window counts for the step in its middle.

    >>> half_way(np.array([0.0, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0]))
    37.5
    """
    target = final(gain) / 2
    window = int(np.argmax(gain >= target))
    if window:
        window += (target - gain[window - 1]) / (gain[window] - gain[window - 1]) - 1
    return float((window + 0.5) * WINDOW)


def measures_of(line: Figures, groups: tuple[str, ...]) -> dict[str, float]:
    """Return what is compared between groups, for one run."""
    loss, expected = curve(line, groups)
    gain = expected - loss
    return {"loss": final(loss), "gain": final(gain), "half way": half_way(gain)}


def rows_of(lines: list[Figures]) -> Iterator[Figures]:
    """Yield the planned contrasts, content − function words, and then each part of speech."""
    seeds = [line["seed"] for line in lines]
    if again := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise MaskwiseError("a run stands there twice, and would be two pairs", got=again)
    content = [measures_of(line, CONTENT) for line in lines]
    function = [measures_of(line, FUNCTION) for line in lines]
    differences = {
        name: [one[name] - other[name] for one, other in zip(content, function, strict=True)]
        for name in content[0]
    }
    p_values = holm([sign_flip_test(each) for each in differences.values()])
    for (name, each), p in zip(differences.items(), p_values, strict=True):
        yield {
            "contrast": f"{name}: content − function",
            "n": len(each),
            "mean": round(float(np.mean(each)), 3),
            "interval": np.round(sign_flip_interval(each) or (), 3).tolist(),
            "p": round(p, 5),
            "content": round(float(np.mean([one[name] for one in content])), 3),
            "function": round(float(np.mean([one[name] for one in function])), 3),
        }
    for name in UPOS:
        number = lines[0]["groups"].index(name)
        count = sum(np.array(line["targets"])[-LAST:, number].sum() for line in lines)
        row = {"part of speech": name, "targets at the end": int(count)}
        # A rare one has windows without any target.
        if min(np.array(line["targets"])[:, number].min() for line in lines) > 0:
            found = [measures_of(line, (name,)) for line in lines]
            row |= {
                key: [round(float(f([one[key] for one in found])), 2) for f in (np.mean, np.std)]
                for key in found[0]
            }
        yield row


@app.command()
def judge(file: Path) -> None:
    """Print the planned contrasts, and a line for each part of speech."""
    for row in rows_of(list(read_lines(file))):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    with in_one_line():
        app()
