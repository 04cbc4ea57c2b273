"""Going on with a real encoder on one's own text: does it help, by how much, at what cost?

A study with sensible arms, and one primary contrast: ``words-30`` against the model as it is. It is
judged on the user's tasks, or where there are none on which text belongs to which title. A model
without a head for filling masks gets one, which is trained on the frozen encoder first, for all
arms together.

    no further training     the model as it is
    token-15                single tokens at 15 %, as most people do it
    words-30                whole words at 30 %: what did best in this house
    tsdae                   a sentence vector from which the whole text is written again
    learned                 the policy in a folder, if one is given
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from maskwise.constants import LOWER_IS_BETTER, REFERENCE
from maskwise.errors import MaskwiseError, duration
from maskwise.families import most_tokens, require_kind
from maskwise.folders import CARD, read_json, read_lines, write_json, write_lines, write_whole
from maskwise.models import (
    has_head,
    load_config,
    load_model,
    load_task_model,
    weights_of,
    without_advice,
)
from maskwise.recipe import Recipe, validate
from maskwise.recipe.overrides import Plain, nested, parse_override, put
from maskwise.specs import with_options
from maskwise.study.stages import DONE
from maskwise.study.starter import look_at
from maskwise.tasks.finetuning import interpolated
from maskwise.text import load_tokenizer, read_documents

BEST = "words-30"
STEPS, WARM_STEPS = 600, 600
"""Steps of the further training, and at most of a new head before it."""
MOST_PAIRS, LEAST_PAIRS = 500, 20
"""Titles and texts that judge embeddings where there is no task."""
RATES = {4e6: 1e-3, 22e6: 1e-4, 110e6: 5e-5, 340e6: 3e-5}
"""Rates of AdamW for going on with an encoder of so many weights: the shipped one's, MiniLM's, and
usual ones.
"""
SENTENCE_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, maskwise]
---

Vectors of sentences: the encoder below with the mean over its tokens.
`SentenceTransformer(FOLDER)` loads it.

"""
_SENTENCE = re.compile(r"(?<=[.!?…。])\s+")


def adapt_recipe(
    model: str,
    texts: str,
    tasks: Sequence[str] = (),
    *,
    policy: str | None = None,
    steps: int = STEPS,
    seeds: int = 6,
    pairs: Path | None = None,
    aside: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The study of going on with a model.

    Args:
        model: a folder, a hub id, ``bundled:encoder`` or ``package:NAME``.
        texts: a corpus, as ``read_documents`` takes it.
        tasks: files of labels; none: titles and texts, which are written to ``pairs``.
        policy: the folder of a learned policy; an arm masks by it.
        steps: of the further training; a new head is trained before it for as many, and at most
            ``WARM_STEPS``.
        aside: a folder for the pairs of a dry run (``write_pairs``).
        overrides: ``key=value`` settings, which count more.

    Raises:
        MaskwiseError: a model, text or task that cannot be read, or neither tasks nor titles.
    """
    config = load_config(model, kind=None)
    do = "take the recipe intermediate, whose first lines say how (maskwise list recipes)"
    require_kind(config, "encoder", use="maskwise adapt", do=do)
    facts = look_at(texts)
    weights = weights_of(config)
    warm = not has_head(model)
    if not tasks:
        if pairs is None:
            raise MaskwiseError("there is nothing to judge by", do="give --task FILE")
        pairs = write_pairs(texts, pairs, text_field=facts.text_field, aside=aside)
        tasks = [with_options(str(pairs), kind="retrieval", name="title-to-text")]
    # Muon is faster on small models; large ones keep the optimiser they were trained with.
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
    arms: dict[str, Plain] = {
        "token-15": {"masking.ratio": 0.15},
        BEST: {"masking.policy": "whole-word", "masking.ratio": 0.30},
        "tsdae": {"objectives": {"tsdae": {}}},
    }
    # Whole words need blanks between them.
    if not facts.spaced:  # no words to mask
        arms[BEST] = {"masking.policy": "span", "masking.ratio": 0.30}
    if policy:
        arms["learned"] = {"masking.policy": f"learned({policy!r})", "masking.ratio": 0.30}
    settings: Plain = {
        "name": "adapt",
        "description": f"Does it help {model} to go on with {texts}?",
        "corpus": {
            "source": texts,
            "text_field": facts.text_field,
            "length": min(128, most_tokens(config)),
        },
        "model": {"pretrained": model},
        "masking": {"corruption": "mask-only"},
        "training": training,
        "evaluation": {"rows": 128, "ratios": [0.15]},
        "tasks": list(tasks),
        "finetune": {"seeds": 1, "max_length": min(128, most_tokens(config))},
        "study": {
            "seeds": seeds,
            "baseline": "token-15",
            "contrasts": [[BEST, REFERENCE]],
            # the model as it is has no settings to search: a plain test will do
            "gate": [BEST, REFERENCE],
        },
    }
    if warm:
        head = {"freeze": "encoder", "steps": min(WARM_STEPS, steps), "optimizer": "muon"}
        # as benchmarks/recipes/continual-minilm.yaml found
        head |= {"learning_rate": 1e-2, "muon_learning_rate": 2e-2}
        settings["phases"] = [{"training": head}, {}]
        for name, arm in arms.items():  # the arms differ after the head is trained
            arms[name] = {f"phases.1.{key}": value for key, value in arm.items()}
    settings["study"]["arms"] = arms
    for override in overrides:
        put(settings, *parse_override(override))
    return validate(nested(settings) | {"study": settings["study"]}, origin="adapt")


def write_pairs(
    texts: str, target: Path, *, text_field: str = "text", aside: Path | None = None
) -> Path:
    """Write titles and texts of a corpus: its field ``title``, or the first sentence and the rest.

    Args:
        aside: a folder that is written to in place of ``target``, which may belong to an earlier
            study.

    Returns:
        The file: ``target`` also where it holds these very pairs already.

    Raises:
        MaskwiseError: too few texts of more than one sentence.
    """
    lines = [*islice(_pairs(texts, text_field), MOST_PAIRS)]
    if len(lines) < LEAST_PAIRS:
        raise MaskwiseError(
            "there is nothing to judge by: no task, and hardly a text with a title or two "
            "sentences",
            got=f"{len(lines)} texts",
            allowed=f"≥ {LEAST_PAIRS}",
            do="give --task FILE",
        )
    if [*read_lines(target)] == lines:
        return target
    if aside is not None:
        target = aside / target.name
    write_lines(target, lines)
    return target


def _pairs(texts: str, text_field: str) -> Iterator[Plain]:
    titles = read_documents(texts, text_field="title", keep_repeated=True)
    # Titles are read first: a corpus of records may have them in a column.
    try:
        named = {document.id: document.text for document in islice(titles, 20_000)}
    except MaskwiseError:  # a table without such a column
        named = {}
    for document in read_documents(texts, text_field=text_field):
        title = named.get(document.id, "")
        text = document.text
        if not title or title == text:
            title, text = _first_sentence(text)
        if len(title) > 5 and len(text) > 50:
            yield {"query": title[:300], "passage": text[:1500]}


def _first_sentence(text: str) -> tuple[str, str]:
    parts = _SENTENCE.split(text.strip(), maxsplit=1)
    return (parts[0], parts[1]) if len(parts) == 2 else ("", text)


# The answer
# ------------------------------------------------------------------------------------------------


ANSWERS = {
    ("decided", "arm"): "Yes, further training helps.",
    ("decided", "baseline"): "No, further training harms.",
    ("no difference that matters", None): "No, it makes no difference that matters.",
}


def answer_of(result: Plain, recipe: Recipe) -> str:
    """Does it help, by how much, at what cost: the verdict on the primary contrast of the study."""
    row = _primary(result)
    if row is None:
        return "Nothing was compared."
    if row["verdict"] == "not comparable":
        return row["sentence"]
    answer = ANSWERS.get((row["verdict"], row["better"]), "Open, these runs cannot tell.")
    steps = sum(link.training.steps for link in recipe.arm(BEST, seed=0).links())
    cost = f"It costs {steps:,} steps a run; the study took {duration(result['seconds'])}."
    return f"{answer} {row['sentence']} {cost}"


def arm_that_helps(result: Plain) -> str | None:
    """The arm for which the study decided that further training helps; None where it did not."""
    row = _primary(result)
    if row is None or (row["verdict"], row["better"]) != ("decided", "arm"):
        return None
    return row["arm"]


def _primary(result: Plain) -> Plain | None:
    """The primary contrast on the tasks, or else in whatever was measured."""
    rows = [row for row in result["contrasts"] if row["primary"]]
    on_tasks = [row for row in rows if row["outcome"] == "tasks"]
    return next(iter(on_tasks + rows), None)


def kept_of(best: str | None, folders: Sequence[Path], *, helps: str | None) -> str:
    """What was saved, and how sure it is that this is better than the model as it is.

    Args:
        helps: the arm that is shown to help, if any is.
    """
    if best is None:
        return "No arm has a better mean than the model as it is: nothing is saved."
    where = " and ".join(map(str, folders))
    if helps is None:
        doubt = "which may be chance; it is saved in"
        return f"{best} has the best mean, {doubt} {where}. For now, keep the model as it is."
    saved = f"{best} has the best mean, and is saved in {where}."
    if helps == best:
        return saved
    return (
        f"{saved} It is {helps} that is shown to help; that {best} is better still may be chance."
    )


def best_arm(out: Path) -> str | None:
    """The arm that gains most over the model as it was, on the runs that all arms finished; None
    where none gains.

    A gain is the mean of paired differences, each in the direction of its metric. An arm that lacks
    runs which others have is left out: what remains of it may be its lucky runs.
    """
    scores: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for record in read_lines(out / "records.jsonl"):
        # Neither companions nor the runs of a gate.
        if record["kind"] == "score" and not {"fraction", "role"} & record.keys():
            sign = -1 if record["metric"] in LOWER_IS_BETTER else 1
            run = (record["task"], record["seed"])
            scores[record["arm"]][run] = sign * record["score"]
    start = scores.pop(REFERENCE, {})
    # An arm that lacks runs which others have may have kept its lucky ones.
    most = max(map(len, scores.values()), default=0)
    complete = {arm: found for arm, found in scores.items() if len(found) == most}
    shared = set(start).intersection(*complete.values())
    best, highest = None, 0.0
    for arm, found in complete.items():
        gain = sum(found[run] - start[run] for run in shared)
        if gain > highest:
            best, highest = arm, gain
    return best


def save_adapted(out: Path, arm: str) -> tuple[Path, Path]:
    """The checkpoint of an arm's first finished run as two folders: for transformers, and for
    sentence-transformers.

    Returns:
        ``out``/model and ``out``/sentence-model.

    Raises:
        MaskwiseError: no run of the arm is finished and still has its checkpoint.
    """
    study = read_json(out / "study.json") or {}
    runs = study["arms"][arm]["runs"]
    folders = [out / runs[seed] for seed in sorted(runs, key=int)]
    finished = [folder for folder in folders if (folder / DONE).is_file()]
    checkpoints = [folder / "checkpoint" for folder in finished]
    checkpoint = next(filter(Path.is_dir, checkpoints), None)
    if checkpoint is None:
        raise MaskwiseError(
            f"no run of {arm} has a checkpoint to save",
            got=f"{len(folders)} runs, unfinished or removed",
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
    # Both folders are complete, so that either can be moved alone.
    for folder in (whole, sentences):
        tokenizer.save_pretrained(folder)
    write_whole(whole / CARD, card)
    write_whole(sentences / CARD, SENTENCE_CARD + card.partition("---\n\n")[2])
    length = min(512, most_tokens(config))
    write_sentence_folder(sentences, width=config.hidden_size, length=length)
    return whole, sentences


def write_sentence_folder(folder: Path, *, width: int, length: int) -> None:
    """What sentence-transformers reads beside an encoder: its modules, and mean pooling."""
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{kind}": kind == "mean_tokens" for kind in kinds}
    module = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"{module}.{kind}"}
        for n, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False}
    )
    common: Plain = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", common)
