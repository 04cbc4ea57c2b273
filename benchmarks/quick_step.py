"""What a step of the quick start costs, beside an earlier commit: pre-training (12 × 64 tokens) and
fine-tuning.

    python benchmarks/quick_step.py [COMMIT] [--rounds N]     # default: before the work on speed

Both source trees take turns, a few steps each, in two processes with one thread that live as long
as the bench: so neighbours on the machine and its clock hit both alike. A turn's figure is the
processor time of its fastest step, which a busy machine moves least; the ratio is the median over
the turns. Losses after the same steps show that both learn alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from maskwise.training.speed import cpu_name

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "6183319^"
"""The commit before Muon went over all matrices of one shape together."""

CHILD = """
import json, sys, time, torch
torch.set_num_threads(1)
from maskwise.masking import Masker
from maskwise.models import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.recipe import read_recipe
from maskwise.tasks import load_task
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource
from maskwise.training.data import look_ahead
from maskwise.training.engine import Engine

recipe = read_recipe("quick-start")
documents = list(read_documents(recipe.corpus.source, limit=1500))
tokenizer = train_tokenizer((d.text for d in documents), vocab_size=recipe.tokenizer.vocab_size)
pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer,
                     length=recipe.corpus.length)
config = new_config(recipe.model.architecture, tokenizer, recipe.corpus.length,
                    **recipe.model.settings)

def pretraining():
    masker = Masker(tokenizer, ratio=0.15, corruption="mask-only")
    source = MaskedSource(Rows.of(pieces, "packed"), masker, recipe.training)
    return MaskedLanguageModelling(new_model(config, seed=0)), source, recipe.training

def finetuning():
    from maskwise.models import load_task_model
    from maskwise.tasks import judge
    from maskwise.tasks.tensors import encode
    task = load_task(recipe.tasks[0])
    network = judge.load_network(None, task, tokenizer, config=config,
                                 max_length=recipe.finetune.max_length, seed=0)
    settings = recipe.finetune.training(task, seed=0)
    data = encode(task, tokenizer, max_length=recipe.finetune.max_length)
    source = judge.TaskSource(data["train"], settings)
    return task.kind.objective(network), source, settings

def run(make):
    objective, source, settings = make()
    engine, losses = Engine(objective, settings), []
    steps = iter(look_ahead(source, range(settings.steps)))
    while True:
        spent = []
        for _ in range(STEPS):
            step = next(steps)
            began = time.process_time()
            update = engine.update(step, lambda *_: None)
            spent.append(time.process_time() - began)
            losses.append(float(update.losses[0]) / max(1, update.targets))
        yield min(spent), sum(losses[-STEPS:]) / STEPS

STEPS = int(sys.argv[1])
runs = {"pretraining": run(pretraining), "finetuning": run(finetuning)}
for line in sys.stdin:
    print(json.dumps(next(runs[line.strip()])), flush=True)
"""


def main() -> None:
    """Run the bench, and print its figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", default=BEFORE)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", given.commit, "src"], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        sides = {
            "before": _start(Path(folder) / "src", given.steps),
            "now": _start(ROOT / "src", given.steps),
        }
        results = {
            kind: _contest(sides, kind, given.rounds) for kind in ("pretraining", "finetuning")
        }
        for side in sides.values():
            side.stdin.close()  # type: ignore[union-attr]
            side.wait()
    facts = {
        "commit": given.commit,
        "threads": 1,
        "processor": cpu_name(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    sys.stdout.write(json.dumps({**facts, **results}, indent=1) + "\n")


def _start(source: Path, steps: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(steps)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _contest(sides: dict[str, subprocess.Popen[str]], kind: str, rounds: int) -> dict[str, object]:
    turns: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            assert side.stdin and side.stdout
            side.stdin.write(f"{kind}\n")
            side.stdin.flush()
            seconds, loss = json.loads(side.stdout.readline())
            turns[name].append(seconds)
            losses[name].append(round(loss, 3))
    ratios = [now / before for now, before in zip(turns["now"], turns["before"], strict=True)]
    spent = {f"ms_{name}": round(1000 * median(seconds), 1) for name, seconds in turns.items()}
    return {**spent, "now_over_before": round(median(ratios), 3), "losses": losses}


if __name__ == "__main__":
    main()
