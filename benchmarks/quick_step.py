"""The time of a step of the quick start, compared with an earlier commit or with ``Trainer``.

    python benchmarks/quick_step.py COMMIT [--rounds N] [--kinds "tiny fp32,bart bf16"]
    OMP_NUM_THREADS=1 python benchmarks/quick_step.py --trainer --rounds 3

The first command times pre-training (12 × 64 tokens) and fine-tuning with the current source and
with the source of a commit, in which the names that ``CHILD`` imports must exist. Other kinds are
``tiny``, ``mini``, ``small`` (the models and batches of train.py, rows of joined text) and ``bart``
(the model of seq2seq.py, packed), each in ``fp32`` or ``bf16``. Each source runs
in a process with one thread. The two processes train a few steps in turn, and each begins every
other round. Other processes and the clock rate therefore affect both equally. The figure of a turn
is the processor time of its fastest step, which a busy machine affects least. The ratio is the
median over the turns. The losses after the same steps show whether both train equally well.

With ``--trainer``, maskwise and transformers' ``Trainer`` fine-tune the same weights in turn, in
one process and in single precision, on the rows of a classification task. Rates are tokens of text,
without padding, per second of wall time and per second of processor time. Other processes affect
the processor time less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import typer
from command import run
from figures import Figures, spread, surroundings
from timing import Clock, in_rounds, relative, time_trainer
from transformers import (
    BertConfig,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from maskwise.base.devices import cpu_name
from maskwise.base.errors import MaskwiseError
from maskwise.tasks import FinetuneSettings, load_task
from maskwise.tasks.finetuning import load_network
from maskwise.tasks.tensors import TaskSource, task_tensors
from maskwise.text import train_tokenizer
from maskwise.training import train

ROOT = Path(__file__).resolve().parent.parent

CHILD = """
import json, sys, time, torch
torch.set_num_threads(1)
from maskwise.masking import Masker
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.recipe import read_recipe
from maskwise.tasks import load_task
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource
from maskwise.training.data import look_ahead
from maskwise.training.engine import Engine

recipe = read_recipe("decay")
documents = list(read_documents(recipe.corpus.source, limit=1500))
tokenizer = train_tokenizer((d.text for d in documents), vocab_size=recipe.tokenizer.vocab_size)
pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer,
                     length=recipe.corpus.length)
config = new_config(recipe.model.architecture, tokenizer, recipe.corpus.length,
                    **recipe.model.settings)

def pretraining():
    masker = Masker(tokenizer, ratio=0.15, corruption="mask-only")
    source = MaskedSource(Rows.of(pieces, "packed"), masker, recipe.training)
    return MaskedLanguageModelling(new_model(config, seed=0)), source, recipe.training

def finetuning():
    from maskwise.models.loading import load_task_model
    from maskwise.tasks import finetuning
    from maskwise.tasks.tensors import encode
    task = load_task(recipe.tasks[0])
    network = finetuning.load_network(None, task, tokenizer, config=config,
                                 max_length=recipe.finetune.max_length, seed=0)
    settings = recipe.finetune.training(task, seed=0)
    data = encode(task, tokenizer, max_length=recipe.finetune.max_length)
    source = finetuning.TaskSource(data["train"], settings)
    return task.kind.objective(network), source, settings

def sized(name, precision):
    from maskwise.objectives import Denoising
    from maskwise.training import TrainingSettings
    settings = TrainingSettings(steps=1000, batch_size=32, log_every=1000, learning_rate=5e-5,
                                precision={"fp32": "no"}.get(precision, precision))
    vocabulary, masking, layout, how = 8192, {"ratio": 0.15}, "joined", {}
    if name == "bart":
        kind, how, make = "bart", {"kind": "encoder-decoder"}, Denoising
        fields = {"d_model": 128}
        for part in ("encoder", "decoder"):
            fields |= {f"{part}_layers": 2, f"{part}_attention_heads": 4, f"{part}_ffn_dim": 512}
        masking = {"policy": "span", "ratio": 0.3, "corruption": "infill"}
        vocabulary, layout = 2048, "packed"
    else:
        kind, make = "bert", MaskedLanguageModelling
        layers, width = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512)}[name]
        fields = {"num_hidden_layers": layers, "hidden_size": width,
                  "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    words = train_tokenizer((d.text for d in documents), vocab_size=vocabulary)
    cut = read_pieces(tokenise(documents, words), tokenizer=words, length=128)
    source = MaskedSource(Rows.of(cut, layout), Masker(words, **masking), settings)
    return make(new_model(new_config(kind, words, 128, **how, **fields), seed=0)), source, settings

def run(make):
    objective, source, settings = make()
    engine, losses = Engine(objective, settings), []
    steps = iter(look_ahead(source, range(settings.steps)))
    while True:
        spent = []
        for _ in range(STEPS):
            step = next(steps)
            began = time.process_time()
            update = engine.update(step, lambda *_: None)
            spent.append(time.process_time() - began)
            losses.append(float(update.losses[0]) / max(1, update.targets))
        yield min(spent), sum(losses[-STEPS:]) / STEPS

STEPS = int(sys.argv[1])
runs = {"pretraining": run(pretraining), "finetuning": run(finetuning)}
for line in sys.stdin:
    kind = line.strip()
    if kind not in runs:
        runs[kind] = run(lambda: sized(*kind.split()))
    print(json.dumps(next(runs[kind])), flush=True)
"""


QUICK_START = "pretraining,finetuning"


def beside_commit(commit: str, *, rounds: int, steps: int, kinds: str = QUICK_START) -> Figures:
    """Time steps of both source trees in turn, and compare the times."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit, "src"], capture_output=True)
        if archive.returncode:
            raise MaskwiseError("there is no such commit with a folder src", got=commit)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        sides = {
            "before": _start(Path(folder) / "src", steps),
            "now": _start(ROOT / "src", steps),
        }
        try:
            results = {kind: _contest(sides, kind, rounds) for kind in kinds.split(",")}
        finally:
            for side in sides.values():
                side.kill()
                side.communicate()
    amx = torch.cpu._is_amx_tile_supported()
    about = {"commit": commit, "threads": 1, "processor": cpu_name(), "amx": amx}
    return {**about, **results, "hardware": surroundings()}


def _start(source: Path, steps: int) -> subprocess.Popen[str]:
    own = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(steps)],
        env=os.environ | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _contest(sides: dict[str, subprocess.Popen[str]], kind: str, rounds: int) -> Figures:
    turns = {name: [] for name in sides}
    losses = {name: [] for name in sides}
    for side in sides:
        # In the first steps, torch chooses kernels and allocates memory.
        _turn(sides[side], kind, side)
    for number in range(rounds):
        for name in [*sides][:: -1 if number % 2 else 1]:
            seconds, loss = _turn(sides[name], kind, name)
            turns[name].append(seconds)
            losses[name].append(round(loss, 3))
    ratio, ends = relative(turns["now"], turns["before"])
    spent = {f"ms_{name}": round(1000 * median(seconds), 1) for name, seconds in turns.items()}
    return {**spent, "now_over_before": ratio, "range": ends, "losses": losses}


def _turn(side: subprocess.Popen[str], kind: str, name: str) -> tuple[float, float]:
    """Let one side train a few steps; return the seconds of the fastest, and the loss."""
    assert side.stdin and side.stdout
    with suppress(BrokenPipeError):
        side.stdin.write(f"{kind}\n")
        side.stdin.flush()
    line = side.stdout.readline()
    if not line:
        raise MaskwiseError(
            "the source of one side cannot train; its error is printed above",
            got=name,
            do="name a commit that has what quick_step.py imports, and fewer rounds or steps",
        )
    seconds, loss = json.loads(line)
    return seconds, loss


# Fine-tuning compared with Trainer

OURS = "maskwise"
PEERS = {"Trainer": "random", "Trainer, grouped by length": "group_by_length"}
"""The contestants that use ``Trainer`` → ``train_sampling_strategy``, the order of the rows."""
SIZES = {"tiny (2 × 128)": (2, 128), "mini (4 × 256)": (4, 256)}
WARM, TIMED = 16, 64
"""Numbers of untimed and timed steps. Both are multiples of the number of steps whose rows are
sorted by length together."""
MAX_LENGTH = 64


class CountingCollator(DataCollatorWithPadding):
    """A collator that records the numbers of tokens and positions of each batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        self.counts = []

    def __call__(self, features: list[Any]) -> Any:
        batch = super().__call__(features)
        mask = batch["attention_mask"]
        self.counts.append((int(mask.sum()), mask.numel()))
        return batch


class Took(NamedTuple):
    """The figures of a contestant in a round: wall and processor seconds, tokens, positions
    (including padding), and loss.
    """

    wall: float
    processor: float
    tokens: int
    positions: int
    loss: float


class Finetuning:
    """A contest on one model and task, in which all contestants fine-tune the same weights.

    Args:
        layers, width: the size of a BERT model.
        warm, timed: the numbers of untimed and timed steps.
        task: the name of a classification task.
    """

    def __init__(self, layers: int, width: int, *, warm: int, timed: int, task: str):
        self.warm = warm
        self.last = warm + timed
        self.task = load_task(task)
        texts = [row.text for row in self.task.splits["train"]]
        self.tokenizer = train_tokenizer(texts, vocab_size=1024)
        self.config = BertConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
        )
        settings = FinetuneSettings(precision="no", max_length=MAX_LENGTH)
        usual = settings.training(self.task, seed=0)
        self.settings = usual.model_copy(update={"steps": self.last, "log_every": self.last})
        self.data = task_tensors(self.task, self.tokenizer, max_length=MAX_LENGTH)["train"]
        self.rounds = {name: [] for name in (OURS, *PEERS)}

    def network(self) -> PreTrainedModel:
        """Return the untrained model, the same for all contestants."""
        return load_network(
            None, self.task, self.tokenizer, config=self.config, max_length=MAX_LENGTH, seed=0
        )

    def time(self, name: str) -> None:
        """Train a contestant once, and store its figures."""
        clock = Clock(self.warm, self.last)
        counts, loss = self._ours(clock) if name == OURS else self._theirs(clock, PEERS[name])
        tokens, positions = map(sum, zip(*counts[self.warm : self.last], strict=True))
        took = Took(clock.wall, clock.processor, tokens, positions, loss)
        self.rounds[name].append(took)

    def _ours(self, clock: Clock) -> tuple[list[tuple[int, int]], float]:
        source = TaskSource(self.data, self.settings)
        objective = self.task.kind.objective(self.network())
        done = train(objective, source, self.settings, learners={"clock": clock})
        lengths = [self.data.lengths[source.planned(step)[:, 0]] for step in range(self.last)]
        counts = [(int(each.sum()), len(each) * int(each.max())) for each in lengths]
        return counts, done["loss"] or 0.0

    def _theirs(self, clock: Clock, order: str) -> tuple[list[tuple[int, int]], float]:
        ids = self.data.flat.ids.split(self.data.lengths.tolist())
        rows = [
            {"input_ids": each.tolist(), "labels": int(label)}
            for each, label in zip(ids, self.data.targets, strict=True)
        ]
        collator = CountingCollator(self.tokenizer)
        loss = time_trainer(
            clock,
            self.network(),
            rows,
            collator,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            max_grad_norm=self.settings.clip,
            train_sampling_strategy=order,
            use_cpu=True,
            # The rows are already in memory. Worker processes would only compete for the core.
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
        )
        return collator.counts, loss

    def line(self, name: str) -> Figures:
        """Return the figures of a contestant over all rounds; rates are tokens per second."""
        rounds = self.rounds[name]
        tokens = sum(took.tokens for took in rounds)
        padding = 1 - tokens / sum(took.positions for took in rounds)
        line = {"name": name, "loss": round(rounds[-1].loss, 3), "padding": round(padding, 3)}
        for clock in ("wall", "processor"):
            rates = [took.tokens / getattr(took, clock) for took in rounds]
            ours = [took.tokens / getattr(took, clock) for took in self.rounds[OURS]]
            ratio, ends = relative(ours, rates)
            line[clock] = {
                "median": round(median(rates)),
                "best": round(max(rates)),
                "spread": spread(rates),
                "ours_over_it": ratio,
                "ours_over_it_range": ends,
                "best_over_best": round(max(ours) / max(rates), 2),
            }
        return line


def beside_trainer(
    *, rounds: int = 3, warm: int = WARM, timed: int = TIMED, task: str = "banking77"
) -> Figures:
    """Fine-tune models of all ``SIZES`` in turn, and compare tokens of text per second.

    Args:
        rounds: the number of times that each contestant is timed.
        warm, timed: the numbers of untimed and timed steps.
        task: the name of a classification task.

    Returns:
        A dict with "sizes" and "noise" (``figures.noise_of``). "sizes" has the figures of
        each contestant, keyed by model size: rates for wall and processor time (``median``,
        ``best`` and ``spread`` over rounds), and maskwise's rate relative to the contestant's rate.
    """
    contests = {}
    turns = []
    for size, shape in SIZES.items():
        contests[size] = Finetuning(*shape, warm=warm, timed=timed, task=task)
        turns += [partial(contests[size].time, name) for name in (OURS, *PEERS)]
    noise = in_rounds(turns, rounds)
    found = {}
    for size, contest in contests.items():
        found[size] = [contest.line(name) for name in contest.rounds]
    return {
        "task": task,
        "rounds": rounds,
        "sizes": found,
        "noise": noise,
        "hardware": surroundings(),
    }


def main(
    commit: Annotated[str | None, typer.Argument()] = None,
    rounds: int = 8,
    steps: int = 5,
    trainer: bool = False,
    kinds: str = QUICK_START,
) -> Figures:
    """Run one of the two comparisons.

    Args:
        commit: the commit to compare with.
        rounds: the number of turns.
        steps: the number of steps in a turn.
        kinds: what is trained beside the commit.
        trainer: whether to compare fine-tuning with ``Trainer`` instead of a commit.
    """
    if trainer:
        return beside_trainer(rounds=rounds)
    if commit is None:
        raise MaskwiseError("nothing to compare with", do="name a commit, or add --trainer")
    return beside_commit(commit, rounds=rounds, steps=steps, kinds=kinds)


if __name__ == "__main__":
    run(main, __doc__)
