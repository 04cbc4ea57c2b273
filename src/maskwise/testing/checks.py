"""``check_policy`` and ``check_corruption``: the contract, on rows that break careless code."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from maskwise.base.errors import MaskwiseError, PlugInError, first_line
from maskwise.base.specs import Call
from maskwise.masking import corruptions, policies
from maskwise.masking.contract import (
    DRAWS,
    cut,
    hold_corruption,
    hold_policy,
    named_rows,
    padded,
    require,
    same_units,
    told,
)
from maskwise.masking.corruptions import Corruption
from maskwise.masking.gather import UserRow, gather
from maskwise.masking.policies import Policy
from maskwise.masking.vocabulary import Tokenizer, Vocabulary
from maskwise.testing.rows import LAYERS, LayersOfWords, RowMaker, any_layer, small_vocabulary

Made = TypeVar("Made", Policy, Corruption)


def check_policy(
    policy: Policy | str | Call,
    *,
    tokenizer: Tokenizer | None = None,
    rows: Sequence[UserRow] | None = None,
    layers: LayersOfWords | None = None,
) -> None:
    """Check a masking policy of yours; raise an error about the first rule that it breaks.

    The policy masks invented rows with every budget. The checks are: special tokens are never
    masked; no array of the line is written into; units are whole, disjoint, within one document and
    inside the budget; the same seed, epoch and example id give the same mask, in any batch, with
    any padding, alone and in packed rows; other epochs and examples give other masks; ``layers()``
    names all layers that ``cut`` reads; what the properties say (``needs_ratio``, ``needs_total``,
    ``has_zero_weights``, ``reads_text``) is true; the random generators of the process are not
    used; and the policy can be sent to other processes.

    Args:
        policy: the policy, or its name in recipes.
        tokenizer: the tokenizer of the rows, if the policy reads token ids; default: an invented
            one with 60 words.
        rows: rows of your own, as ``maskwise.encode`` makes them with this tokenizer, instead of
            invented ones.
        layers: for invented rows, functions that compute layers from the numbers of words, (T,).
            Layers of maskwise's own annotators are known. A layer that nobody knows has the whole
            numbers 0 to 4, which change after every second word, and −1 outside words.

    Raises:
        MaskwiseError: the policy breaks a rule; or ``rows`` have no tokenizer.

    >>> from maskwise.testing import check_policy
    >>> check_policy("whole-word")
    >>> import numpy as np
    >>> check_policy("weighted('depth')", layers={"depth": lambda word: word % 7 + 0.5})
    """
    made = policies.policy(policy)
    who = f"policy {made}"
    before = _generators()
    copied = _copy(who, made)
    vocabulary = _vocabulary(tokenizer, rows)
    known = LAYERS | dict(layers or {})
    declared = {name: known.get(name, any_layer) for name in made.layers() if name != "word_ids"}
    examples = RowMaker(vocabulary, declared)
    if rows is not None:
        named = named_rows(rows)
    else:
        named = examples.awkward()
        # Its masks differ for certain.
        named["a long row"] = examples.row([1, 2, 3, 4] * 5, example_id=13)
        if "word_ids" not in made.layers():
            named = {name: _without_words(row) for name, row in named.items()}
        everything = RowMaker(vocabulary, known | declared)
        _check_layers(who, made, named, everything.awkward(), vocabulary)
    hold_policy(made, vocabulary, named)
    line = gather(padded(list(named.values()), vocabulary.pad), vocabulary)
    require(
        same_units(*(cut(each, line, ratio=0.3) for each in (made, copied))),
        f"{who} cuts or weighs rows differently in another process",
    )
    _require_same_generators(who, before)


def check_corruption(
    corruption: Corruption | str | Call,
    *,
    tokenizer: Tokenizer | None = None,
    rows: Sequence[UserRow] | None = None,
    layers: LayersOfWords | None = None,
    moves_text: bool = False,
) -> None:
    """Check a corruption of yours; raise an error about the first rule that it breaks.

    The corruption replaces tokens of invented rows, which ``token``, ``whole-word`` and ``span``
    choose. The checks are: tokens that were not chosen, and special tokens, stay as they are; no
    array of the line is written into; a document without chosen tokens stays whole and has no
    targets; replacements are ordinary tokens or the mask token; if lengths are kept, labels are
    those that ``target`` promises; the same seed, epoch and example id give the same tokens and
    labels, in any batch, with any padding, alone and in packed rows; a packed row that grows keeps
    its last special token; if lengths change, types of tokens move with the tokens; what the
    properties say (``keeps_length``, ``writes``, ``shows_mask``) is true; the random generators of
    the process are not used; and the corruption can be sent to other processes.

    Args:
        corruption: the corruption, or its name in recipes.
        tokenizer, rows, layers: as for ``check_policy``. Invented rows have the layers of
            maskwise's own annotators and those that are given here.
        moves_text: whether tokens that were not chosen may change places.

    Raises:
        MaskwiseError: the corruption breaks a rule; or ``rows`` have no tokenizer.

    >>> from maskwise.testing import check_corruption
    >>> check_corruption("bert")
    >>> check_corruption("permute-sentences", moves_text=True)
    """
    made = corruptions.corruption(corruption)
    who = f"corruption {made}"
    before = _generators()
    _copy(who, made)
    vocabulary = _vocabulary(tokenizer, rows)
    examples = RowMaker(vocabulary, LAYERS | dict(layers or {}))
    named = named_rows(rows) if rows is not None else _with_types(examples.awkward())
    hold_corruption(made, vocabulary, named, moves_text=moves_text)
    _require_same_generators(who, before)


def _generators() -> list[object]:
    """Return the states of the random generators that all code of this process shares."""
    states: list[object] = [random.getstate(), pickle.dumps(np.random.get_state())]
    # A policy cannot have used torch if nothing has imported it.
    torch = sys.modules.get("torch")
    if torch is not None:
        states.append(torch.get_rng_state().tolist())
    return states


def _require_same_generators(who: str, before: list[object]) -> None:
    """Check that these generators were not used: dropout, for example, draws from them, too."""
    after = _generators()
    require(
        after[: len(before)] == before,
        f"{who} uses or seeds a random generator that all code of the process shares",
        allowed="draws",
        do=DRAWS,
    )


def _vocabulary(tokenizer: Tokenizer | None, rows: object) -> Vocabulary:
    if tokenizer is not None:
        return Vocabulary.of(tokenizer)
    if rows is not None:
        raise MaskwiseError(
            "rows need the tokenizer that made them", do="pass tokenizer=…, or leave rows out"
        )
    return small_vocabulary()


def _with_types(named: Mapping[str, UserRow]) -> dict[str, dict[str, Any]]:
    """Return rows with types of tokens, which a corruption must move with the tokens."""
    return {
        name: {**row, "token_type_ids": [at % 2 for at in range(len(row["input_ids"]))]}
        for name, row in named.items()
    }


def _without_words(row: UserRow) -> dict[str, Any]:
    return {name: values for name, values in row.items() if name != "word_ids"}


def _copy(who: str, made: Made) -> Made:
    """Return what other processes get of a policy or a corruption, which must be equal."""
    do = "write it as a frozen dataclass, in a module, whose fields are plain values"
    try:
        copied = pickle.loads(pickle.dumps(made))
    except Exception as error:
        raise PlugInError(
            f"{who} cannot be sent to other processes, such as the workers of a loader",
            got=f"{type(error).__name__}: {first_line(error)}",
            do=do,
        ) from error
    with told(who, "a comparison with its copy"):
        require(
            bool(copied == made) and str(copied) == str(made),
            f"{who} is not equal to its own copy",
            do=do,
        )
    return copied


def _check_layers(
    who: str,
    made: Policy,
    declared: Mapping[str, UserRow],
    everything: Mapping[str, UserRow],
    vocabulary: Vocabulary,
) -> None:
    """Check that the layers that the policy names are enough to cut rows."""

    def read(rows: Iterable[UserRow]) -> None:
        cut(made, gather(padded(list(rows), vocabulary.pad), vocabulary), ratio=0.3)

    try:
        read(declared.values())
    except Exception as error:
        try:
            read(everything.values())
        except Exception:
            # The layers are not the reason. The checks that follow say what is.
            return
        raise PlugInError(
            f"{who} reads a layer that layers() does not name",
            got=first_line(error),
            allowed=made.layers() or "no layers",
            do="return the names of all layers that cut() reads from layers()",
        ) from error
