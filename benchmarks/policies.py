"""The speed of scoring a corpus with a learned policy, relative to a training step on its tokens.

    OMP_NUM_THREADS=1 python benchmarks/policies.py > benchmarks/results/policies-DATE.json

The model is that of the quick start: two pre-norm layers of width 128, rows of 64 tokens, batches
of 32 rows. Scoring starts from text. Its time therefore includes tokenising, the encoder and
finding words. Both parts are timed in turn, for several rounds. Times are medians of the processor
time on one thread.
"""

from __future__ import annotations

import torch
from command import run

from maskwise.bench import Figures, in_turn, surroundings
from maskwise.learning.annotator import score_words
from maskwise.learning.scorer import PolicyModel
from maskwise.recipe import read_recipe
from maskwise.study.pretraining import learning
from maskwise.text import Prepared, read_documents, read_pieces, tokenise
from maskwise.text.rows import split
from maskwise.training import log_frequencies, train

ROUNDS, STEPS, TEXTS = 3, 20, 150
WANTED = {"light": 5.0, "the model's shape": 3.0}


def main() -> Figures:
    torch.set_num_threads(1)
    recipe = read_recipe(
        "quick-start", [f"training.steps={STEPS}", "training.eval_every=0", "training.save_every=0"]
    )
    documents = list(read_documents("bundled:wikipedia", limit=TEXTS))
    texts = [document.text for document in documents]
    tokenizer = recipe.tokenizer.tokenizer(documents)
    length = recipe.corpus.length
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
    data = Prepared(tokenizer, *split(pieces, held_out=0.05))
    tokens = int(pieces.offsets[-1])
    counts = torch.from_numpy(data.training.unigram_counts(len(tokenizer)))
    shape = recipe.model
    unigram = log_frequencies(counts)
    network = shape.model(tokenizer, length, kind="encoder", seed=0, log_unigram=unigram)
    same = {"architecture": shape.architecture, "settings": shape.settings}
    policies = {
        "light": PolicyModel.new(tokenizer, length=64),
        "the model's shape": PolicyModel.new(tokenizer, length=64, **same),
    }

    def training(number: int) -> None:
        made = learning(network, data, recipe)
        trained.append(train(made.objective, made.source, recipe.training, quiet=True)["tokens"])

    trained = []
    calls = {"training": training}
    for name, policy in policies.items():
        calls[name] = lambda number, policy=policy: score_words(policy, texts)
    seconds = in_turn(calls, batches=ROUNDS, turn=1)
    rates = {name: tokens / seconds[name] for name in policies}
    rate = trained[-1] / seconds["training"]
    lines = {
        name: {
            "tokens_per_second": round(rates[name]),
            "times_training": round(rates[name] / rate, 2),
            "asked": asked,
        }
        for name, asked in WANTED.items()
    }
    return {
        "command": "OMP_NUM_THREADS=1 python benchmarks/policies.py",
        "hardware": surroundings(["torch"]),
        "tokens": tokens,
        "training": {"tokens_per_second": round(rate)},
        **lines,
    }


if __name__ == "__main__":
    run(main, __doc__)
