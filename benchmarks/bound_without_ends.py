"""How much of the bound of a text is doubt about where it ends?

    python benchmarks/bound_without_ends.py OUT > bounds.json

OUT is the folder of a study of masked diffusion. A model that learned where texts end gives the end
token a probability at every masked place; a model without ends does not, because the length of a
text is given to it. For each model, the result has the bound of the held-out texts, in nats a
token, and ``without_end``: the same if the end token is no alternative at places of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from command import run

from maskwise.base.folders import read_json
from maskwise.evaluation.scoring import Bound
from maskwise.masks.generate import Writer
from maskwise.objectives.denoising import predicting
from maskwise.recipe import read_recipe
from maskwise.text import Document, Rows, read_pieces, tokenise
from maskwise.text.rows import holds_out

NEVER = -1e4
"""A logit that leaves no probability."""


def main(out: Path) -> list[dict[str, object]]:
    """Compute both bounds of all models of a study."""
    torch.set_num_threads(1)
    corpus = read_recipe({"corpus": read_json(out / "study.json")["recipe"]["corpus"]}).corpus
    kept = [each for each in corpus.documents() if holds_out(each, corpus.held_out)]
    stages = read_json(out / "stages" / "plan.json")["stages"]
    found: list[dict[str, object]] = []
    for name, stage in stages.items():
        if stage["kind"] == "pretrain":
            writer = Writer(str(out / "stages" / name / "checkpoint"))
            found.append({"run": stage["run"], **bounds(writer, kept, corpus.length)})
    return found


@torch.no_grad()
def bounds(writer: Writer, texts: Sequence[Document], length: int) -> dict[str, float]:
    """Return the bound of a model with and without the end token as an alternative."""
    tokenizer = writer.tokenizer
    pieces = read_pieces(tokenise(texts, tokenizer), tokenizer=tokenizer, length=length)
    rows = Rows.of(pieces, "document")
    bound = Bound(rows, tokenizer, torch.arange(len(rows)))
    found = {}
    for key in ("bound", "without_end"):
        text = bound(predicting(writer.model))
        found[key] = text.nats / text.tokens
        writer.model.get_output_embeddings().bias[writer.vocabulary.eos] = NEVER
    return found


if __name__ == "__main__":
    run(main, __doc__)
