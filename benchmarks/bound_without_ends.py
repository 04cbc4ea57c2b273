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
from written_lengths import held_out_of, runs_of

from maskwise.evaluation.scoring import Bound
from maskwise.masks.generate import Writer
from maskwise.objectives.denoising import predicting
from maskwise.text import Document, Rows, read_pieces, tokenise

NEVER = -1e4
"""A logit that leaves no probability."""


def main(out: Path) -> list[dict[str, object]]:
    """Compute both bounds of all models of a study."""
    torch.set_num_threads(1)
    kept, length = held_out_of(out)
    return [
        {"run": run, **bounds(Writer(folder), kept, length)} for folder, run in runs_of(out).items()
    ]


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
