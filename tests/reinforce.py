"""REINFORCE: the unbiased estimate of the meta-gradient, against which tests hold the relaxation."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwise.learning.relaxation import Choice


def log_probability(choice: Choice, logit_U: Tensor) -> Tensor:
    """(P,) the log-probability of the order in which the units of each piece were tried, with its
    gradient.

    Units that were skipped because they did not fit were tried too. Tries after the last unit that
    was chosen change nothing and do not count: any order of theirs gives the same choice.
    """
    order = choice.order_A
    logit_A, piece_A = logit_U[order], choice.piece_U[order]
    pieces = len(choice.budget_P)
    place_A = torch.arange(len(order), device=order.device)
    last_P = place_A.new_full((pieces,), -1).scatter_reduce(
        0, piece_A, torch.where(choice.chosen_U[order], place_A, -1), "amax"
    )
    # The race is run backwards, so that the sums of what remained are logcumsumexp; a piece at a
    # time is a row.
    first_P = place_A.new_full((pieces,), len(order)).scatter_reduce(0, piece_A, place_A, "amin")
    column_A = place_A - first_P[piece_A]
    width = int(column_A.max()) + 1 if len(order) else 0
    table = logit_A.new_full((pieces, width), -torch.inf)
    table = table.index_put((piece_A, column_A), logit_A)
    remaining = table.flip(1).clamp(min=-1e30).logcumsumexp(1).flip(1)[piece_A, column_A]
    tried_A = place_A <= last_P[piece_A]
    return logit_A.new_zeros(pieces).index_add(
        0, piece_A, torch.where(tried_A, logit_A - remaining, 0.0)
    )


def score_function(log_probability_D: Tensor, outer_D: Tensor) -> Tensor:
    """A scalar whose gradient is the score-function (REINFORCE) estimate of the gradient of the
    expected outer loss.

    The loss of each draw is compared with the mean of the *other* draws, which leaves the estimate
    unbiased and takes most of its variance away.

    Args:
        log_probability_D: (D,) of the choice that was drawn, with a graph (``log_probability``).
        outer_D: (D,) the outer loss after that choice; D ≥ 2.

    >>> logit = torch.zeros(2, requires_grad=True)
    >>> log_p = logit.log_softmax(0)[torch.tensor([0, 1])]  # one draw of either unit; the second loss is lower
    >>> torch.autograd.grad(score_function(log_p, torch.tensor([1.0, 0.0])), logit)[0].tolist()
    [0.5, -0.5]
    """
    draws = len(outer_D)
    advantage_D = (outer_D - outer_D.mean()) * (draws / (draws - 1))
    return (advantage_D.detach() * log_probability_D).mean()
