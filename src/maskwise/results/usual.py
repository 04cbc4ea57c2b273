"""What is set where a user has no reason of their own, and what is known about each choice.

``maskwise new`` and ``maskwise adapt`` read the rates, the arms and the steps from here.
docs/settings.md is printed from ``CHOICES`` (scripts/reference.py): advice, with the numbers of the
records that it names. A value changes only where a study decided against it, by more than the
margin, on two texts or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

RATES = {4e6: 1e-3, 22e6: 1e-4, 110e6: 5e-5, 340e6: 3e-5}
"""AdamW's learning rate of further training by number of weights: the bundled encoder, MiniLM, base
and large models."""
MOST_FOR_MUON, MUON_RATE = 15e6, 5e-3
"""Small models learn faster with Muon. Larger ones were pre-trained with AdamW and keep it."""

USUAL_ARM = "words-30"
"""The arm that ``adapt`` compares with the unchanged model."""
ARMS: dict[str, Mapping[str, object]] = {
    USUAL_ARM: {"masking.policy": "whole-word", "masking.ratio": 0.30},
    "token-15": {"masking.ratio": 0.15},
    "token-30": {"masking.ratio": 0.30},
    "token-40": {"masking.ratio": 0.40},
    "tsdae": {"objective": {"tsdae": {}}},
}
"""The arms that recipes for files can have."""
UNSPACED_ARMS = ARMS | {USUAL_ARM: {"masking.policy": "span", "masking.ratio": 0.30}}
"""The arms in text without spaces, where there are no whole words."""
STEPS = 600
"""Default number of further training steps, and default maximum of the steps of a new head."""


class Evidence(NamedTuple):
    """A contrast of a recorded study.

    Attributes:
        record: a folder of benchmarks/results.
        arm, baseline: the contrast.
        said: what was compared with what, on what, by what.
    """

    record: str
    arm: str
    baseline: str
    said: str


class Usual(NamedTuple):
    """What is set today, and why.

    Attributes:
        question: what a user asks.
        value: what is set, as a recipe or a command line has it.
        reach: how far the contrasts go, or the study that would tell.
        found: the contrasts on which it rests; none if it is not known.
    """

    question: str
    value: str
    reach: str
    found: tuple[Evidence, ...] = ()


POS, POS_AGAIN = "pos-weighted-replication", "pos-weighted-new-head"
SAMPLERS = "samplers-replication"
UNCHANGED = "no-pretraining"

CHOICES: dict[str, tuple[Usual, ...]] = {
    "A new encoder": (
        Usual(
            "How much is masked?",
            "`masking.ratio: 0.3`",
            "Small new models on Wikipedia (hidden size 128, two layers), 450 and 700 steps. At "
            "equal steps, 30 % has twice the targets of 15 %, and 15 % was hardly below word "
            "frequencies. Longer training and larger models were not compared.",
            (
                Evidence(
                    "demo", "30 %", "15 %", "30 % against 15 %, both judged by the loss at 15 %"
                ),
                Evidence(
                    "ratios-2026-11-20",
                    "constant-45",
                    "constant-30",
                    "45 % against 30 %, by two tagging tasks",
                ),
            ),
        ),
        Usual(
            "Does the ratio change during training?",
            "a constant, such as `masking.ratio: 0.3`",
            "New models of 1.5 and .5 million weights. The publication continues from BERT, which "
            "was not compared. The study with .5 million weights was fine-tuned in another way "
            "than today.",
            (
                Evidence(
                    "published-decay-medium",
                    "cosine-decay",
                    "constant-30",
                    "a cosine from 32 to 2 % against 30 %, by two tagging tasks",
                ),
                Evidence(
                    "published-decay-medium",
                    "cosine-decay",
                    "constant-15",
                    "the same against 15 %, which hardly learns in so few steps",
                ),
                Evidence(
                    "decay-claim-2026-11-22",
                    "cosine-decay",
                    "constant-15",
                    "the same with .5 million weights, [MASK] alone, and each side at the best of "
                    "its rates",
                ),
                Evidence(
                    "decay-new-head",
                    "decay-45-15",
                    "constant-30",
                    "45 → 15 % against 30 %, by two tagging tasks",
                ),
            ),
        ),
        Usual(
            "Tokens or whole words?",
            "`masking.policy: token`",
            "Both as arms of one study, judged by tasks, would tell: losses under different masks "
            "are not comparable.",
        ),
        Usual(
            "Are some words masked more often?",
            "none: a policy that treats words alike",
            "New models of .5 million weights and four tasks, on which pre-training itself gained "
            "1.4 points. The second record was fine-tuned in another way than today.",
            (
                Evidence(
                    POS_AGAIN,
                    "ptw-faithful-bert",
                    "words-bert",
                    "words by the loss of their part of speech, as published, against words alike",
                ),
                Evidence(POS, "ptw", "words", "the same by our own rule"),
            ),
        ),
        Usual(
            "Which learning rate, how many steps?",
            "those of the recipe that yours extends",
            "They belong to each model and text; `study.search` tries rates inside a study.",
        ),
    ),
    "An encoder that exists": (
        Usual(
            "Is further training on my text worth it?",
            "`maskwise adapt`, which measures it on your task",
            "Four of ten such studies were decided, two for it (one text, which gained again in "
            "[samples of it](#how-much-text-is-enough)) and two against, each at "
            "one rate that was not tuned. If seeds and test items vary together, the gains stand, "
            "the loss on documentation just does, and the loss on novels does not; counted "
            "together, only the second gain is at the 5 % level. [All ten]"
            "(adapt.md#3-the-answer).",
            (
                Evidence(
                    "new-words",
                    "words-30",
                    UNCHANGED,
                    "the bundled encoder on medical terms, against itself unchanged",
                ),
                Evidence("own-text", "words-30", UNCHANGED, "the same with other test terms"),
                Evidence(
                    "own-text",
                    "words-30",
                    "words-30-other-text",
                    "its own text against as much training on other text",
                ),
                Evidence("adapt-medical", "words-30", UNCHANGED, "MiniLM on medical terms"),
                Evidence("new-words-minilm", "words-30", UNCHANGED, "the same, in another study"),
                Evidence(
                    "adapt-documentation", "words-30", UNCHANGED, "MiniLM on package documentation"
                ),
                Evidence("adapt-novels-control", "words-30", UNCHANGED, "MiniLM on novels"),
            ),
        ),
        Usual(
            "Which learning rate?",
            f"today's value, which follows the size: `training.learning_rate: {RATES[110e6]:g}` "
            f"for a model of 110 million weights ({RATES[4e6]:g}, with Muon, at 4 million; "
            f"{RATES[22e6]:g} at 23; {RATES[340e6]:g} at 340)",
            "No record chose these values. A quarter of the rate and the full rate, each against "
            "the unchanged model, would tell.",
        ),
        Usual(
            "Which masks?",
            "`--arms words-30`: whole words, 30 %",
            "For encoders, no record compares two kinds of masks in further training by a test. "
            "Both as arms of a study, judged by your task, would tell. Vectors of a sentence "
            "encoder may become worse with any: [test them](adapt.md#3-the-answer).",
        ),
        Usual(
            "How long?",
            f"today's value, `--steps {STEPS}`; on little text, let `--lengths` choose",
            "Nothing speaks for 600. The bundled encoder, 20 to 160 steps, at a rate that was "
            "meant to learn the texts by heart: the chosen length, the shortest, is still behind "
            "the unchanged model.",
            (
                Evidence(
                    "how-long",
                    "lengths",
                    "last",
                    "the length that dev documents choose against the last, by held-out loss on 40 "
                    "news texts",
                ),
            ),
        ),
        Usual(
            "Is general text mixed in?",
            "none; `--replay 0.3` if general text must stay",
            "The bundled encoder on novels, at a quarter of the usual rate. How much general text "
            "is forgotten is an estimate: .101 nats without replay, .026 with it.",
            (
                Evidence(
                    "replay",
                    "token-15-replay",
                    "token-15",
                    "30 % general text against none, by the loss on the own text",
                ),
            ),
        ),
        Usual(
            "Are words of the domain added to the vocabulary?",
            "none",
            "500 words, 300 steps. Longer training was not compared.",
            (
                Evidence(
                    "new-words",
                    "new-words",
                    "words-30",
                    "with new words against without, the bundled encoder on medical terms",
                ),
                Evidence("new-words-minilm", "new-words", "words-30", "the same with MiniLM"),
            ),
        ),
        Usual(
            "Are rare tokens removed?",
            "none",
            "One task, 300 steps on the text that chose the tokens. Per byte of held-out words, "
            "the loss rose by .340 nats without and by .496 with training. Of a large vocabulary, "
            "more of the weights would go. For the second contrast p is .063, corrected for two.",
            (
                Evidence(
                    "trim-tokens",
                    "trimmed",
                    UNCHANGED,
                    "the bundled encoder with 1,667 of 3,072 tokens against all, without training",
                ),
                Evidence("trim-tokens", "words-30", UNCHANGED, "the same with further training"),
            ),
        ),
        Usual(
            "Longer rows?",
            "none; if longer rows must be read, `positions(512)` and training on rows of 512",
            "The bundled encoder, which had rows of 128 tokens, 300 steps on novels, by the loss "
            "of the same single tokens at the end of each row. After training on rows of 128, rows "
            "of 512 cost .216 nats (.208 to .226, an estimate). Words that also stand far back in "
            "their row do gain: .065 nats (.060 to .070, an estimate) by the first half of rows of "
            "512, after training on such rows, which took 1.2 times the FLOPs.",
            (
                Evidence(
                    "longer-rows-by-length",
                    "long-512",
                    "short-512",
                    "rows of 512 after training on rows of 512, against training on rows of 128",
                ),
                Evidence(
                    "longer-rows-by-length",
                    "long-512",
                    "long-128",
                    "after training on rows of 512, rows of 512 against rows of 128",
                ),
            ),
        ),
        Usual(
            "A smaller encoder?",
            "none; `--student-layers` for half of the layers and 1.97 times the speed",
            "Two of the four layers of the bundled encoder, 300 steps, one text. Both tasks count "
            "together, in SDs of runs; losses above 1.2 points are ruled out on either. Without a "
            "teacher, the same layers were as good on one task and .5 points behind on the other "
            "(−.2 to 1.1).",
            (
                Evidence(
                    "half-the-layers",
                    "student",
                    UNCHANGED,
                    "two layers that learned from four against the four",
                ),
                Evidence("half-the-layers", "student", "alone", "the same against no teacher"),
            ),
        ),
        Usual(
            "Vectors that find texts?",
            "`--arms tsdae` without labels; with labels, no objective is known to help",
            "The bundled encoder, 400 steps, by nDCG@10 after fine-tuning on 800 titles. Without "
            "fine-tuning, TSDAE was 10.3 points (8.2 to 12.6) and RetroMAE 5.0 points (3.8 to 6.3) "
            "ahead of the unchanged encoder, and masked words −.2 (estimates).",
            (
                Evidence(
                    "retrieval-pretraining",
                    "retromae",
                    UNCHANGED,
                    "RetroMAE against no further training",
                ),
                Evidence("retrieval-pretraining", "retromae", "tsdae", "RetroMAE against TSDAE"),
                Evidence(
                    "retrieval-pretraining",
                    "retromae",
                    "words-30",
                    "RetroMAE against masked words",
                ),
            ),
        ),
        Usual(
            "A decoder that is to give vectors of texts?",
            "no change of its attention; `pooling=last`",
            "A decoder of 4 million weights, 400 steps, by nDCG@10 after fine-tuning; `mntp` "
            "predicts a fifth of the tokens. On tags of words, it was .8 points better. With "
            "`clm`, the last token was 2.6 points ahead of the mean (an estimate). LLM2Vec's gains "
            "are for models of billions of weights.",
            (
                Evidence(
                    "decoder-to-encoder",
                    "both",
                    "causal",
                    "attention in both directions and `mntp` against as many steps of `clm`",
                ),
                Evidence("decoder-to-encoder", "both", UNCHANGED, "the same against no training"),
            ),
        ),
        Usual(
            "How much text is enough?",
            "all that there is; 500 short texts were worth it once",
            "One task, one kind of text. 14,222 terms against 500 were +.7 points (−.3 to 1.7), "
            "and 2,000 had the gain of all (estimates); the loss of other terms fell more clearly, "
            "by .36 and .39 nats. 500 terms are about 400 rows, read twelve times. The longest of "
            "three lengths was chosen in all runs.",
            (
                Evidence(
                    "text-sizes",
                    "terms-500",
                    UNCHANGED,
                    "the bundled encoder on 500 medical terms, against itself unchanged",
                ),
                Evidence("text-sizes", "terms-14222", UNCHANGED, "the same on 14,222 terms"),
            ),
        ),
    ),
    "A task, and a loss": (
        Usual(
            "Which text?",
            "`corpus.source`: text with what the task asks, before any choice of masks",
            "Trivia questions, the bundled seq2seq model; both sides at the best of their rates.",
            (
                Evidence(
                    "corpus-rates",
                    "right-4",
                    "other-slow",
                    "paragraphs with the answers against other articles of the same site, by the "
                    "loss of answers",
                ),
            ),
        ),
        Usual(
            "The task asks for names and dates",
            "`masking.policy: salient`",
            "The same questions, further training of the bundled seq2seq model. In accuracy, "
            "models of this size answer less than 1 %.",
            (
                Evidence(
                    "corpus-and-policy",
                    "right-salient",
                    "right-random",
                    "salient spans against random spans in these paragraphs, by the same loss",
                ),
            ),
        ),
        Usual(
            "The task asks for other facts",
            "a policy that `maskwise learn` learns from the task",
            "The text contains the facts that are asked. Of the first questions, 35 % were right "
            "with the learned policy, 24 % with random tokens (not compared by a test), and 16 % "
            "with salient spans, which leave common nouns out: hardly more than guessing.",
            (
                Evidence(
                    "trex-nouns",
                    "supervised",
                    "salient",
                    "a supervised policy against salient spans, answers that are common nouns",
                ),
                Evidence(
                    "trex-content",
                    "own",
                    "salient",
                    "the same for positions and offices, half of the masks random",
                ),
            ),
        ),
        Usual(
            "Several losses, and a sampler?",
            "`objective: mlm`",
            "New models of .5 million weights; the sampler had seven updates (500 in the "
            "publication), in a study that was fine-tuned in another way than today. The best "
            "fixed shares lose on the task of questions, and their lead in points over all tasks "
            "is not clear.",
            (
                Evidence(
                    SAMPLERS, "uniform", "mlm", "five in equal shares against masked words alone"
                ),
                Evidence(
                    SAMPLERS, "mometas", "uniform", "the published sampler against equal shares"
                ),
                Evidence(
                    "best-shares",
                    "best-shares",
                    "uniform",
                    "the best of six fixed shares against equal ones (the test weights tasks with "
                    "little noise more)",
                ),
            ),
        ),
        Usual(
            "Masked diffusion: which rates?",
            "today's value, rates from 0 to 1, as published; a fixed rate as an arm beside it",
            "A small new model on Wikipedia after 1,200 steps, at one learning rate. A fixed rate "
            "is better here; the default would change after a second text.",
            (
                Evidence(
                    "diffusion-2026-11-21",
                    "fixed-30",
                    "uniform",
                    "always 30 % against 0 to 1, by the bound",
                ),
                Evidence("diffusion-2026-11-21", "bell", "uniform", "a bell against 0 to 1"),
            ),
        ),
        Usual(
            "Masked diffusion: does a text end by itself?",
            "`masking.ends: none`; `padding`, written in random order, if texts must end",
            "The bundled encoder, 300 steps on questions of 12 tokens in rows of 48. With "
            "`padding`, texts ended too early, after 7 tokens in random order and at once in the "
            "order `confidence`; with `token`, 87 % went on to the last place. Of the .616 nats, "
            ".351 are doubt about the length, of which a model without ends has none (an "
            "estimate). Longer training and shorter rows were not compared.",
            (
                Evidence(
                    "text-ends",
                    "padding",
                    "none",
                    "`padding` against no ends, by the bound of the text after as many steps",
                ),
                Evidence("text-ends", "token", "none", "`token` against no ends"),
            ),
        ),
    ),
}
"""The choices, by what a user has."""
