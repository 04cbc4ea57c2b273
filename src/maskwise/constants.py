"""Constants that several rooms must agree on, below all of them; the report, which reads files only, may import it."""

REFERENCE = "no-pretraining"
"""The arm of checkpoints that were never trained, or not further. No other arm may have this name."""

MOST_PRIMARY = 6
"""Primary contrasts of a study. With more, Holm's correction leaves nothing that ten runs could decide."""

PLATEAU_NATS = 0.3
"""A mean held-out loss less than this below the unigram loss: the model has learnt word frequencies and little else."""
