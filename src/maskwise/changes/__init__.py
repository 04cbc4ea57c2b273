"""Changes of models that exist, such as fewer tokens (``maskwise change``).

A change is an object with a name and arguments, such as ``trim-tokens(texts.txt)``. It changes the
tokenizer of a model, its weights, or both. Recipes name changes in ``model.changes``, and
``maskwise change`` makes them alone. ``CHANGES`` is the only registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskwise.base.errors import MaskwiseError, PlugInError, first_line, items_of
from maskwise.base.folders import CARD, OutputFolder, copy_texts, credit, fill_folder
from maskwise.base.plugins import Table
from maskwise.base.specs import build, find
from maskwise.changes.base import Change, Changed, TrainingText
from maskwise.changes.bidirectional import Bidirectional
from maskwise.changes.embedding_rows import change_tokens
from maskwise.changes.fewer_layers import KeptLayers
from maskwise.changes.new_tokens import NewTokens
from maskwise.changes.positions import Positions
from maskwise.changes.trim import TrimTokens
from maskwise.models.loading import load_as_saved
from maskwise.models.starts import CONFIG, Start, absolute, folder_of
from maskwise.text.changed import ChangedTokens, Origins
from maskwise.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_BUILT_IN: dict[str, type[Change]] = {
    "bidirectional": Bidirectional,
    "layers": KeptLayers,
    "new-tokens": NewTokens,
    "positions": Positions,
    "trim-tokens": TrimTokens,
}
CHANGES = Table("change", "maskwise.changes", _BUILT_IN)
"""The changes by their names."""

MODULES = "[1-9]_*"
"""The folders of what sentence-transformers computes from the states, such as their mean."""
KEPT = (
    "LICENSE*",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    *(f"{MODULES}/*.json", f"{MODULES}/*.safetensors"),
)
"""Patterns of files that are copied as they are."""
PICKLED = f"{MODULES}/*.bin"
"""Weights in these folders that may run code when they are read."""


def change_of(spec: str) -> Change:
    """Return the change that a name with arguments means.

    >>> change_of("trim-tokens('texts.txt', most=8000)").most
    8000
    """
    call, kind = find("change", spec, CHANGES)
    return build("change", call, {call.name: kind}, makes=Change)


def changed_tokens(
    tokenizer: PreTrainedTokenizerFast, changes: Iterable[Change], documents: TrainingText | None
) -> list[ChangedTokens]:
    """Return the tokenizer after each of several changes, in their order.

    Args:
        tokenizer: the tokenizer of the model.
        changes: the changes.
        documents: reads the training documents of the corpus; None without one.

    Raises:
        MaskwiseError: a change is impossible for this tokenizer, or a text cannot be read.
    """
    made = []
    for step in changes:
        vocabulary = step.tokens(tokenizer, documents) or ChangedTokens(tokenizer)
        tokenizer = vocabulary.tokenizer
        made.append(vocabulary)
    return made


def changed_model(
    model: PreTrainedModel,
    changes: Iterable[Change],
    origins: Iterable[Origins],
    tokenizer: PreTrainedTokenizerFast,
) -> PreTrainedModel:
    """Return a model after several changes, in their order.

    Args:
        model: the model, which may be changed in place.
        changes: the changes.
        origins: for each of them that changes tokens, from which rows those of the tokens are made.
        tokenizer: the tokenizer after all changes.

    Raises:
        MaskwiseError: a change is impossible for this model.
    """
    of_tokens = iter(origins)
    for step in changes:
        rows = next(of_tokens) if step.changes_tokens else Origins()
        model = _made(step, model, rows, tokenizer).model
    return model


@torch.no_grad()
def _made(
    step: Change, model: PreTrainedModel, rows: Origins, tokenizer: PreTrainedTokenizerFast
) -> Changed:
    """Return a model after one change: first it gets the rows of its tokens, then its weights."""
    change_tokens(model, rows)
    return step(model, tokenizer)


def change(old: Start, new: str | Path, changes: str | Sequence[str]) -> dict[str, Any]:
    """Write a model with changes to a folder, which transformers loads without maskwise.

    A folder of sentence-transformers stays one.

    Args:
        old: a folder, a hub id, or the name of a bundled model.
        new: the folder to write, which must be new or empty. After an interruption, the same call
            begins again.
        changes: the changes, in the order in which they are made.

    Returns:
        ``weights``, a pair of numbers, before and after; ``megabytes`` of the weights, in the
        ``precision`` that the configuration of the model names, which is kept; ``changes``, what
        each of them did, by its name; ``warnings`` about files that are left out.

    Raises:
        MaskwiseError: a change is unknown or impossible for this model, the model or a text cannot
            be read, or ``new`` belongs to another call.

    >>> facts = change("bundled:encoder", "smaller", "trim-tokens('bundled:wikipedia', most=2000)")
    ... # doctest: +SKIP
    """
    specs = [*items_of("changes", changes, of="changes", single=True)]
    if not specs:
        raise MaskwiseError("no change is named", allowed=", ".join(CHANGES))
    steps = [change_of(spec) for spec in specs]
    target = Path(new)
    where = OutputFolder(target, "change", f"maskwise change {old}", keeps=False)
    of = {"old": absolute(old), "changes": specs}
    where.require(of)
    # Of a model on the hub, the files that are copied.
    folder = folder_of(old, [CONFIG, *KEPT, PICKLED])
    _require_safe(folder)
    loaded: Any = load_tokenizer(str(old), needs_mask=False, needs_words=False)
    model, lacking, dtype = load_as_saved(old)
    facts: dict[str, Any] = {"folder": str(target), "changes": {}, "warnings": []}
    sizes = [_size(model)]
    # Step by step, and not first all tokens and then all weights, so that an error names the change
    # after which the model is wrong.
    for spec, step in zip(specs, steps, strict=True):
        [of_tokens] = changed_tokens(loaded, [step], None)
        loaded = of_tokens.tokenizer
        model, did = _made(step, model, of_tokens.rows, loaded)
        _require_configured(model, spec)
        facts["changes"][spec] = of_tokens.facts | did
    sizes.append(_size(model))
    facts["weights"] = sizes
    facts["megabytes"] = [dtype.itemsize * size / 1e6 for size in sizes]
    facts["precision"] = str(dtype).removeprefix("torch.")
    model.to(dtype)  # type: ignore[arg-type]
    with where.used(of):
        fill_folder(target, partial(_fill, folder, model, loaded, lacking, facts))
    return facts


def _require_configured(model: PreTrainedModel, spec: str) -> None:
    """Raise an error if the configuration of a changed model could not be read again."""
    config = model.config
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:
        raise PlugInError(
            f"change {spec}: the configuration does not describe the changed model",
            got=first_line(error.__cause__ or error),
            do="change all fields of model.config that describe what was changed, such as "
            "layer_types beside num_hidden_layers",
        ) from error


def _require_safe(folder: Path) -> None:
    """Raise an error if a module of sentence-transformers has pickled weights."""
    for path in folder.glob(PICKLED):
        raise MaskwiseError(
            f"{path} would be left out, because it may run code when it is read",
            do="save the folder again with a newer sentence-transformers, as safetensors",
        )


def _size(model: PreTrainedModel) -> int:
    return sum(weights.numel() for weights in model.parameters())


def _fill(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    lacking: Sequence[str],
    facts: dict[str, Any],
    new: Path,
) -> None:
    """Write all files of the new folder; no weights that the old one lacks."""
    state = model.state_dict()
    model.save_pretrained(
        new, state_dict={name: weights for name, weights in state.items() if name not in lacking}
    )
    tokenizer.save_pretrained(new)
    facts["warnings"] += copy_texts(folder, KEPT, new)
    listed = "\n".join(f"- `{spec}`: {did['what']}" for spec, did in facts["changes"].items())
    (new / CARD).write_text(f"Changed by {credit()}:\n\n{listed}\n", encoding="utf-8")


__all__ = [
    "CHANGES",
    "Bidirectional",
    "Change",
    "Changed",
    "KeptLayers",
    "NewTokens",
    "Positions",
    "TrimTokens",
    "change",
    "change_of",
    "changed_model",
    "changed_tokens",
]
