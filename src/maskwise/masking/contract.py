"""The contract of policies and corruptions, as checks that the author of one can run.

``check_policy`` and ``check_corruption`` mask the rows of ``examples``: padded, packed, alone, in
any order. The tests of maskwise run the same checks on every policy with every corruption and
budget. A check that fails raises a ``MaskwiseError`` of one line, which names the policy or the
corruption and says what is wrong. All checks of a policy take about a quarter of a second.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from maskwise.base.errors import MaskwiseError, first_line
from maskwise.base.specs import Call
from maskwise.masking import corruptions, policies
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.corruptions import Corruption
from maskwise.masking.draws import Array, Draws
from maskwise.masking.examples import (
    LAYERS,
    LayersOfWords,
    RowMaker,
    any_layer,
    packed,
    padded,
    per_row,
    small_vocabulary,
)
from maskwise.masking.gather import UserRow, UserRows, gather
from maskwise.masking.line import Columns, Line
from maskwise.masking.masker import Masker, refused_writes
from maskwise.masking.policies import Policy, When
from maskwise.masking.policies.base import naming, require_shares
from maskwise.masking.schedules import uniform
from maskwise.masking.select import BUDGETS, Choice
from maskwise.masking.settings import Masking
from maskwise.masking.units import Units, require_units
from maskwise.masking.vocabulary import Tokenizer, Vocabulary

PIECES = "the mask of a document must depend only on its own tokens, layers and example id"
DRAWS = "draw random numbers from draws, and keep no state between calls"


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

    >>> check_policy("whole-word")
    >>> import numpy as np
    >>> check_policy("weighted('depth')", layers={"depth": lambda word: word % 7 + 0.5})
    """
    made = policies.policy(policy)
    who = f"policy {made}"
    before = _generators()
    _require_copies(who, made)
    vocabulary = _vocabulary(tokenizer, rows)
    known = LAYERS | dict(layers or {})
    declared = {name: known.get(name, any_layer) for name in made.layers() if name != "word_ids"}
    examples = RowMaker(vocabulary, declared)
    if rows is not None:
        named = _named(rows)
        longest = max(named.values(), key=lambda row: len(row["input_ids"]))
    else:
        named = examples.awkward()
        longest = examples.random(1, words=20)[0]
        if "word_ids" not in made.layers():
            named = {name: _without_words(row) for name, row in named.items()}
        everything = RowMaker(vocabulary, known | declared)
        _check_layers(who, made, named, everything.awkward(), vocabulary)
    for name, row in named.items():
        with _naming(who, f"a row ({name})"):
            line = gather([row], vocabulary)
            require_units(_cut(made, line, ratio=0.3), line, who)
    check_alone(_masker(vocabulary, made, "replace", ratio=0.3), named, who)
    with _naming(who):
        _check_properties(who, made, list(named.values()), vocabulary)
        for budget in BUDGETS:
            if budget == "bernoulli" and made.splits_budget:
                continue
            for shown_as in ("replace", "delete"):
                masker = _masker(vocabulary, made, shown_as, budget=budget, ratio=0.3, seed=5)
                check_masks(masker, named, who)
                check_packing(masker, list(named.values()), who)
            for ratio in (0.0, 0.02, 0.15, 0.5, 1.0):
                masker = _masker(vocabulary, made, "replace", budget=budget, ratio=ratio, seed=5)
                check_units(masker, padded(list(named.values()), vocabulary.pad), who)
        # The mask of a short text is often the same.
        if len(longest["input_ids"]) >= 10:
            often = uniform(0.2, 0.6)
            masker = _masker(vocabulary, made, "replace", ratio=often, fill="random", seed=1)
            check_draws(masker, longest, who)
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

    >>> check_corruption("bert")
    >>> check_corruption("permute-sentences", moves_text=True)
    """
    made = corruptions.corruption(corruption)
    who = f"corruption {made}"
    before = _generators()
    _require_copies(who, made)
    vocabulary = _vocabulary(tokenizer, rows)
    examples = RowMaker(vocabulary, LAYERS | dict(layers or {}))
    named = _named(rows) if rows is not None else _with_types(examples.awkward())
    check_alone(_masker(vocabulary, policies.policy("token"), made, ratio=1.0), named, who)
    if not made.shows_mask:
        _check_without_mask(who, made, list(named.values()), vocabulary)
    with _naming(who):
        for chosen_by in ("token", "whole-word", "span"):
            for ratio in (0.0, 0.3, 1.0):
                masker = _masker(vocabulary, policies.policy(chosen_by), made, ratio=ratio, seed=5)
                shown = check_masks(masker, named, who)
                check_shown(shown, list(named.values()), masker, who, moves_text=moves_text)
                check_packing(masker, list(named.values()), who)
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
    _require(
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


def _masker(
    vocabulary: Vocabulary, chosen: Policy, shown_as: Corruption | str, **settings: Any
) -> Masker:
    """Make a masker without the settings that have no effect with this policy."""
    used = Masking.used({"policy": chosen, "corruption": shown_as, **settings})
    return Masker(vocabulary, **used)


def _named(rows: Sequence[UserRow]) -> dict[str, dict[str, Any]]:
    """Return a user's rows by their numbers, with example ids that differ."""
    named = {}
    for number, row in enumerate(rows):
        lists = {}
        for name, values in row.items():
            lists[name] = values if isinstance(values, list) else np.asarray(values).tolist()
        named[f"row {number}"] = {**lists, "example_id": number + 1}
    if not named:
        raise MaskwiseError("there are no rows to check with", got="no rows")
    return named


def _with_types(named: Mapping[str, UserRow]) -> dict[str, dict[str, Any]]:
    """Return rows with types of tokens, which a corruption must move with the tokens."""
    return {
        name: {**row, "token_type_ids": [at % 2 for at in range(len(row["input_ids"]))]}
        for name, row in named.items()
    }


def _without_words(row: UserRow) -> dict[str, Any]:
    return {name: values for name, values in row.items() if name != "word_ids"}


@contextmanager
def _naming(who: str, where: str = "the rows of the checks") -> Iterator[None]:
    """Turn any error into one line that names the policy or corruption."""
    try:
        with naming(who):
            yield
    except MaskwiseError:
        raise
    except Exception as error:
        raise MaskwiseError(
            f"{who} fails on {where}", got=f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _require(holds: bool, what: str, **details: Any) -> None:
    if not holds:
        raise MaskwiseError(what, **details)


def _require_copies(who: str, made: Policy | Corruption) -> None:
    """Check that other processes get an equal policy or corruption."""
    do = "write it as a frozen dataclass, in a module, whose fields are plain values"
    try:
        copied = pickle.loads(pickle.dumps(made))
    except Exception as error:
        raise MaskwiseError(
            f"{who} cannot be sent to other processes, such as the workers of a loader",
            got=f"{type(error).__name__}: {first_line(error)}",
            do=do,
        ) from error
    with _naming(who, "a comparison with its copy"):
        _require(
            bool(copied == made) and str(copied) == str(made),
            f"{who} is not equal to its own copy",
            do=do,
        )


def _check_layers(
    who: str,
    made: Policy,
    declared: Mapping[str, UserRow],
    everything: Mapping[str, UserRow],
    vocabulary: Vocabulary,
) -> None:
    """Check that the layers that the policy names are enough to cut rows."""

    def cut(rows: Iterable[UserRow]) -> None:
        line = gather(padded(list(rows), vocabulary.pad), vocabulary)
        _cut(made, line, ratio=0.3)

    try:
        cut(declared.values())
    except Exception as error:
        try:
            cut(everything.values())
        except Exception:
            # The layers are not the reason. The checks that follow say what is.
            return
        raise MaskwiseError(
            f"{who} reads a layer that layers() does not name",
            got=first_line(error),
            allowed=made.layers() or "no layers",
            do="return the names of all layers that cut() reads from layers()",
        ) from error


def _cut(made: Policy, line: Line, *, ratio: float, total_steps: int | None = 1000) -> Units:
    """Cut a line for epoch 0 and step 5. Neither the line nor the ratios can be written into."""
    draws = Draws(line.example_id, seed=5, epoch=0)
    ratio_P = np.full(line.pieces, ratio)
    ratio_P.flags.writeable = False
    when = When(5, total_steps, 0, ratio=ratio_P)
    with line.read_only() as line, refused_writes("policy", made):
        return made.cut(line, draws, when)


def _check_properties(
    who: str, made: Policy, rows: Sequence[UserRow], vocabulary: Vocabulary
) -> None:
    """Check that what a policy says about itself is true."""
    line = gather(padded(rows, vocabulary.pad), vocabulary)
    units = _cut(made, line, ratio=0.3)
    require_units(units, line, who)
    _require(
        _same_units(units, _cut(made, line, ratio=0.3)),
        f"{who} cuts or weighs the same rows differently in a second call",
        do=DRAWS,
    )
    for number, row in enumerate(rows):
        alone = gather([row], vocabulary)
        _require(
            _of_piece(units, number) == _of_piece(_cut(made, alone, ratio=0.3), 0),
            f"{who} cuts or weighs a document differently beside other documents",
            do=PIECES,
        )
    if not made.needs_ratio:
        _require(
            _same_units(units, _cut(made, line, ratio=0.6)),
            f"{who}: units or weights change with the ratio, but needs_ratio is False",
            do="add the class attribute needs_ratio = True",
        )
    if not made.needs_total:
        _require(
            _same_units(units, _cut(made, line, ratio=0.3, total_steps=None)),
            f"{who}: units or weights change with the number of steps, but needs_total is False",
            do="add the class attribute needs_total = True",
        )
    if not made.reads_text:
        other = replace(line, input_ids=_other_text(line, vocabulary))
        _require(
            _same_units(units, _cut(made, other, ratio=0.3)),
            f"{who}: units or weights change with the text, but reads_text is False",
            do="remove reads_text = False",
        )
    if not made.has_zero_weights:
        chosen = []
        for fill in ("none", "random"):
            masker = Masker.of(vocabulary, Masking(policy=made, ratio=uniform(0.2, 1), fill=fill))
            chosen.append(masker.corrupted(line, When(5, 1000, 0))[1].tokens)
        _require(
            np.array_equal(chosen[0], chosen[1]),
            f"{who}: units of weight 0 fill up the budget, but has_zero_weights is False",
            do="remove has_zero_weights = False, or give all units a weight above 0",
        )
    draws = Draws(line.example_id, seed=5, epoch=0)
    require_shares(made, made.ratios(np.full(line.pieces, 0.3), draws, When()), line.pieces)


def _same_units(one: Units, other: Units) -> bool:
    columns = [(each.tokens, each.unit, each.weight) for each in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*columns))


def _of_piece(units: Units, piece: int) -> dict[int, tuple[list[int], float]]:
    """Return the tokens and the weight of each unit of a piece, by the number of the unit."""
    found = {}
    for at in np.flatnonzero(units.piece == piece):
        tokens = units.tokens[units.unit == at] - units.line.begin[piece]
        weight = 1.0 if units.weight is None else float(units.weight[at])
        found[int(units.number[at])] = (tokens.tolist(), weight)
    return found


def _other_text(line: Line, vocabulary: Vocabulary) -> Array:
    """Return the ids of the line, with other ordinary tokens in place of ordinary tokens."""
    ids = line.input_ids.copy()
    place = vocabulary.ordinary.searchsorted(ids[line.eligible])
    ids[line.eligible] = vocabulary.ordinary[(place * 7 + 3) % len(vocabulary.ordinary)]
    return ids


def _check_without_mask(
    who: str, made: Corruption, rows: Sequence[UserRow], vocabulary: Vocabulary
) -> None:
    """Check that a corruption that says so needs no mask token."""
    maskless = replace(vocabulary, mask=None)
    try:
        _masker(maskless, policies.policy("token"), made, ratio=1.0)(rows, epoch=0)
    except Exception as error:
        raise MaskwiseError(
            f"{who} needs a mask token, but shows_mask is False",
            got=first_line(error),
            do="remove shows_mask = False",
        ) from error


def check_alone(masker: Masker, rows: Mapping[str, UserRow], who: str) -> None:
    """Check that each row can be masked alone, and name the row if it cannot."""
    mask = _at(masker, epoch=2)
    for name, row in rows.items():
        with _naming(who, f"a row ({name})"):
            mask([row])


def _at(masker: Masker, *, epoch: int) -> Callable[[UserRows | Line], MaskedBatch]:
    """Return a function that masks rows for the fifth step of an epoch."""
    total = 1000 if masker.needs_total else None
    return partial(masker, step=5, total_steps=total, epoch=epoch)


def check_masks(masker: Masker, rows: Mapping[str, UserRow], who: str) -> MaskedBatch:
    """Check that the mask of a row is the same again, alone, in another order and padding.

    Args:
        masker: the masker.
        rows: the rows by name.
        who: the policy or corruption that error messages name.

    Returns:
        The masked rows, as one batch.
    """
    mask = _at(masker, epoch=2)
    names = list(rows)
    every = list(rows.values())
    pad = masker.vocabulary.pad
    longest = max(len(row["input_ids"]) for row in every)
    columns = padded(every, pad)
    before = {name: values.copy() for name, values in columns.items()}
    out = mask(columns)
    changed = [name for name in columns if not np.array_equal(columns[name], before[name])]
    _require(not changed, f"{who} changed the user's rows", got=", ".join(changed))
    _check_chosen(out, columns, who)
    again = per_row(mask(columns), len(every))
    whole = per_row(out, len(every))
    _require(
        again == whole,
        f"{who} masks the same rows differently in a second call",
        do=DRAWS,
    )
    for which in ([*reversed(range(len(every)))], [min(3, len(every) - 1)], [0, len(every) // 2]):
        some = [every[number] for number in which]
        as_columns: dict[str, UserRows] = {
            "in a batch of other rows": padded(some, pad, width=longest + 4),
            "in a list of other rows": some,
            "with padding at the left": padded(some, pad, width=longest + 1, left=True),
        }
        for where, batch in as_columns.items():
            masked = per_row(mask(batch), len(some))
            for number, found in zip(which, masked):
                _require(
                    found == whole[number],
                    f"{who} masks a row ({names[number]}) differently {where}",
                    do=PIECES,
                )
    return out


def _check_chosen(out: MaskedBatch, columns: Columns, who: str) -> None:
    """Check that only tokens that may be masked are chosen."""
    assert out.choice is not None
    wrong = out.choice.tokens & ~out.line.eligible
    if wrong.any():
        ids = columns["input_ids"].reshape(-1)
        raise MaskwiseError(
            f"{who}: special, padding or unknown tokens were chosen",
            got=f"id {ids[wrong][0]}",
            do="cut only tokens where line.eligible is True",
        )


def check_shown(
    out: MaskedBatch, rows: Sequence[UserRow], masker: Masker, who: str, *, moves_text: bool = False
) -> None:
    """Check what a corruption made of rows.

    Args:
        out: the rows, masked as one padded batch.
        rows: the rows.
        masker: the masker.
        who: the corruption that error messages name.
        moves_text: whether tokens that were not chosen may change places.
    """
    vocabulary = masker.vocabulary
    made = masker.corruption
    columns = padded(rows, vocabulary.pad)
    ids = columns["input_ids"]
    present = columns["attention_mask"] == 1
    selected = out.selected.numpy()
    shown = out.input_ids.numpy()
    labels = out.labels.numpy()
    left = present
    if out.attention_mask is not None:
        left = out.attention_mask.numpy() == 1
    _check_chosen(out, columns, who)
    frame = np.unique(ids[present & ~vocabulary.eligible[ids]])
    for number in range(len(rows)):
        real = ids[number][present[number]]
        text = shown[number][left[number]]
        chosen = selected[number][present[number]]
        for token in frame:
            _require(
                np.count_nonzero(text == token) == np.count_nonzero(real == token),
                f"{who}: special or unknown tokens were added, lost or drawn",
                got=f"id {token} {np.count_nonzero(text == token)} times",
                allowed=f"{np.count_nonzero(real == token)} times",
                do="draw from the tokens where line.eligible is True, or from vocabulary.ordinary",
            )
        if not chosen.any():
            _require(
                text.tolist() == real.tolist(),
                f"{who} changes a document without chosen tokens",
                got=text.tolist(),
                allowed=real.tolist(),
            )
            quiet = (labels[number] == IGNORE) | (made.detects & (labels[number] == 0))
            _require(
                bool(quiet.all()),
                f"{who} has targets in a document without chosen tokens",
                got=labels[number].tolist(),
            )
            continue
        _require(
            moves_text or _is_within(real[~chosen].tolist(), text.tolist()),
            f"{who}: tokens that were not chosen were changed, lost or moved",
            got=text.tolist(),
            allowed=f"{real[~chosen].tolist()}, in this order",
        )
    _require(
        vocabulary.pad in frame or vocabulary.pad not in shown[left],
        f"{who} writes padding into the text",
        got=f"id {vocabulary.pad}",
    )
    _require(
        (out.piece_BL is None) == made.keeps_length,
        f"{who}: keeps_length is {made.keeps_length}, but lengths "
        f"{'are given' if made.keeps_length else 'are not given'}",
        do="extend Moving if the number of tokens changes, and return Masked with lengths",
    )
    if not made.keeps_length:
        _require(
            out.writes == (made.writes is not None),
            f"{who}: writes is {made.writes!r}, but label_lengths "
            f"{'are given' if out.writes else 'are not given'}",
            do="give label_lengths if, and only if, a decoder writes the labels",
        )
    if made.keeps_length and not moves_text:
        _check_in_place(ids, shown, labels, selected, masker, who)


def _is_within(short: Sequence[int], long: Sequence[int]) -> bool:
    """Whether all items of ``short`` are in ``long``, in this order."""
    rest = iter(long)
    return all(token in rest for token in short)


def _check_in_place(
    ids: Array, shown: Array, labels: Array, selected: Array, masker: Masker, who: str
) -> None:
    """Check the tokens and the labels, (B, L), of a corruption that keeps all places."""
    vocabulary = masker.vocabulary
    _require(
        np.array_equal(shown[~selected], ids[~selected]),
        f"{who}: tokens that were not chosen were changed",
    )
    changed = shown[shown != ids]
    allowed = vocabulary.eligible[changed]
    for special in (vocabulary.mask, *vocabulary.sentinels):
        if special is not None:
            allowed |= changed == special
    _require(
        bool(allowed.all()),
        f"{who}: a replacement is no ordinary token",
        got=f"id {changed[~allowed][:1]}",
        do="draw from vocabulary.ordinary, or write vocabulary.mask",
    )
    if masker.corruption.target in (None, "spans"):
        _require(
            np.array_equal(labels != IGNORE, selected),
            f"{who}: labels are not at the chosen tokens",
            do="return labels_in_place(choice, 'spans'), or set target",
        )
        _require(
            np.array_equal(np.where(selected, labels, shown), ids),
            f"{who}: labels are not the tokens that stood there",
            do="return labels_in_place(choice, 'spans'), or set target",
        )


def check_packing(masker: Masker, rows: Sequence[UserRow], who: str) -> None:
    """Check that documents in packed rows are masked as alone."""
    vocabulary = masker.vocabulary
    pad = vocabulary.pad
    mask = _at(masker, epoch=1)
    some = [row for row in rows if vocabulary.eligible[row["input_ids"]].any()]
    if not some:
        return
    width = max(50, *(len(row["input_ids"]) for row in some))
    columns = packed(some, pad, width=width)
    alone = mask(padded(some, pad))
    found = f"{who} masks a document in a packed row differently than alone"
    if not masker.corruption.keeps_length:
        line = gather(columns, vocabulary)
        line.plan = None  # rows may grow
        together = mask(line)
        _check_written(together, per_row(alone, len(some)), some, found)
        # The end of the text of a row that has grown too long is cut off.
        line.plan = width // 2
        ends = zip(_last_tokens(together), _last_tokens(mask(line)))
        closing = {row["input_ids"][-1] for row in some} - {*np.flatnonzero(vocabulary.content)}
        lost = [end for end, left in ends if end in closing and left != end]
        _require(
            not lost,
            f"{who}: the special token at the end of a packed row that has grown is cut off",
            got=f"id {lost[:1]}",
            do="set text to False where tokens are special, as Edit.shown does",
        )
        return
    together = mask(columns)
    for number, row in enumerate(some):
        here = (columns["example_id"] == row["example_id"]) & (columns["attention_mask"] == 1)
        tokens = len(row["input_ids"])
        # Special tokens between two documents of a block belong to neither, so they have no labels.
        text = vocabulary.content[row["input_ids"]]
        same = (
            np.array_equal(together.input_ids[here], alone.input_ids[number, :tokens])
            and np.array_equal(together.selected[here], alone.selected[number, :tokens])
            and np.array_equal(together.labels[here][text], alone.labels[number, :tokens][text])
        )
        _require(same, found, do=PIECES)


def _last_tokens(batch: MaskedBatch) -> list[int]:
    """Return the last token of each row whose pieces may have new lengths."""
    assert batch.piece_BL is not None
    lengths = (batch.piece_BL >= 0).sum(1).tolist()
    return [row[length - 1] for row, length in zip(batch.input_ids.tolist(), lengths)]


def _check_written(
    together: MaskedBatch,
    alone: Sequence[tuple[list[int], list[int]]],
    rows: Sequence[UserRow],
    found: str,
) -> None:
    """Check that a packed row and its targets are those of its documents, in their order."""
    line = together.line
    by_id = {row["example_id"]: pair for row, pair in zip(rows, alone)}
    segments = together.segment_ids
    for b in range(line.shape[0]):
        written: list[int] = []
        for number, example_id in enumerate(line.example_id[line.row == b].tolist()):
            inputs, labels = by_id[example_id]
            shown = together.input_ids[b][segments[b] == number].tolist()
            _require(shown == inputs, found, got=shown, allowed=inputs, do=PIECES)
            written += labels
        labels = together.labels[b][together.labels[b] != IGNORE].tolist()
        _require(labels == written, found, got=labels, allowed=written, do=PIECES)


def check_draws(masker: Masker, row: UserRow, who: str, *, least: int = 2) -> None:
    """Check that masks of one text differ between examples, epochs and steps.

    Args:
        masker: the masker, with a ratio at which the row can have several masks.
        row: the text.
        who: the policy or corruption that error messages name.
        least: how many of the masks of 16 examples must differ.
    """
    total = 1000 if masker.needs_total else None
    columns = padded([{**row, "example_id": number} for number in range(16)], masker.vocabulary.pad)

    def masks(**moment: int) -> MaskedBatch:
        return masker(columns, total_steps=total, **moment)

    first = masks(epoch=0)
    copied = pickle.loads(pickle.dumps(masker))(columns, total_steps=total, epoch=0)
    same = per_row(copied, 16) == per_row(first, 16)
    _require(same, f"{who} masks differently in another process")
    several = len({tuple(each.tolist()) for each in first.selected})
    _require(several >= least, f"{who} masks all examples of a text alike", do=DRAWS)
    for what, other in (
        ("in every epoch", masks(epoch=1)),
        ("in every step, without an epoch", masks(step=7)),
    ):
        _require(
            not np.array_equal(first.selected, other.selected),
            f"{who} masks the same tokens {what}",
            do=DRAWS,
        )


def check_units(masker: Masker, columns: Columns, who: str) -> Choice:
    """Check the units of a policy, and that they are chosen as a whole and within the budget."""
    line = gather(columns, masker.vocabulary)
    draws = Draws(line.example_id, seed=masker.seed, epoch=0)
    choice = masker.choose(line, draws, When(0, 1000, 0))
    units = choice.units
    require_units(units, line, who)
    chosen = choice.tokens
    taken = np.bincount(units.unit, chosen[units.tokens], len(units.length))
    _require(bool(((taken == 0) | (taken == units.length)).all()), f"{who}: half a unit was chosen")
    _check_budget(masker, choice, who)
    return choice


def _check_budget(masker: Masker, choice: Choice, who: str) -> None:
    """Check that the chosen tokens of each document fit its budget."""
    units = choice.units
    line = choice.line
    pieces = line.pieces
    usable_U = units.length if units.weight is None else units.length * (units.weight > 0)
    usable_P = np.bincount(units.piece, usable_U, pieces)
    longest_P = np.zeros(pieces, np.int64)
    np.maximum.at(longest_P, units.piece, units.length)
    count_P = line.count(choice.tokens)
    budget_P = choice.budget
    if budget_P is not None:
        wanted_P = units.tokens_P * choice.ratio_P
        near_P = (np.abs(budget_P - wanted_P) < 1) | (budget_P == 1)
        _require(bool(near_P.all()), f"{who}: the budget is not ratio × tokens")
        if masker.masking.budget == "exact":
            _require(bool((count_P <= budget_P).all()), f"{who}: more is chosen than the budget")
        else:
            over_P = (count_P - longest_P >= budget_P) & (count_P > 0)
            _require(not over_P.any(), f"{who}: more than one unit is chosen over the budget")
            possible_P = np.minimum(budget_P, usable_P)
            under_P = (count_P + longest_P <= possible_P) & (count_P > 0)
            _require(not under_P.any(), f"{who}: less is chosen than the budget")
    if not choice.ratio_P.any():
        _require(not count_P.any(), f"{who}: tokens are chosen at a ratio of 0")
    if (choice.ratio_P == 1).all() and (units.weight is None or budget_P is not None):
        _require(np.array_equal(count_P, usable_P), f"{who}: not all is chosen at a ratio of 1")
