"""The contract of policies and corruptions: rules about the masks of rows.

``hold_policy`` and ``hold_corruption`` mask rows padded, packed, alone, in any order. A broken rule
is a ``PlugInError`` of one line, which names the policy or the corruption. The tests of maskwise
run these checks on every policy with every corruption and budget, so built-in members are not
checked while they are used. Those of other packages are checked on the first rows that a process
masks with them (``at_first_use``), and by the tests of their authors (``maskwise.testing``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from maskwise import __version__
from maskwise.base.devices import remembered
from maskwise.base.errors import MaskwiseError, PlugInError, first_line
from maskwise.base.plugins import hash_of_code, is_foreign
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.corruptions import Corruption, corruption
from maskwise.masking.draws import Array, Draws
from maskwise.masking.gather import UserRow, UserRows, gather
from maskwise.masking.line import Columns, Line
from maskwise.masking.masker import Masker, refused_writes
from maskwise.masking.policies import Policy, When
from maskwise.masking.policies.base import naming, require_shares
from maskwise.masking.schedules import uniform
from maskwise.masking.select import BUDGETS, Choice
from maskwise.masking.settings import Masking
from maskwise.masking.units import Units, require_units
from maskwise.masking.vocabulary import Vocabulary

PIECES = "the mask of a document must depend only on its own tokens, layers and example id"
DRAWS = "draw random numbers from draws, and keep no state between calls"

PIECES_LOOKED_AT = 8
TOKENS_LOOKED_AT = 48
"""How much of a batch is looked at: the beginnings of its first pieces."""
LEAST_TOKENS, LEAST_PIECES = 32, 2
"""From which number of tokens that may be masked, and of different pieces, on these rows tell
something. One piece says nothing of others beside it."""

_known = set[tuple[type, str]]()
"""The policies and corruptions that this process has checked."""


def at_first_use(masker: Masker, line: Line) -> bool:
    """Check the policy and the corruption of a masker, if they are of another package.

    Each is checked once in a process. That its code keeps the contract is kept on this machine
    (``devices.remembered``), so that other processes need not check it again, if a change of its
    code can be seen (``_is_kept``).

    Args:
        masker: the masker.
        line: rows that it masks.

    Returns:
        Whether both are checked. If not, there are too few tokens or pieces: wait for other rows.

    Raises:
        PlugInError: the contract is broken.
    """
    members = [*_foreign_parts(masker.policy), *_foreign_parts(masker.corruption)]
    members = [made for made in members if (type(made), str(made)) not in _known]
    if not members:
        return True
    if line.eligible_P[:PIECES_LOOKED_AT].clip(max=TOKENS_LOOKED_AT).sum() < LEAST_TOKENS:
        return False
    rows = _rows(line)
    if len({tuple(row["input_ids"]) for row in rows.values()}) < LEAST_PIECES:
        return False
    for made in members:
        if isinstance(made, Policy):
            check = partial(hold_policy, made, masker.vocabulary, rows)
        else:
            check = partial(hold_corruption, made, masker.vocabulary, rows)
        if _is_kept(made):
            code = [hash_of_code(type(part)) for part in _parts(made)]
            remembered("contract", [__version__, str(made), *code], check)
        else:
            check()
        if is_dataclass(made):  # others may look alike with other arguments
            _known.add((type(made), str(made)))
    return True


def _foreign_parts(member: Policy | Corruption) -> Iterator[Policy | Corruption]:
    """Yield the member, or the outermost of its parts that other packages define."""
    if is_foreign(member):
        yield member
    else:
        for part in _inner(member):
            yield from _foreign_parts(part)


def _parts(member: Policy | Corruption) -> Iterator[Policy | Corruption]:
    """Yield the member and all policies and corruptions that are parts of it."""
    yield member
    for part in _inner(member):
        yield from _parts(part)


def _inner(member: Policy | Corruption) -> Iterator[Policy | Corruption]:
    """Yield the policies and corruptions among the arguments of a member."""
    if is_dataclass(member):
        for each in fields(member):
            value = getattr(member, each.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Policy | Corruption):
                    yield part


def _is_kept(made: Policy | Corruption) -> bool:
    """Whether all changes of the code and of the arguments can be seen.

    They cannot if a class is no dataclass, if a program or a notebook defines it, whose other
    functions it may call, or if it is made by a function, on whose arguments it may depend.
    """
    return all(
        is_dataclass(part)
        and type(part).__module__ != "__main__"
        and "<locals>" not in type(part).__qualname__
        and _has_source(type(part))
        for part in _parts(made)
    )


def _has_source(kind: type) -> bool:
    try:
        return bool(inspect.getsource(kind))
    except (OSError, TypeError):
        return False


def _rows(line: Line) -> dict[str, dict[str, Any]]:
    """Return the beginnings of the first pieces of a line as rows."""
    columns = {"input_ids": line.input_ids, **line.layers, **line.extras}
    rows = []
    for begin, end in zip(line.edges[:PIECES_LOOKED_AT], line.edges[1:]):
        at = begin + np.flatnonzero(line.present[begin:end])[:TOKENS_LOOKED_AT]
        rows.append({name: values[at] for name, values in columns.items()})
    return named_rows(rows)


def hold_policy(made: Policy, vocabulary: Vocabulary, rows: Mapping[str, UserRow]) -> None:
    """Check how a policy masks rows.

    Args:
        made: the policy.
        vocabulary: the vocabulary of the rows.
        rows: rows with different example ids and the layers of the policy, by name.

    Raises:
        PlugInError: the policy breaks a rule.
    """
    who = f"policy {made}"
    every = list(rows.values())
    for name, row in rows.items():
        with told(who, f"a row ({name})"):
            line = gather([row], vocabulary)
            require_units(cut(made, line, ratio=0.3), line, who)
    check_alone(_masker(vocabulary, made, "replace", ratio=0.3), rows, who)
    with told(who):
        _check_properties(who, made, every, vocabulary)
        for budget in BUDGETS:
            if budget == "bernoulli" and made.splits_budget:
                continue
            for shown_as in ("replace", "delete"):
                masker = _masker(vocabulary, made, shown_as, budget=budget, ratio=0.3, seed=5)
                check_masks(masker, rows, who)
                check_packing(masker, every, who)
            for ratio in (0.0, 0.02, 0.15, 0.5, 1.0):
                masker = _masker(vocabulary, made, "replace", budget=budget, ratio=ratio, seed=5)
                check_units(masker, padded(every, vocabulary.pad), who)
        # The mask of a text with few units is often the same.
        line = gather(padded(every, vocabulary.pad), vocabulary)
        count_P = cut(made, line, ratio=0.3).count
        if count_P.max() >= 3:
            often = uniform(0.2, 0.6)
            masker = _masker(vocabulary, made, "replace", ratio=often, fill="random", seed=1)
            check_draws(masker, every[count_P.argmax()], who)


def hold_corruption(
    made: Corruption,
    vocabulary: Vocabulary,
    rows: Mapping[str, UserRow],
    *,
    moves_text: bool = True,
) -> None:
    """Check how a corruption replaces tokens, which built-in policies choose.

    Args:
        made: the corruption.
        vocabulary: the vocabulary of the rows.
        rows: rows with different example ids and the layers of the corruption, by name.
        moves_text: whether tokens that were not chosen may change places.

    Raises:
        PlugInError: the corruption breaks a rule.
    """
    who = f"corruption {made}"
    every = list(rows.values())
    check_alone(_masker(vocabulary, "token", made, ratio=1.0), rows, who)
    if not made.shows_mask:
        _check_without_mask(who, made, every, vocabulary)
    words = ("whole-word", "span") if "word_ids" in every[0] else ()
    with told(who):
        for chosen_by in ("token", *words):
            for ratio in (0.0, 0.3, 1.0):
                masker = _masker(vocabulary, chosen_by, made, ratio=ratio, seed=5)
                shown = check_masks(masker, rows, who)
                check_shown(shown, every, masker, who, moves_text=moves_text)
                check_packing(masker, every, who)


def _masker(
    vocabulary: Vocabulary, chosen: Policy | str, shown_as: Corruption | str, **settings: Any
) -> Masker:
    """Make a masker without the settings that have no effect with this policy."""
    used = Masking.used({"policy": chosen, "corruption": shown_as, **settings})
    return _checking(Masker(vocabulary, **used))


def _checking(masker: Masker) -> Masker:
    """Let a masker neither check what is being checked, nor warn of settings nobody has chosen."""
    masker.is_checked = masker.warned_of_weights = True
    return masker


def named_rows(rows: Sequence[UserRow]) -> dict[str, dict[str, Any]]:
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


@contextmanager
def told(who: str, where: str = "rows of the checks") -> Iterator[None]:
    """Turn any error into one line that names the policy or corruption."""
    try:
        with naming(who):
            yield
    except MaskwiseError:
        raise
    except Exception as error:
        raise PlugInError(
            f"{who} fails on {where}", got=f"{type(error).__name__}: {first_line(error)}"
        ) from error


def require(holds: bool, what: str, **details: Any) -> None:
    if not holds:
        raise PlugInError(what, **details)


def cut(made: Policy, line: Line, *, ratio: float, total_steps: int | None = 1000) -> Units:
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
    units = cut(made, line, ratio=0.3)
    require_units(units, line, who)
    require(
        same_units(units, cut(made, line, ratio=0.3)),
        f"{who} cuts or weighs the same rows differently in a second call",
        do=DRAWS,
    )
    for number, row in enumerate(rows):
        alone = gather([row], vocabulary)
        require(
            _of_piece(units, number) == _of_piece(cut(made, alone, ratio=0.3), 0),
            f"{who} cuts or weighs a document differently beside other documents",
            do=PIECES,
        )
    if not made.needs_ratio:
        require(
            same_units(units, cut(made, line, ratio=0.6)),
            f"{who}: units or weights change with the ratio, but needs_ratio is False",
            do="add the class attribute needs_ratio = True",
        )
    if not made.needs_total:
        require(
            same_units(units, cut(made, line, ratio=0.3, total_steps=None)),
            f"{who}: units or weights change with the number of steps, but needs_total is False",
            do="add the class attribute needs_total = True",
        )
    if not made.reads_text:
        other = replace(line, input_ids=_other_text(line, vocabulary))
        require(
            same_units(units, cut(made, other, ratio=0.3)),
            f"{who}: units or weights change with the text, but reads_text is False",
            do="remove reads_text = False",
        )
    if not made.has_zero_weights:
        chosen = []
        for fill in ("none", "random"):
            masking = Masking(made, uniform(0.2, 1), corruption=corruption("replace"), fill=fill)
            masker = _checking(Masker.of(vocabulary, masking))
            chosen.append(masker.corrupted(line, When(5, 1000, 0))[1].tokens)
        require(
            np.array_equal(chosen[0], chosen[1]),
            f"{who}: units of weight 0 fill up the budget, but has_zero_weights is False",
            do="remove has_zero_weights = False, or give all units a weight above 0",
        )
    draws = Draws(line.example_id, seed=5, epoch=0)
    require_shares(made, made.ratios(np.full(line.pieces, 0.3), draws, When()), line.pieces)


def same_units(one: Units, other: Units) -> bool:
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
        _masker(maskless, "token", made, ratio=1.0)(rows, epoch=0)
    except Exception as error:
        raise PlugInError(
            f"{who} needs a mask token, but shows_mask is False",
            got=first_line(error),
            do="remove shows_mask = False",
        ) from error


def check_alone(masker: Masker, rows: Mapping[str, UserRow], who: str) -> None:
    """Check that each row can be masked alone, and name the row if it cannot."""
    mask = _at(masker, epoch=2)
    for name, row in rows.items():
        with told(who, f"a row ({name})"):
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
    require(not changed, f"{who} changed the user's rows", got=", ".join(changed))
    _check_chosen(out, columns, who)
    again = per_row(mask(columns), len(every))
    whole = per_row(out, len(every))
    require(
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
                require(
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
        raise PlugInError(
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
            require(
                np.count_nonzero(text == token) == np.count_nonzero(real == token),
                f"{who}: special or unknown tokens were added, lost or drawn",
                got=f"id {token} {np.count_nonzero(text == token)} times",
                allowed=f"{np.count_nonzero(real == token)} times",
                do="draw from the tokens where line.eligible is True, or from vocabulary.ordinary",
            )
        if not chosen.any():
            require(
                text.tolist() == real.tolist(),
                f"{who} changes a document without chosen tokens",
                got=text.tolist(),
                allowed=real.tolist(),
            )
            quiet = (labels[number] == IGNORE) | (made.detects & (labels[number] == 0))
            require(
                bool(quiet.all()),
                f"{who} has targets in a document without chosen tokens",
                got=labels[number].tolist(),
            )
            continue
        require(
            moves_text or _is_within(real[~chosen].tolist(), text.tolist()),
            f"{who}: tokens that were not chosen were changed, lost or moved",
            got=text.tolist(),
            allowed=f"{real[~chosen].tolist()}, in this order",
        )
    require(
        vocabulary.pad in frame or vocabulary.pad not in shown[left],
        f"{who} writes padding into the text",
        got=f"id {vocabulary.pad}",
    )
    require(
        (out.piece_BL is None) == made.keeps_length,
        f"{who}: keeps_length is {made.keeps_length}, but lengths "
        f"{'are given' if made.keeps_length else 'are not given'}",
        do="extend Moving if the number of tokens changes, and return Masked with lengths",
    )
    if not made.keeps_length:
        require(
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
    require(
        np.array_equal(shown[~selected], ids[~selected]),
        f"{who}: tokens that were not chosen were changed",
    )
    changed = shown[shown != ids]
    allowed = vocabulary.eligible[changed]
    for special in (vocabulary.mask, *vocabulary.sentinels):
        if special is not None:
            allowed |= changed == special
    require(
        bool(allowed.all()),
        f"{who}: a replacement is no ordinary token",
        got=f"id {changed[~allowed][:1]}",
        do="draw from vocabulary.ordinary, or write vocabulary.mask",
    )
    if masker.corruption.target in (None, "spans"):
        require(
            np.array_equal(labels != IGNORE, selected),
            f"{who}: labels are not at the chosen tokens",
            do="return labels_in_place(choice, 'spans'), or set target",
        )
        require(
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
        require(
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
        require(same, found, do=PIECES)


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
            require(shown == inputs, found, got=shown, allowed=inputs, do=PIECES)
            written += labels
        labels = together.labels[b][together.labels[b] != IGNORE].tolist()
        require(labels == written, found, got=labels, allowed=written, do=PIECES)


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
    several = len({tuple(each.tolist()) for each in first.selected})
    require(several >= least, f"{who} masks all examples of a text alike", do=DRAWS)
    for what, other in (
        ("in every epoch", masks(epoch=1)),
        ("in every step, without an epoch", masks(step=7)),
    ):
        require(
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
    require(bool(((taken == 0) | (taken == units.length)).all()), f"{who}: half a unit was chosen")
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
        require(bool(near_P.all()), f"{who}: the budget is not ratio × tokens")
        if masker.masking.budget == "exact":
            require(bool((count_P <= budget_P).all()), f"{who}: more is chosen than the budget")
        else:
            over_P = (count_P - longest_P >= budget_P) & (count_P > 0)
            require(not over_P.any(), f"{who}: more than one unit is chosen over the budget")
            possible_P = np.minimum(budget_P, usable_P)
            under_P = (count_P + longest_P <= possible_P) & (count_P > 0)
            require(not under_P.any(), f"{who}: less is chosen than the budget")
    if not choice.ratio_P.any():
        require(not count_P.any(), f"{who}: tokens are chosen at a ratio of 0")
    if (choice.ratio_P == 1).all() and (units.weight is None or budget_P is not None):
        require(np.array_equal(count_P, usable_P), f"{who}: not all is chosen at a ratio of 1")


def padded(
    rows: Sequence[UserRow], pad: int, *, width: int | None = None, left: bool = False
) -> Columns:
    """Return rows as (B, L) columns with an attention mask, padded right or left."""
    if width is None:
        width = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), width)
    columns = {"example_id": np.array([row["example_id"] for row in rows], np.int64)}
    for name in _columns(rows[0]):
        filled = [_filled(row[name], width, _fill(name, pad), left) for row in rows]
        columns[name] = np.array(filled).reshape(shape)
    columns["input_ids"] = columns["input_ids"].astype(np.int64)
    present = [_filled([1] * len(row["input_ids"]), width, 0, left) for row in rows]
    columns["attention_mask"] = np.array(present, np.int64).reshape(shape)
    return columns


def packed(rows: Sequence[UserRow], pad: int, *, width: int) -> Columns:
    """Return rows one behind the other in blocks of ``width`` tokens; no row is cut."""
    names = ["example_id", *_columns(rows[0])]
    blocks: list[dict[str, list[Any]]] = []
    for row in rows:
        tokens = len(row["input_ids"])
        if not blocks or len(blocks[-1]["input_ids"]) + tokens > width:
            blocks.append({name: [] for name in names})
        for name in names:
            values = [row[name]] * tokens if name == "example_id" else row[name]
            blocks[-1][name] += values
    columns = {}
    for name in names:
        fill = 0 if name == "example_id" else _fill(name, pad)
        columns[name] = np.array([_filled(block[name], width, fill) for block in blocks])
    present = [_filled([1] * len(block["input_ids"]), width, 0) for block in blocks]
    columns["attention_mask"] = np.array(present, np.int64)
    return columns


def _columns(row: UserRow) -> list[str]:
    """Return the columns with a value for each token, but for the attention mask."""
    return [name for name in row if name not in ("example_id", "attention_mask")]


def _fill(name: str, pad: int) -> int:
    return {"input_ids": pad, "token_type_ids": 0, "position_ids": 0}.get(name, -1)


def _filled(values: Sequence[Any], width: int, fill: int, left: bool = False) -> list[Any]:
    missing = [fill] * (width - len(values))
    return [*missing, *values] if left else [*values, *missing]


def per_row(batch: MaskedBatch, rows: int) -> list[tuple[list[int], list[int]]]:
    """Return the inputs and the labels of each row of a masked batch, without padding."""
    inputs = batch.input_ids.tolist()
    labels = batch.labels.tolist()
    if batch.attention_mask is not None:
        present = batch.attention_mask.tolist()
        inputs = [
            [token for token, here in zip(*columns) if here] for columns in zip(inputs, present)
        ]
    asked = [[label for label in row if label != IGNORE] for row in labels]
    return list(zip(inputs, asked))[:rows]
