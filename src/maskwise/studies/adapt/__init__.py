"""Test whether further pre-training of an encoder on the user's text helps.

The study reports by how much further training helps, and what it costs. By default it trains one
arm (one way of training), ``words-30``, and compares this arm with the unchanged model. The models
are fine-tuned and evaluated on the user's tasks. Without tasks, they are evaluated by how well they
find the text that belongs to a title. If the model has no head that fills masks, a head is trained
first on the frozen encoder, once for all runs.

    the unchanged model     the model without further training
    words-30                mask 30 % of the tokens in whole words
    token-15, -30, -40      mask 15 % (the usual ratio), 30 or 40 % of the tokens
    tsdae                   train a decoder to restore the text from a sentence vector
    learned                 mask by a learned policy, whose folder the user gives
    words-30-new-words      the same as words-30, with words of the text as new tokens
    student                 some layers of the model, trained to do what the whole model does
    words-30-other-text     the same as words-30, on another text (a control)
    words-30-replay         the same as words-30, with a share of general text in training

Read in this order: ``request`` (what is asked), ``draft`` (its recipe), ``adaptation`` (plan and
run), ``answer`` and ``forgotten`` (what was found),
``saved`` and ``student`` (the models).
"""

from maskwise.studies.adapt.adaptation import Adaptation
from maskwise.studies.adapt.answer import NextStep, answers
from maskwise.studies.adapt.request import Request, refuse_both
from maskwise.studies.adapt.saved import ADAPTED, saved_folders

__all__ = [
    "ADAPTED",
    "Adaptation",
    "NextStep",
    "Request",
    "answers",
    "refuse_both",
    "saved_folders",
]
