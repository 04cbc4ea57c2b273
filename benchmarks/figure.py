"""Draw the claims of RESULTS.md that were compared on tasks, from the ledger.

python benchmarks/figure.py   # writes benchmarks/results/claims.svg
"""

from __future__ import annotations

import altair
from ledger import LEDGER, RESULTS
from pandas import DataFrame, read_json

FIGURE = RESULTS / "claims.svg"
CLAIMS = [
    # (Name in the figure, record, arm, baseline), grouped by paper as in RESULTS.md.
    ("45 → 15 % against 30 %", "decay-replication", "decay-45-15", "constant-30"),
    ("45 → 15 % against 45 %", "decay-replication", "decay-45-15", "constant-45"),
    ("45 → 15 % against 15 %", "decay-replication", "decay-45-15", "constant-15"),
    ("earlier: 45 → 15 % against 30 %", "decay-claim-2026-11-22", "decay-45-15", "constant-30"),
    ("earlier: 45 → 15 % against 45 %", "decay-claim-2026-11-22", "decay-45-15", "constant-45"),
    ("earlier: 30 → 15 % against 30 %", "decay-claim-2026-11-22", "decay-30-15", "constant-30"),
    ("earlier: cosine decay against 30 %", "decay-claim-2026-11-22", "cosine-decay", "constant-30"),
    ("control: parts of speech, ours", "ptw-control-2026-11-21", "ptw", "words"),
    ("control: parts of speech, published", "ptw-control-2026-11-21", "ptw-faithful", "words"),
    ("parts of speech, published", "pos-weighted-replication", "ptw-faithful-bert", "words-bert"),
    ("parts of speech, ours", "pos-weighted-replication", "ptw", "words"),
    ("five objectives against one", "samplers-replication", "uniform", "mlm"),
    ("mometas against even draws", "samplers-replication", "mometas", "uniform"),
    ("mometas-plus against even draws", "samplers-replication", "mometas-plus", "uniform"),
    ("half the rate: five objectives", "samplers-replication-1e-3", "uniform", "mlm"),
    ("half the rate: mometas", "samplers-replication-1e-3", "mometas", "uniform"),
    ("half the rate: mometas-plus", "samplers-replication-1e-3", "mometas-plus", "uniform"),
    ("earlier: mometas, even draws", "mometas-claim-2026-11-23", "mometas", "uniform"),
    ("earlier: mometas-plus, even draws", "mometas-claim-2026-11-23", "mometas-plus", "uniform"),
    ("earlier: mometas-plus, one objective", "mometas-2026-11-20", "mometas-plus", "mlm"),
    ("invented: meta against salient", "learn-meta-full-2026-11-22", "meta", "salient"),
    ("invented, new: meta against salient", "learn-meta-full-2026-11-22-d", "meta", "salient"),
    ("invented: meta against random", "learn-meta-full-2026-11-22-b", "meta", "random"),
    ("names: salient against random", "factworld-university-2026-11-21", "salient", "random"),
    ("seq2seq: meta against random", "learn-meta-seq2seq-2026-11-22", "meta", "random"),
    ("seq2seq: meta against salient", "learn-meta-seq2seq-2026-11-22", "meta", "salient"),
    ("full text: meta, random", "learn-meta-seq2seq-2026-11-22", "meta-full", "random-full"),
    ("oracle: spans against full text", "format-and-policy", "oracle", "oracle-full"),
    ("random: full text against spans", "format-and-policy", "random-full", "random"),
    ("policy of its own task, random", "transfer-2026-11-22", "own-task", "random"),
    ("policy of other tasks, random", "transfer-2026-11-22", "other-tasks", "random"),
    ("T-REx nouns: supervised, salient", "trex-nouns", "supervised", "salient"),
    ("T-REx nouns: meta, salient", "trex-nouns", "meta", "salient"),
    ("T-REx names: oracle, salient", "trex-names", "oracle", "salient"),
    ("T-REx: related policy, random", "trex-transfer", "occupations", "random"),
    ("T-REx: another policy, random", "trex-transfer", "birthplaces", "random"),
    ("T-REx: content words, random", "trex-content", "content", "random"),
    ("T-REx: related policy, content words", "trex-content", "occupations", "content"),
    ("T-REx: another policy, content words", "trex-content", "birthplaces", "content"),
    ("T-REx: own policy, salient", "trex-content", "own", "salient"),
    ("trivia: supervised against salient", "trivia-own", "supervised", "salient"),
    ("trivia: supervised against random", "trivia-own", "supervised", "random"),
    (
        "trivia, other questions: supervised, salient",
        "learn-trivia-2026-11-22",
        "supervised",
        "salient",
    ),
    (
        "trivia, other questions: supervised, random",
        "learn-trivia-2026-11-22",
        "supervised",
        "random",
    ),
    ("the right corpus against another", "corpus-and-policy", "right-random", "other-random"),
    ("the right corpus, unchanged model", "corpus-and-policy", "right-random", "no-pretraining"),
    ("right corpus: salient, random", "corpus-and-policy", "right-salient", "right-random"),
    ("questions' texts against Wikipedia", "intermediate-2026-11-21", "contexts", "wikipedia"),
    ("an encoder on its domain, unchanged", "adapt-2026-11-22", "words-30", "no-pretraining"),
    ("MiniLM on novels, unchanged", "adapt-novels", "words-30", "no-pretraining"),
    ("the encoder on novels, unchanged", "forgotten", "words-30", "no-pretraining"),
    ("on medical terms, unchanged model", "new-words", "words-30", "no-pretraining"),
    ("the same with new words", "new-words", "new-words", "words-30"),
    ("new words, random words", "new-words", "new-words", "random-words"),
    ("MiniLM on medical terms, unchanged", "new-words-minilm", "words-30", "no-pretraining"),
    ("MiniLM, the same with new words", "new-words-minilm", "new-words", "words-30"),
    ("MiniLM, new words, random words", "new-words-minilm", "new-words", "random-words"),
]
COLOURS = {
    "decided": "#0b6e99",
    "open": "#8a8a8a",
    "no difference that matters": "#448361",
    "not comparable": "#d9730d",
}


def rows() -> DataFrame:
    """Return the ledger's line of each claim, in the order of the claims."""
    keys = ["record", "arm", "baseline"]
    claims = DataFrame(CLAIMS, columns=["claim", *keys])
    return claims.merge(read_json(LEDGER, lines=True), on=keys, how="left")


def draw(table: DataFrame) -> altair.LayerChart:
    """Return a chart with a dot and a 95 % interval for each claim."""
    claim = altair.Y("claim", sort=None, title=None, axis=altair.Axis(labelLimit=400))
    title = "lead of the first arm over the second, in SDs of runs (logarithmic beyond ±1)"
    # Effects from .2 to 40 standard deviations are readable on one axis.
    scale = altair.Scale(type="symlog")
    verdict = altair.Color(
        "verdict", scale=altair.Scale(domain=[*COLOURS], range=[*COLOURS.values()])
    )
    base = altair.Chart(table).encode(y=claim, color=verdict)
    dots = base.mark_point(filled=True, size=60).encode(
        x=altair.X("difference", title=title, scale=scale)
    )
    bars = base.mark_rule(strokeWidth=2).encode(x="low", x2="high")
    zero = altair.Chart(DataFrame({"x": [0]})).mark_rule(strokeDash=[4, 4]).encode(x="x")
    return (zero + bars + dots).properties(width=460)


if __name__ == "__main__":
    draw(rows()).save(FIGURE)
