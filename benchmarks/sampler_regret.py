"""Regret of samplers in a simulation with realistic noise of the rewards.

    python benchmarks/sampler_regret.py [--games 100] > regret.json

A sampler draws one of five objectives (arms) for each training step, and observes a reward after
each rollout of some steps. In the simulation, the worth of each arm is known. The reward is the
mean worth of the drawn arms, plus normal noise. The measured standard deviation of this noise was
.3 to .5 with probes (held-out rows) of 6 rows, and less with probes of 64 rows: see
probe_reliability.py. The regret of a rollout is the worth of the best arm minus the mean worth of
the drawn arms. ``largest`` is the mean of the sampler's largest probability, which should stay near
.2 if all arms are equal. The player ``exp-weights`` is EXP3, a bandit with exponential weights,
which observes the reward of each rollout and has the learning rate of the theory. The player
``loss-proportional`` observes losses that are proportional to 1 − worth.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from command import run
from figures import Figures, surroundings

from maskwise.samplers import sampler

ARMS = ("a", "b", "c", "d", "e")
EVERY = 10
WORLDS = {
    "no effect": lambda t: [0.1] * 5,
    "one arm is best": lambda t: [0.3, 0.05, 0.05, 0.05, 0.05],
    "the best arm changes": lambda t: (
        [0.3, 0.05, 0.05, 0.05, 0.05] if t < 0.5 else [0.05, 0.05, 0.3, 0.05, 0.05]
    ),
    "one arm harms": lambda t: [0.05, 0.05, 0.05, 0.05, -0.4],
}
"""Worth of the five arms, as a function of the share of the run that is done."""
NOISES, LENGTHS = (0.1, 0.4, 0.8), (12, 60, 240)
PLAYERS = ("uniform", "loss-proportional", "exp-weights", "mometas", "mometas-plus")


class ExpWeights:
    """EXP3, a bandit with exponential weights. The learning rate depends on the rollouts in all."""

    def __init__(self, rollouts: int):
        self.rate = math.sqrt(2 * math.log(len(ARMS)) / (rollouts * len(ARMS)))
        self.weights = np.zeros(len(ARMS))

    def probabilities(self) -> np.ndarray:
        shares = np.exp(self.weights - np.logaddexp.reduce(self.weights))
        return 0.9 * shares + 0.1 / len(ARMS)


def play(name: str, world: str, *, noise: float, rollouts: int, seed: int) -> tuple[float, float]:
    """Play one game; return the mean regret per rollout, and the mean of the largest probability
    after each update.
    """
    draws = np.random.default_rng(seed)
    regret = largest = 0.0
    if name == "exp-weights":
        player = ExpWeights(rollouts)
    else:
        spec = name if name == "uniform" else f"{name}(every={EVERY})"
        player = sampler(spec, ARMS, seed=seed, steps=rollouts * EVERY)
    for turn in range(rollouts):
        worth = np.array(WORLDS[world](turn / rollouts))
        p = np.asarray(player.probabilities())
        if name == "mometas-plus":  # This sampler draws the arms itself.
            names = [player.draw(turn * EVERY + step) for step in range(EVERY)]
            counts = np.array([names.count(arm) for arm in ARMS])
        else:
            counts = draws.multinomial(EVERY, p)
        if name == "mometas":
            player.rollout = dict(enumerate(np.repeat(ARMS, counts).tolist()))
        share = counts / EVERY
        regret += float(worth.max() - share @ worth)
        reward = float(share @ worth) + noise * draws.standard_normal()
        if name == "exp-weights":
            player.weights += player.rate * reward * share / p
        elif name == "loss-proportional":
            player.update([1.0] * 5, (1 - worth).tolist())
        else:  # The sampler gets five gains, whose sum is the reward.
            player.update([1.0] * 5, [1.0 - reward / 5] * 5)
        largest += float(max(player.probabilities()))
    return regret / rollouts, largest / rollouts


def main(games: int = 100) -> Figures:
    """Play all games.

    Args:
        games: the number of games of each player in each world.
    """
    rows = []
    for world, rollouts, noise in product(WORLDS, LENGTHS, NOISES):
        row = {"world": world, "rollouts": rollouts, "noise": noise}
        row |= {"regret": {}, "error": {}, "largest": {}}
        for name in PLAYERS:
            found = [
                play(name, world, noise=noise, rollouts=rollouts, seed=seed)
                for seed in range(games)
            ]
            regret, largest = np.mean(found, axis=0)
            # Standard error of the mean regret.
            error = np.std(found, axis=0, ddof=1)[0] / math.sqrt(games)
            row["regret"][name] = round(float(regret), 4)
            row["error"][name] = round(float(error), 4)
            row["largest"][name] = round(float(largest), 3)
        rows.append(row)
    return {
        "bench": "sampler_regret",
        "games": games,
        "every": EVERY,
        "rows": rows,
        "hardware": surroundings(),
    }


if __name__ == "__main__":
    run(main, __doc__)
