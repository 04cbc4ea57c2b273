"""Write a checkpoint with pickled weights again, with safetensors (``maskwise convert``).

Older checkpoints keep their weights in ``pytorch_model.bin``, a pickle, which may run any code when
it is read. ``torch.load(weights_only=True)`` reads nothing but tensors and plain values, and raises
an error at anything else. All tensors are kept under their names, so the new folder has the heads
of the old one, too.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import (
    CARD,
    OutputFolder,
    copy_texts,
    fill_folder,
    not_to_copy,
    read_json,
)
from maskwise.base.specs import user_path
from maskwise.models.families import adapter_of
from maskwise.models.loading import has_head, load_config, load_model, require_head
from maskwise.models.starts import (
    CONFIG,
    TOKENIZER_FILES,
    Start,
    absolute,
    folder_of,
    safetensors_of,
)
from maskwise.text.own_tokenizer import other_ids, own_tokenizer
from maskwise.text.tokenizers import has_tokenizer, load_tokenizer

PICKLED = "pytorch_model.bin"
INDEX = f"{PICKLED}.index.json"
KEPT = (CONFIG, "generation_config.json", CARD, "LICENSE*")
"""Patterns of files that are copied as they are."""
PATTERNS = ["*.json", "*.txt", "*.model", "*.md", "pytorch_model*"]
"""The files of a checkpoint on the hub that are downloaded, none of which is code."""
LFS = b"version https://git-lfs"
"""The beginning of a file that Git LFS has not downloaded."""
LEAST_CAPITALS = 0.01
"""The share of tokens with capitals from which a vocabulary is that of a cased model."""


def convert(old: Start, new: Path, *, tokenizer: Start | None = None) -> dict[str, Any]:
    """Write the checkpoint ``old`` to the folder ``new``, with safetensors and a fast tokenizer.

    Args:
        old: a folder with ``pytorch_model.bin``, or with its index and shards; or a hub id.
        new: the folder to write, which must be new or empty. After an interruption, the same call
            begins again.
        tokenizer: the tokenizer to save, if ``old`` has none.

    Returns:
        The number of weights and files, whether the model has a head for masked tokens, and
        "warnings" about the tokenizer and about files that are left out: links that lead out of
        ``old``, and texts of more than 10 MB.

    Raises:
        MaskwiseError: ``old`` has no pickled weights, holds something else than weights, has code
            of its own or does not load; its configuration or tokenizer is a link that leads out of
            it; or ``new`` has files that no
            interrupted call with the same arguments has written.
    """
    where = OutputFolder(new, "convert", f"maskwise convert {old}", keeps=False)
    of = {"old": absolute(old), "tokenizer": tokenizer and absolute(tokenizer)}
    where.require(of)
    folder = folder_of(old, PATTERNS)
    files = _weight_files(folder)
    _refuse_links(folder, [CONFIG])
    _refuse_links(user_path(str(tokenizer or folder)), TOKENIZER_FILES)
    # The configuration is checked before weights are read, which takes much longer.
    config = load_config(folder, kind=None)
    require_head(config, adapter_of(config).kind, name=old)
    if tokenizer is None and not has_tokenizer(folder):
        raise MaskwiseError(
            f"there is no tokenizer in {str(old)!r}", do="name the model's own: --tokenizer NAME"
        )
    loaded: Any = load_tokenizer(str(tokenizer or folder), needs_mask=False, needs_words=False)
    own = own_tokenizer(folder) if tokenizer else None
    differing = own and other_ids(loaded.get_vocab(), own.get_vocab())
    if differing:
        raise MaskwiseError(
            f"the tokenizer {str(tokenizer)!r} is not that of {str(old)!r}",
            got=differing,
            do="leave --tokenizer out, so that the model keeps its own",
        )
    facts: dict[str, Any] = {"folder": str(new), "weights": 0, "files": len(files), "warnings": []}
    note = _case_note(folder, loaded)
    if note and tokenizer is None:
        facts["warnings"].append(note)
    with where.used(of):
        fill_folder(new, partial(_fill, folder, files, loaded, facts))
    return facts


def _refuse_links(folder: Path, patterns: Iterable[str]) -> None:
    """Raise an error if a copy leaves out a file without which a model does not load."""
    for path, why in not_to_copy(folder, patterns).items():
        raise MaskwiseError(
            f"{path} is not copied",
            got=why,
            do="put the file itself into the folder, if it may be published with the model",
        )


def _weight_files(folder: Path) -> list[Path]:
    """Return the file of pickled weights, or its shards in order."""
    safe = safetensors_of(folder)
    if safe:
        raise MaskwiseError(
            f"{folder} has safetensors already", got=safe.name, do="use it as it is"
        )
    if (folder / PICKLED).is_file():
        return [folder / PICKLED]
    if not (folder / INDEX).is_file():
        raise MaskwiseError(
            f"{folder} has no pickled weights",
            got=", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "an empty folder",
            allowed=f"{PICKLED}, or {INDEX} with its shards",
        )
    index = (read_json(folder / INDEX) or {}).get("weight_map")
    names = sorted(set(index.values())) if isinstance(index, dict) else []
    # A name with a folder in it could point anywhere.
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise MaskwiseError(f"{folder / INDEX} does not name the shards", got=names[:2])
    for name in names:
        if not (folder / name).is_file():
            raise MaskwiseError(f"{folder} lacks a shard of its weights", got=f"no {name}")
    return [folder / name for name in names]


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a pickle that holds nothing else.

    Raises:
        MaskwiseError: the file holds anything else, or is damaged.
    """
    with path.open("rb") as file:
        beginning = file.read(len(LFS))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # Damaged archives raise errors of zipfile, of torch's reader and of pickle. Their texts and
        # warnings are not shown, because torch advises to read the file without protection.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and isinstance(error, pickle.UnpicklingError):
            raise MaskwiseError(
                f"{path} holds more than weights, and is not read",
                got=found[1],
                do="ask its authors for model.safetensors; maskwise runs no code from a checkpoint",
            ) from None
        got = f"{path.stat().st_size:,} bytes that begin with {beginning!r}"
        do = "download it again"
        if beginning == LFS:
            got, do = "a pointer of Git LFS", "run git lfs pull in its folder"
        raise MaskwiseError(
            f"{path} is damaged or no file of weights",
            got=got if beginning else "an empty file",
            do=do,
        ) from None
    if not isinstance(state, Mapping):
        raise MaskwiseError(f"{path} has no weights by name", got=type(state).__name__)
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise MaskwiseError(
                f"{path} has something else than weights by name",
                got=f"{type(tensor).__name__} under {name!r}",
                do="save only the model's state_dict() in it",
            )
    return dict(state)


def _fill(
    folder: Path, files: list[Path], tokenizer: Any, facts: dict[str, Any], new: Path
) -> None:
    """Write all files of the new folder, and load the model from it."""
    facts["warnings"] += copy_texts(folder, KEPT, new)
    tokenizer.save_pretrained(new)
    places: dict[str, str] = {}
    size = 0
    for number, path in enumerate(files, 1):
        name = "model.safetensors"
        if len(files) > 1:
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        # Tied weights share memory, which safetensors does not allow.
        state = {
            key: tensor.detach().clone().contiguous() for key, tensor in read_pickled(path).items()
        }
        save_file(state, new / name, metadata={"format": "pt"})
        places |= dict.fromkeys(state, name)
        size += sum(tensor.nbytes for tensor in state.values())
        facts["weights"] += sum(tensor.numel() for tensor in state.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    try:
        model: Any = load_model(new, kind=None, seed=0)
        facts["head"] = has_head(str(new))
    except MaskwiseError as error:
        # The folder has a name for the time of writing only.
        raise MaskwiseError(
            f"the weights of {folder} do not make a model",
            got=str(error).replace(str(new), str(folder)),
        ) from None
    size_of_vocabulary = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= size_of_vocabulary:
        raise MaskwiseError(
            "the tokenizer has more tokens than the model",
            got=f"an id {largest}",
            allowed=f"< {size_of_vocabulary}",
            do="give the model's own tokenizer: --tokenizer NAME",
        )


def _case_note(folder: Path, tokenizer: Any) -> str:
    """Return a warning if an old vocabulary has capitals that its tokenizer never makes."""
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        return ""
    tokens = [*tokenizer.get_vocab()]
    capitals = sum(token != token.lower() for token in tokens if not token.startswith("["))
    if capitals < LEAST_CAPITALS * len(tokens) or "A" in "".join(tokenizer.tokenize("A")):
        return ""
    return (
        f"{capitals:,} tokens have capitals, but the tokenizer lowercases, because {folder} has no "
        'tokenizer_config.json; for a cased model, write {"do_lower_case": false} to it and '
        "convert again"
    )
