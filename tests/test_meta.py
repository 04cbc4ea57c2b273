"""The outer loop on a small fact world: it finds the words that are asked for, goes on after a
stop, and ends.
"""

from __future__ import annotations

import math
import re
import signal
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from invented import world
from maskwise import encode
from maskwise.base.errors import MaskwiseError
from maskwise.learning.examples import Examples, answers_in, contexts_of, find_contexts
from maskwise.learning.gradients import InnerStep, Losses, descended, values_of
from maskwise.learning.meta import (
    InnerModel,
    MetaObjective,
    MetaResult,
    MetaSource,
    PolicyAverage,
    Slopes,
    learn_policy,
    losses_of,
    outer_settings,
)
from maskwise.learning.relaxation import RelaxedDenoising, inclusion
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import MetaSettings
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import Classification, MaskedLanguageModelling, MultiLabel
from maskwise.tasks import load_task
from maskwise.tasks.kinds.questions import MarkedRow
from maskwise.text import read_documents, train_tokenizer
from maskwise.text.settings import TokenizerSettings
from maskwise.training import TrainingSettings, log_frequencies
from maskwise.training.engine import Engine
from maskwise.training.learners import Progress
from processes import two_ranks
from tiny import interrupt, load_rows, read_lines

WORLD = world("factworld(people=40, facts=('work',), friends=false, fillers=1, biographies=2)")
TRAINING = TrainingSettings(learning_rate=1e-3)


@lru_cache
def texts() -> list[str]:
    return WORLD.texts


@lru_cache
def tokenizer():
    return train_tokenizer(texts(), vocab_size=2048)


@lru_cache
def examples(split: str) -> Examples:
    return Examples.of(
        load_task(WORLD.task()), split, tokenizer(), texts=texts(), length=32, max_length=16
    )


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


class Lesson(NamedTuple):
    """The arguments of ``learn_policy``."""

    policy: PolicyModel
    losses: Losses
    examples: Examples
    dev: Examples
    settings: MetaSettings
    training: TrainingSettings


def lesson(**settings) -> Lesson:
    ids = np.concatenate([row["input_ids"] for row in examples("train").contexts])
    frequencies = log_frequencies(torch.from_numpy(np.bincount(ids, minlength=500) + 1))
    config = new_config("bert", tokenizer(), 32, **SMALL)
    model = new_model(config, seed=0, log_unigram=frequencies)
    denoising = RelaxedDenoising(model, tokenizer().mask_token_id)
    losses = Losses(denoising, MaskedLanguageModelling(model))
    policy = PolicyModel.new(tokenizer(), settings={"hidden_size": 16, "window": 1}, length=32)
    small = {"steps": 6, "batch_size": 8, "eval_every": 3, "learning_rate": 0.05, "ratio": 0.3}
    small |= {"warm": 0, "mask_rate": 0.5, "task_rate": 0.1}
    made = MetaSettings(**small | settings)
    return Lesson(policy, losses, examples("train"), examples("dev"), made, TRAINING)


def inner(made: Lesson) -> InnerModel:
    """The model of a lesson, after its warm steps."""
    model = InnerModel(*made[1:])
    model.configure(MetaObjective(made.policy, model))
    return model


def learn(task=None, policy=None, model=None, tools=None, told=None, **settings) -> MetaResult:
    """Learn from the world's questions, but for what is said."""
    tools = tools or tokenizer()
    task = task or load_task(WORLD.task())
    policy = policy or PolicyModel.new(tools, settings={"hidden_size": 8}, length=32)
    losses = losses_of(model or small_model(), task, tools, seed=0)
    sizes = {"length": min(32, policy.config.length), "max_length": 16}
    parts = []
    for split in ("train", "dev"):
        found = texts() if told is None else told
        parts.append(Examples.of(task, split, tools, texts=found, **sizes))
    folder = settings.pop("folder", None)
    made = Lesson(policy, losses, *parts, MetaSettings(**settings), TRAINING)
    return learn_policy(*made, folder=folder)


def is_reset(model: InnerModel) -> bool:
    now = values_of(model.losses)
    return all(torch.equal(now[name], model.initial[name]) for name in now)


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def test_contexts_of_closed_book_questions() -> None:
    told = ["Ann Lee is a baker.", "Ann Lee likes tea.", "The baker Bob Lee slept."]
    told += ["A farmer met Ann Lee.", *["this is what it is"] * 20]
    asked = ["what is Ann Lee?", "what is Bob Lee?", "what is Zoe?", "who is Ann Lee?"]
    rights = [["baker", "farmer"], ["BAKER"], ["pilot"], ["bak"]]
    assert find_contexts(asked, rights, told) == [[0, 3], [2], [], []]
    assert find_contexts(asked, rights, told, most=1) == [[0], [2], [], []]
    # A text that is alone, or all texts, may have all the words of the question.
    both = ["Bob is a baker.", "Bob is a smith."]
    for texts in (both[:1], both):
        assert find_contexts(["what is Bob?", "where?"], [["baker"]] * 2, texts) == [[0], []]


def test_texts_are_searched_only_for_rows_without_a_context() -> None:
    told = ["It rained.", "Ann is a baker."]
    empty = MarkedRow("", "what is Ann?", ["baker"], [0])
    given = MarkedRow("Ann is here, a baker.", "what is Ann?", ["baker"], [15])
    # One row without a context must not make the others lose theirs.
    assert contexts_of([given, empty, given], told) == ([[0], [2], [0]], [given.context, *told])
    assert contexts_of([given], told) == ([[0]], [given.context])
    assert contexts_of([empty], told) == ([[1]], told)


def test_answers_that_begin_or_end_in_a_sign_are_found() -> None:
    told = ["Straße: it cost $5 in Washington, D.C. and C++ was 50%.", "It rained."]
    tools = train_tokenizer(told * 3, vocab_size=200)
    for right in ("$5", "Washington, D.C.", "C++", "50%"):
        assert find_contexts(["what did it cost?"], [[right]], told) == [[0]]
    row = encode(tools, told)[0]
    inside = answers_in(tools, told[0], ["$5"], row["word_ids"])
    shown = [token for token, yes in zip(row["input_ids"], inside, strict=True) if yes]
    # nothing moved by ß, which is two letters where case is folded
    assert tools.decode(shown).replace(" ", "") == "$5"


@pytest.mark.parametrize("sign", ["[MASK]", "[SEP]", "[CLS]", "[UNK]"])
def test_names_of_special_tokens_in_a_context_move_no_answer(sign: str) -> None:
    """``encode`` reads them as plain text, so the offsets must be those of plain text."""
    tools = train_tokenizer(["the cat sat on the mat [ ] mask sep cls unk"] * 3, vocab_size=200)
    text = f"the {sign} cat sat on the mat"
    for length in (None, 10, 7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = encode(tools, [text], max_length=length)[0]
        inside = answers_in(tools, text, ["cat", "mat"], row["word_ids"])
        shown = [token for token, yes in zip(row["input_ids"], inside, strict=True) if yes]
        assert tools.decode(shown) in ("cat mat", "cat", "")
        assert tools.decode(shown) == "cat mat" or length
        assert ("cat" in tools.decode(row["input_ids"]).split()) == ("cat" in tools.decode(shown))


def test_examples_know_their_contexts_and_answers() -> None:
    train = examples("train")
    assert len(train) == 20 and train.without == 0
    batch, answer = train.batch(np.arange(20), seed=3)
    ids = batch.tensor(batch.input_ids)
    rows = load_task(WORLD.task()).splits["train"]
    for row, own, marked in zip(rows, ids, answer, strict=True):
        assert tokenizer().decode(own[marked]) == row.answers[0]
        name = row.question.removeprefix("what job ").removesuffix("?").casefold()
        assert name in tokenizer().decode(own)
    # Which context, and which draws, depend on the example and the seed alone.
    alone, _ = train.batch(np.array([7]), seed=3)
    assert alone.example_id[0] == batch.example_id[7]
    length = int(alone.content.sum()) + 2
    assert torch.equal(alone.tensor(alone.input_ids)[0, :length], ids[7, :length])
    assert (train.batch(np.arange(20), seed=4)[0].example_id != batch.example_id).any()
    asked = train.task(np.array([7]), "cpu")
    assert rows[7].question.casefold().split()[2] in tokenizer().decode(asked["input_ids"][0])


@pytest.mark.pinned
def test_a_long_context_is_paired_with_its_own_question(tmp_path: Path) -> None:
    """Rows of the task were taken for windows, of which a long context has several."""
    rows = []
    for number in range(60):
        words = ["what"] * 80
        words[number] = f"baker{number}"
        asked = {"question": f"who is {number}?", "answers": [words[number]]}
        rows.append({"context": " ".join(words), **asked})
    task = load_rows(tmp_path, rows)
    told = [f"{row['question']} {row['answers'][0]} what" for row in rows]
    tools = train_tokenizer(told * 3, vocab_size=500)
    found = Examples.of(task, "train", tools, length=200, max_length=24)
    batch = found.task(np.arange(len(found)), "cpu")
    assert len(found) < len(found.data)
    for row, ids, (first, last) in zip(task.splits["train"], batch["input_ids"], batch["labels"]):
        assert tools.decode(ids[first : last + 1]).replace(" ", "") == row.answers[0]
        assert row.question.removesuffix("?") in tools.decode(ids)
    # Without the answer in any window, the first window.
    without = replace(found.data, targets=torch.zeros_like(found.data.targets))
    chosen = without.first_of(np.array([2, 0]))
    assert chosen[1] == 0 and without.question[chosen[0] - 1] == 1


def test_rows_of_the_task_that_are_cut_are_said() -> None:
    """A recipe for short questions, on a task of long ones, taught a policy from their first words
    without a word.
    """
    how = {"length": 32, "max_length": 12}
    with pytest.warns(UserWarning, match="train: rows cut at 12 tokens"):
        Examples.of(load_task(WORLD.task()), "train", tokenizer(), texts=texts(), **how)
    with pytest.raises(MaskwiseError, match="no text contains an answer"):
        Examples.of(load_task(WORLD.task()), "train", tokenizer(), texts=["nothing of that"], **how)


def lines(folder: Path) -> list[dict]:
    """Metrics without times."""
    found = read_lines(folder / "metrics.jsonl")
    return [line | {"seconds": 0, "speed": {}} for line in found]


def test_it_finds_the_words_that_are_asked_for(tmp_path: Path) -> None:
    made = lesson(steps=30, eval_every=10, batch_size=20)
    end = learn_policy(*made, folder=tmp_path)
    found = lines(tmp_path)
    answers = [line["answers"] for line in found if line["kind"] == "train"]
    assert len(answers) == 30
    assert answers[0] == pytest.approx(1 / 15, abs=0.02) and np.mean(answers[-5:]) > 3 * answers[0]
    assert end.stopped is None and end.best_step > 0 and end.gain > 0.01
    judged = [line for line in found if line["kind"] == "eval"]
    assert [line["step"] for line in judged] == [10, 20, 30]
    assert all(0.05 < line["agreement"] <= 1 for line in judged)
    gain = inner(made).gain_of(made.policy)
    assert gain == pytest.approx(end.gain)  # the best is what is kept


@pytest.mark.parametrize("at", [4, 5])
def test_a_stopped_learning_resumes_bit_for_bit(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model goes on where it was, with its optimiser; so do the average and the agreement."""
    how = {"reset_every": 0, "warm": 2, "eval_every": 3, "steps": 7}
    whole = lesson(**how)
    end = learn_policy(*whole, folder=tmp_path / "whole")
    with monkeypatch.context() as patched:
        if at == 4:
            interrupt(patched, 4)
            with pytest.raises(KeyboardInterrupt):
                learn_policy(*lesson(**how), folder=tmp_path / "part")
        else:
            # A signal between two evaluations saves a state there.
            terminate(patched, 4)
            with pytest.raises(SystemExit):
                learn_policy(*lesson(**how), folder=tmp_path / "part")
    states = sorted(path.name for path in (tmp_path / "part/resume").iterdir())
    assert states[-1] == ("step-00000003" if at == 4 else "step-00000005")
    second = lesson(**how)
    assert learn_policy(*second, folder=tmp_path / "part") == end
    assert torch.equal(weights(second.policy), weights(whole.policy))
    assert torch.equal(weights(second.losses), weights(whole.losses))
    logged = [lines(tmp_path / name) for name in ("whole", "part")]
    assert logged[0] == logged[1] and len(logged[0]) == 10
    with pytest.raises(MaskwiseError, match=r"learning settings; got ratio 0\.2 \(was 0\.3\)"):
        learn_policy(*lesson(**how, ratio=0.2), folder=tmp_path / "part")


def terminate(patch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGTERM at a step."""
    update = Engine.update

    def ended(self: Engine, now: Any, *rest: Any) -> Any:
        if now.number == step:
            signal.raise_signal(signal.SIGTERM)
        return update(self, now, *rest)

    patch.setattr(Engine, "update", ended)


def test_a_learning_that_has_ended_early_ends_there_again(tmp_path: Path) -> None:
    """Killed before its result was written, it went on from the step at which it had ended."""
    how = {"steps": 9, "patience": 1, "mask_rate": 0.0, "eval_every": 3}
    ends = []
    for _ in range(2):
        made = lesson(**how)
        ends.append((learn_policy(*made, folder=tmp_path), lines(tmp_path)))
    assert ends[0] == ends[1] and ends[0][1][-1]["step"] == 3
    assert ends[0][0].stopped == "no better gain on dev since step 0"


def test_scores_that_overflow_end_the_learning_and_keep_the_best() -> None:
    made = lesson(steps=4, eval_every=1)
    with torch.no_grad():
        next(iter(made.policy.parameters())).fill_(math.nan)
    end = learn_policy(*made)
    assert end.stopped == "diverged: a score of the policy is not finite" and not end.best_step


def test_the_task_loss_is_a_mean_over_the_targets_of_its_objective() -> None:
    """With several labels a row, it was so many times too large."""
    model, totals = inner(lesson()), list[Tensor]()
    model.losses = SimpleNamespace(of=lambda batch, total: totals.append(total))
    logits = torch.zeros(4, 3)

    class Linear(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=logits)

    ignored = torch.tensor([0, 1, 2, -100])
    several = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]])
    for kind, labels in (
        (Classification, ignored),
        (MultiLabel, several),
        (MultiLabel, several.long()),
    ):
        batch = {"input_ids": labels, "labels": labels}
        model.examples = SimpleNamespace(task=lambda rows, device, batch=batch: batch)
        model.task_loss(np.arange(4))
        assert totals[-1] == kind(Linear())(batch).divisor
    # An accelerator's ranks cannot add up a number on the host.
    batch = {"labels": torch.ones(4, device="meta")}
    model.examples = SimpleNamespace(task=lambda rows, device: batch)
    model.task_loss(np.arange(4))
    assert totals[-1].device.type == "meta"


@pytest.mark.parametrize(("signs", "agreement"), [((1, 1, 1, 1), 1), ((1, -1, 1, -1), 0)])
def test_the_agreement_of_gradients(signs: tuple[int, ...], agreement: int) -> None:
    slopes = Slopes()
    assert math.isnan(slopes.agreement())
    for sign in signs:
        slopes.add([torch.tensor([2.0 * sign]), torch.tensor([[1.0 * sign]])])
    assert slopes.agreement() == agreement


@pytest.mark.parametrize(
    ("outer", "gains", "stopped", "best"),
    [
        ([1.0] * 12, [0.5, 0.2, 0.1, 9.0], "no better gain on dev since step 3", (9, 3, 0.5)),
        (
            [1.0] * 3 + [2.5] * 3,
            [0.0, 0.0],
            "diverged: the task loss rose from 1 to 2.5 by step 6",
            (6, 0, 0.0),
        ),
    ],
)
def test_a_learning_that_gets_no_better_ends(
    outer: list[float],
    gains: list[float],
    stopped: str,
    best: tuple[int, int, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    average = PolicyAverage(lesson().policy, lesson(steps=12, patience=2).settings)
    for step, loss in enumerate(outer, start=1):
        average.outer += loss
        average.slopes.count += 1
        if step % 3 == 0:
            line = average.compare(step, gains[step // 3 - 1])
            if line.get("enough"):
                break
    assert average.stopped == stopped == line["stopped"]
    assert (step, average.best_step, average.gain) == best


def outer_step(made: Lesson, **training) -> MetaObjective:
    """Compute the gradient of the first outer step as ``train`` does, on one rank."""
    settings = outer_settings(made.settings).model_copy(update=training)
    objective = MetaObjective(made.policy, InnerModel(*made[1:]))
    objective.inner.configure(objective)
    batches = MetaSource(made.examples, made.settings, settings).batches(0, rank=0, ranks=1)
    targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    for batch in batches:
        loss = objective(batch)
        (loss.total / targets).backward()
        objective.inner.observe(batch, loss)
    return objective


def test_the_model_moves_or_is_reset() -> None:
    for every, moves in ((0, True), (1, False), (2, True)):
        model = outer_step(lesson(reset_every=every)).inner
        parts = list(model.parts)
        model.after(Progress(1, 6))
        assert is_reset(model) != moves
    model.parts = parts
    model.after(Progress(2, 6))  # the second of two
    assert is_reset(model)


def test_a_warm_model_has_seen_the_task_and_nothing_else() -> None:
    cold, warm = inner(lesson()), inner(lesson(warm=5))
    rows = np.arange(len(warm.examples))
    before, after = (float(mine.task_loss(rows)(mine.initial, None)) for mine in (cold, warm))
    assert after < before - 0.05
    assert all(not member.state for member in warm.optimizers.members)
    again = inner(lesson(warm=5))
    assert all(torch.equal(value, again.initial[name]) for name, value in warm.initial.items())
    trained = outer_step(lesson(warm=5)).inner
    trained.after(Progress(1, 6))  # and it is reset to what it was when it was warm
    assert is_reset(trained)


@pytest.mark.parametrize("named", [None, "mask_rate", "task_rate"])
def test_a_step_that_raises_its_own_loss_is_named(named: str | None) -> None:
    made = lesson(
        **{"mask_rate": 0.01, "task_rate": 0.01, "steps": 1} | ({named: 999.0} if named else {})
    )
    end = learn_policy(*made)
    assert (end.overshoot is None) == (named is None)
    if named:
        assert end.overshoot.startswith(f"an inner step of size {named}=999 raises the loss that")
        before, after = re.findall(r"from (.+) to (.+)", end.overshoot)[0]
        assert float(after) > float(before)


@pytest.mark.parametrize("training", [{}, {"accumulate": 2}])
def test_the_gradient_of_an_outer_step_is_the_slope_of_its_loss(training: dict) -> None:
    """The outer loss is computed again without meta-gradients, while the policy moves a little.

    A small move of the policy does not change which units are drawn. So the masks are those that
    were drawn, plus the changes of the probabilities.
    """
    made = lesson(inner_steps=2)
    made.policy.double()
    made.losses.double()
    # From other weights than zeros, so that the scores differ.
    torch.manual_seed(0)
    with torch.no_grad():
        for value in made.policy.parameters():
            value.copy_(0.3 * torch.randn_like(value))
    objective = outer_step(made, **training)
    gradient = torch.cat([value.grad.flatten() for value in made.policy.parameters()])
    settings = outer_settings(made.settings).model_copy(update=training)
    batches = MetaSource(made.examples, made.settings, settings).batches(0, rank=0, ranks=1)
    start = parameters_to_vector(made.policy.parameters()).detach()
    direction = gradient / gradient.norm()

    def outer_at(delta: float) -> float:
        losses = count = 0.0
        for batch in batches:
            parts = []
            for rows, key in zip(batch["rows"].numpy(), batch["keys"].tolist(), strict=True):
                vector_to_parameters(start, made.policy.parameters())
                at = objective.inner.masked(made.policy, made.examples, rows, key=key)
                vector_to_parameters(start + delta * direction, made.policy.parameters())
                moved = objective.inner.masked(made.policy, made.examples, rows, key=key)
                choice = at.choice
                told = (choice.length_U, choice.piece_U, choice.budget_P)
                change_U = inclusion(moved.logit_U, *told) - inclusion(at.logit_U, *told)
                mask = (choice.hard().double() + choice.spread(change_U)).detach()
                parts.append((rows, at, mask))
            theta = values_of(made.losses)
            for rows, at, mask in parts:
                denoising = made.losses.of(at.inputs, at.choice.budget)
                theta, _ = descended(theta, InnerStep(denoising, made.settings.mask_rate, mask))
                task = objective.inner.task_loss(rows)
                theta, _ = descended(theta, InnerStep(task, made.settings.task_rate))
            targets = float((batch["labels"] != -100).sum())
            losses += targets * float(made.losses.of(batch["task"])(theta, None).detach())
            count += targets
        return losses / count

    delta = 1e-4
    slope = (outer_at(delta) - outer_at(-delta)) / (2 * delta)
    assert slope == pytest.approx(float(gradient.norm()), rel=1e-4)


def small_model():
    return new_model(new_config("bert", tokenizer(), 32, **SMALL), seed=0)


def test_a_task_with_a_head_of_its_own_shares_the_encoder(tmp_path: Path) -> None:
    model, task = small_model(), load_task("trivia(train_rows=16)")
    weight = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    losses = losses_of(model, task, tokenizer(), seed=0)
    assert torch.equal(losses.task.model.bert.encoder.layer[0].output.dense.weight, weight)
    own = [name for name in values_of(losses) if name.startswith("task.")]
    assert own == ["task.model.classifier.weight", "task.model.classifier.bias"]
    output = losses.denoising.model.get_output_embeddings()
    assert output.weight is model.bert.embeddings.word_embeddings.weight
    # The policy has 12 positions, so contexts are cut there.
    policy = PolicyModel.new(tokenizer(), architecture="bert", settings=SMALL, length=12)
    small = {"steps": 2, "batch_size": 8, "dev_examples": 8}
    learn(task, policy, model, told=(), folder=tmp_path, **small)
    first, second, _ = lines(tmp_path)
    # classes have no answers
    assert second["step"] == 2 and first["grad_norm"] > 0 and "answers" not in first


def test_an_encoder_decoder_learns_with_one_mask_a_token() -> None:
    words = TokenizerSettings(sentinels=4).tokenizer(read_documents(texts()))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = new_config("t5", words, 32, kind="encoder-decoder", dropout_rate=0.0, **sizes)
    task = load_task(WORLD.task("generation", beams=1, max_target=4))
    policy = PolicyModel.new(words, settings={"hidden_size": 8, "window": 1}, length=32)
    before = policy.head.weight.detach().clone()
    small = {"steps": 2, "batch_size": 8, "ratio": 0.3, "eval_every": 1}
    end = learn(task, policy, new_model(config, seed=0), words, **small)
    assert end.stopped is None and np.isfinite(end.gain)
    assert end.best_step == 0 or not torch.equal(policy.head.weight, before)


def test_tasks_and_policies_that_do_not_fit_are_refused() -> None:
    frozen = load_task("trivia(kind='sentence-embedding', train_rows=20)")
    written = load_task(WORLD.task("generation"))
    for task, says in (
        (frozen, "this kind of task has no loss; got sentence-embedding"),
        (written, "kind generation is not for this model; got an encoder"),
    ):
        with pytest.raises(MaskwiseError, match=says):
            losses_of(small_model(), task, tokenizer(), seed=0)
    spans = PolicyModel.new(tokenizer(), settings={"hidden_size": 8}, head="spans", length=32)
    with pytest.raises(MaskwiseError, match="needs a policy that scores tokens; got spans"):
        learn(policy=spans)


@pytest.mark.process
@pytest.mark.parametrize("architecture", ["light", "bert"])
def test_two_ranks_do_what_one_does(architecture: str, tmp_path: Path) -> None:
    """Also with a policy whose layers DDP averages."""
    start = weights(ranked(architecture).policy)
    alone = ranked(architecture)
    learn_policy(*alone, folder=tmp_path / "alone")
    two_ranks(_on_a_rank, architecture, tmp_path)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(both[0], both[1])
    # The last number is the head's bias, which changes no mask. Its gradient is rounding, which
    # Adam makes large, as it does here and there with other weights, so the way as a whole is
    # compared.
    apart, way = (both[0] - weights(alone.policy))[:-1], (weights(alone.policy) - start)[:-1]
    assert apart.norm() < 5e-3 * way.norm(), (apart.norm(), way.norm())
    names = ("loss", "inner", "entropy", "answers", "grad_norm", "gain", "targets", "tokens")
    for one, two in zip(lines(tmp_path / "alone"), lines(tmp_path / "both"), strict=True):
        for name in one.keys() & set(names):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def ranked(architecture: str) -> Lesson:
    made = lesson(reset_every=0, steps=3, eval_every=3)
    if architecture == "light":
        return made
    policy = PolicyModel.new(tokenizer(), architecture="bert", settings=SMALL, length=32)
    return made._replace(policy=policy)


def _on_a_rank(architecture: str, folder: Path) -> None:
    import os

    made = ranked(architecture)
    learn_policy(*made, folder=folder / "both")
    torch.save(weights(made.policy), folder / f"{os.environ['RANK']}.pt")


@pytest.mark.process
def test_two_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    two_ranks(_stopped_on_a_rank, tmp_path)
    assert lines(tmp_path / "whole") == lines(tmp_path / "part")


def _stopped_on_a_rank(folder: Path) -> None:
    how = {"reset_every": 0, "warm": 1, "eval_every": 2, "steps": 4}
    whole, part = lesson(**how), lesson(**how)
    learn_policy(*whole, folder=folder / "whole")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt(patched, 3)
        learn_policy(*lesson(**how), folder=folder / "part")
    learn_policy(*part, folder=folder / "part")
    assert torch.equal(weights(part.policy), weights(whole.policy))
    assert torch.equal(weights(part.losses), weights(whole.losses))
