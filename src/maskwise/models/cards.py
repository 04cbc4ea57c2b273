"""Model cards and their front matter, which the Hugging Face hub shows; and uploads of models.

Only what is known is written: the base model, if it has an id on the hub; data sets of the hub; and
language and licence, if every source of the model says them, as bundled texts and models do. Users
say the rest when they upload a model (``push_to_hub``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from maskwise.base.errors import MaskwiseError, dict_of, first_line, require_known
from maskwise.base.folders import CARD, left_out, not_to_copy
from maskwise.models.starts import SHARED, TEXTS, Start, find_weights, resolve_start

Metadata = dict[str, Any]
"""The front matter of a card, keyed as in ``huggingface_hub.ModelCardData``."""

BUNDLED_TEXTS: dict[str, Metadata] = {
    "bundled:wikipedia": {"language": "en", "license": "cc-by-sa-4.0"},
    **{
        f"bundled:world-{number}": {"language": "en", "license": "apache-2.0"}
        for number in range(12)
    },
}
"""What is known of bundled texts."""
MADE_BY = "maskwise"
"""A tag of every model that maskwise trains."""


def front_matter(
    start: str | None, texts: Iterable[str], *, library_name: str, tags: Iterable[str]
) -> str:
    """Return the front matter of a model's card, with the lines around it.

    Args:
        start: the model from which training starts; None for a new one.
        texts: the sources of the corpus.
        library_name: the library that loads the model.
        tags: further tags.

    >>> print(front_matter("ada/bert", ["bundled:wikipedia"], library_name="transformers", tags=[]))
    ---
    base_model: ada/bert
    library_name: transformers
    tags:
    - maskwise
    ---
    <BLANKLINE>
    """
    sources = [_of_text(text) for text in texts]
    if start is not None:
        sources.append(_of_start(start))
    known: Metadata = {"library_name": library_name, "tags": [*tags, MADE_BY]}
    for key in ("base_model", "datasets", "language", "license"):
        said = [_listed(source.get(key)) for source in sources]
        values = [*dict.fromkeys(chain.from_iterable(said))]
        is_open = key in ("language", "license") and not all(said)
        # What is made of sources of two licences has neither.
        is_mixed = key == "license" and len(values) > 1
        if values and not is_open and not is_mixed:
            known[key] = values if key == "datasets" or len(values) > 1 else values[0]
    return _written(known)


def push_to_hub(
    folder: Start,
    name: str,
    *,
    private: bool = False,
    token: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> str:
    """Upload a checkpoint and its model card to the Hugging Face Hub.

    Args:
        folder: a checkpoint with a README.md, as maskwise pretrain, study, finetune and adapt write
            it. Training states, code, pickles, and links that lead out of it (but for weights) are
            not uploaded.
        name: the id on the hub, such as ``you/my-encoder``.
        private: whether only you can see the model.
        token: a hub token; by default, the token that ``hf auth login`` has stored.
        metadata: what the card does not know, such as ``{"language": "de", "license": "mit"}``,
            with the keys of ``huggingface_hub.ModelCardData``. The card in the folder stays.

    Returns:
        The address of the model on the hub.

    Raises:
        MaskwiseError: the folder does not exist, has no model card (README.md) of its own or has
            damaged weights; ``metadata`` has an unknown key; or the hub returns an error.

    >>> push_to_hub("runs/nowhere/checkpoint", "you/my-encoder")
    Traceback (most recent call last):
    maskwise.base.errors.MaskwiseError: there is no model or tokenizer in
        'runs/nowhere/checkpoint'; got no such folder; ...
    """
    # A word such as "no" would count as True.
    if not isinstance(private, bool):
        raise MaskwiseError("private is not valid", got=private, allowed="True or False")
    where = Path(find_weights(folder))
    links = not_to_copy(where, [f"**/{pattern}" for pattern in TEXTS])
    if not (where / CARD).is_file() or where / CARD in links:
        got = links.get(where / CARD, f"no {CARD} in {where}")
        raise MaskwiseError("a model on the hub needs a model card", got=got)
    for line in left_out(links):
        warnings.warn(line, stacklevel=2)
    card = (where / CARD).read_text("utf-8", errors="replace")
    if metadata is not None:
        card = with_metadata(card, metadata)
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    ignored = [escape(str(path.relative_to(where))) for path in links]
    try:
        made = hub.create_repo(name, private=private, exist_ok=True)
        # Patterns also match files in subfolders, and "checkpoint-5" is a state of ``Trainer``.
        if metadata is not None:
            hub.upload_file(repo_id=made.repo_id, path_or_fileobj=card.encode(), path_in_repo=CARD)
            ignored.append(CARD)
        hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=where,
            allow_patterns=SHARED,
            ignore_patterns=["checkpoint-*", "*trainer_state.json", *ignored],
        )
    except Exception as error:
        # Errors of the network, of the hub and of malformed ids have no common base class.
        raise MaskwiseError(f"the hub refused {name!r}", got=first_line(error)) from None
    return str(made)


def with_metadata(card: str, metadata: Mapping[str, object], *, before: str = "") -> str:
    """Return a card whose front matter says more, or other things.

    Args:
        card: the card.
        metadata: what it shall say.
        before: a text that stands before that of the card.

    Raises:
        MaskwiseError: a key is none of ``huggingface_hub.ModelCardData``.
    """
    for key in dict_of("metadata", metadata, example="{'license': 'mit', 'language': 'en'}"):
        require_known("key of metadata", key, KEYS)
    known, text = _divided(card)
    return f"{_written({**known, **metadata})}{before}{text}"


KEYS = (
    *("base_model", "datasets", "language", "library_name", "license", "license_link"),
    *("license_name", "metrics", "model_name", "pipeline_tag", "tags"),
)
"""The keys of the hub that users may set."""


def metadata_of(card: str) -> Metadata:
    """Return the front matter of a card; {} if it has none."""
    return _divided(card)[0]


def _divided(card: str) -> tuple[Metadata, str]:
    """Return the front matter of a card, and the text after it."""
    begin, _, rest = card.partition("---\n")
    front, end, text = rest.partition("\n---\n")
    if begin or not end:
        return {}, card
    try:
        known = yaml.safe_load(front)
    except yaml.YAMLError:
        known = None
    return (known, text) if isinstance(known, dict) else ({}, card)


def _written(metadata: Metadata) -> str:
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n"


def _of_text(source: str) -> Metadata:
    if source.startswith("hf:"):
        return {"datasets": source.removeprefix("hf:").partition(":")[0]}
    return BUNDLED_TEXTS.get(source, {})


def _of_start(start: str) -> Metadata:
    """Return what is known of a start: its id on the hub, or what a card of ours says."""
    folder = Path(resolve_start(start))
    if not folder.exists():
        return {"base_model": start}
    card = folder / CARD
    known = metadata_of(card.read_text("utf-8", errors="replace")) if card.is_file() else {}
    return known if MADE_BY in _listed(known.get("tags")) else {}


def _listed(value: object) -> list[str]:
    """Return the texts of a value of a card, which people may have edited."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]
