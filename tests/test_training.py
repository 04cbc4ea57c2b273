"""The loop: the same bits however often it is stopped, the same result however the batch is cut."""

from __future__ import annotations

import copy
import json
import math
import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import file_hash
from maskwise.evaluation import HeldOut
from maskwise.masking import IGNORE, Masker
from maskwise.models.families import most_tokens
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling, objective
from maskwise.text import load_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, log_frequencies, train
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.optim import (
    BatchedMuon,
    Optimizers,
    hidden_matrices,
)
from maskwise.training.ranks import Ranks
from maskwise.training.rates import CURVES, rate_factor
from maskwise.training.several import SeveralObjectives
from processes import forked, two_ranks
from training_tools import ARCHITECTURES, FIRST, WORDS, Language, config, counts, model, tokenizer

DATA = Language(40)
HELD_OUT = Language(24, seed=1)


def settings(**more: Any) -> TrainingSettings:
    plain = {"steps": 12, "batch_size": 8, "log_every": 2, "precision": "no", "learning_rate": 3e-3}
    return TrainingSettings(**{**plain, **more})


def run(
    folder: Path | None = None,
    *,
    architecture: str = "bert",
    dropout: float = 0.1,
    stop: int | None = None,
    masker: Masker | None = None,
    **more: Any,
) -> tuple[Any, dict[str, Any]]:
    """Train a tiny model on 40 rows (5 steps an epoch); ``stop``: break off in that step's
    evaluation.
    """
    chosen = settings(**{"eval_every": 1, **more})
    dropouts = {"hidden_dropout_prob": dropout, "mlp_dropout": dropout}
    objective = MaskedLanguageModelling(model(architecture, **(dropouts if dropout else {})))
    masker = masker or Masker(tokenizer(), policy="whole-word", ratio="linear(0.4, 0.2)", seed=3)
    held_out = HeldOut(HELD_OUT, {"token": Masker(tokenizer())}, log_frequencies(counts(DATA)))

    def evaluate(step: int, ranks: Ranks) -> list[dict[str, Any]]:
        if step == stop:
            raise KeyboardInterrupt
        return held_out(objective, ranks)

    source = MaskedSource(DATA, masker, chosen)
    result = train(objective, source, chosen, folder=folder, evaluate=evaluate)
    return objective.model, result


def lines(folder: Path) -> list[dict[str, Any]]:
    """Metrics without what no comparison may see."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "speed")} for line in found]


def close(a: dict[str, Any], b: dict[str, Any], *, rel: float) -> None:
    """Numbers alike to ``rel``, counts and names exactly."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        inexact = isinstance(value, float | dict)
        assert value == (pytest.approx(b[key], rel=rel) if inexact else b[key]), (key, a, b)


def same(a: Any, b: Any) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# --- settings, the learning rate, optimisers


@pytest.mark.parametrize(
    ("step", "warmup", "decay", "share", "factor"),
    [
        (0, 0.1, "constant", None, 0.1),
        (4, 0.1, "constant", None, 0.5),
        (99, 0.1, "constant", 0.5, 1.0),
        (0, 0.001, "constant", None, 1.0),
        (99, 0.0, "linear", None, 0.01),
        (4, 0.1, "linear", None, 0.48),
        (49, 1.0, "linear", None, 0.255),
        (50, 0.0, "linear", 0.5, 1.0),
        (75, 0.0, "linear", 0.5, 0.5),
        (25, 0.0, "cosine", None, (1 + math.sqrt(0.5)) / 2),
        (60, 0.0, "cosine", 0.8, 0.5),
        (90, 0.0, "wsd", None, 1.0),
        (95, 0.0, "wsd", None, 1 - math.sqrt(0.5)),
        (85, 0.0, "wsd", 0.2, 0.5),
        (25, 0.0, "1-sqrt", None, 0.5),
    ],
)
def test_rate_factor(step, warmup, decay, share, factor) -> None:
    found = rate_factor(step, 100, warmup=warmup, decay=decay, decay_share=share)
    assert found == pytest.approx(factor)


@pytest.mark.parametrize("decay", CURVES)
def test_every_curve_is_a_value_of_training_decay(decay: str) -> None:
    assert settings(decay=decay).decay == decay
    assert CURVES[decay](0) == 1 and 0 <= CURVES[decay](1) <= 1
    with pytest.raises(ValidationError, match=decay):
        settings(decay="steep")


BLOCKS = {
    "bert": r"bert\.encoder\.layer\.\d\."
    r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)",
    "modernbert": r"model\.layers\.\d\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))",
    "albert": r"albert\.encoder\.albert_layer_groups\.0\.albert_layers\.0\."
    r"(attention\.(query|key|value|dense)|ffn|ffn_output)",
}
HEADS = {
    "bert": r"cls\.predictions\.transform\.dense",
    "modernbert": r"head\.dense",
    "albert": r"predictions\.dense",
}


@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("architecture", BLOCKS)
def test_hidden_matrices_are_those_of_blocks_and_prediction_head(
    architecture: str, auto: Any
) -> None:
    """Also where a width equals the number of positions, and with more classes than hidden
    units.
    """
    awkward = {"max_position_embeddings": 16, "type_vocab_size": 24, "num_labels": 30}
    where = BLOCKS[architecture]
    if auto is AutoModelForMaskedLM:
        where += f"|{HEADS[architecture]}"
    made = auto.from_config(config(architecture, **awkward))
    ids = {id(p) for p in hidden_matrices(made)}
    found = {name for name, p in made.named_parameters() if id(p) in ids}
    names = [name for name, _ in made.named_parameters()]
    expected = {name for name in names if re.fullmatch(rf"({where})\.weight", name)}
    assert found == expected and len(found) >= 6


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_muon_leaves_heads_and_decoders_of_several_objectives_to_adamw(architecture: str) -> None:
    """The arms stand in a ModuleList, as blocks do: heads, untied decoders and ELECTRA's projection
    went to Muon.
    """
    net = model(architecture, tie_word_embeddings=False, hidden_dropout_prob=0.1)
    names = {"mlm": "mlm", "again": "mlm", "atd": "atd", "cse": "cse", "dtd": "dtd"}
    arms = SeveralObjectives({name: objective(spec, net) for name, spec in names.items()})
    one = {id(p) for p in hidden_matrices(MaskedLanguageModelling(net))}
    assert one and {id(p) for p in hidden_matrices(arms)} == one


def test_every_parameter_has_one_optimiser_and_vectors_no_decay() -> None:
    net = model("bert")
    made = Optimizers(net, settings(optimizer="muon", weight_decay=0.1))
    groups = [group for member in made.members for group in member.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    for group in groups:
        assert {p.ndim == 1 for p in group["params"]} == {group["weight_decay"] == 0}
    made.set_rate(3)
    assert [g["lr"] for g in groups] == pytest.approx([3e-3 * 9 / 12, 3e-3 * 9 / 12, 0.02 * 9 / 12])


def test_muon_in_batches_is_torch_s_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tall and wide matrices, two of one shape, a transpose, one without a gradient; several
    steps.
    """
    # torch's rounds to bfloat16; in single precision the two are the same sums in another order.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    shapes = [(12, 5), (5, 12), (12, 5), (7, 7), (5, 12), (3, 4)]
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.3}
    optimizers = BatchedMuon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(4):
        for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(mine, start) == (mine.shape == (3, 4))


# --- the loop


@pytest.mark.parametrize(
    ("architecture", "stops", "more"),
    [
        ("bert", range(1, 13), {}),
        pytest.param(
            "modernbert",
            (1, 2, 3, 5, 6, 9, 12),
            {"optimizer": "muon", "accumulate": 2, "precision": "bf16"},
            marks=pytest.mark.slow,
        ),
        # A line of metrics every 5 steps, and a state every 2: sums are neither lost nor counted
        # twice.
        ("bert", (4, 7, 8, 11), {"log_every": 5, "on_nan": "skip"}),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    architecture: str, stops: Sequence[int], more: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped after every single step in turn; an epoch has 5 steps, a state is kept every 2."""
    how = {"architecture": architecture, "save_every": 2, **more}
    plain, facts = run(tmp_path / "plain", **{**how, "save_every": 0})
    for stop in stops:
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop=stop, **how)
        resumed, again = run(folder, **how)
        assert again["resumed_at"] == max(0, (stop - 1) // 2 * 2)
        assert same(plain, resumed) and lines(folder) == lines(tmp_path / "plain"), stop
        for name in ("loss", "tokens", "targets"):
            assert again[name] == facts[name], name


def test_the_environment_of_accelerate_divides_no_loss_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run(tmp_path / "launched")
    assert lines(tmp_path / "launched") == lines(tmp_path / "plain")


def test_states_of_another_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=5, save_every=2)
    wrong = r"step-00000004 belongs to a run with different settings; got steps 14 \(was 12\)"
    with pytest.raises(MaskwiseError, match=wrong):
        run(tmp_path, save_every=2, steps=14)
    with pytest.raises(MaskwiseError, match="step-00000004 belongs to a different model"):
        run(tmp_path, save_every=2, architecture="electra")
    run(tmp_path, save_every=2, accumulate=2)
    assert "with accumulate 2 (was 1): results differ by" in capsys.readouterr().err


def test_a_state_with_nonsense_in_it_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest fits; the run begins anew and ends as if nothing had been."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=3, save_every=2)
    state = tmp_path / "resume" / "step-00000002"
    path = state / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokens": "many"}))
    hashes = {p.name: file_hash(p) for p in state.iterdir() if p.name != "manifest.json"}
    (state / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    assert run(tmp_path, save_every=2)[1]["resumed_at"] == 0
    assert "step-00000002: state.json is damaged" in capsys.readouterr().err


def test_a_state_of_a_newer_version_is_refused_and_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=3, save_every=2)
    state = tmp_path / "resume" / "step-00000002"
    path = state / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    hashes = {p.name: file_hash(p) for p in state.iterdir() if p.name != "manifest.json"}
    (state / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    with pytest.raises(MaskwiseError, match=r"state\.json has a format .* newer maskwise"):
        run(tmp_path, save_every=2)
    assert path.is_file()


def test_damaged_metrics_do_not_stop_a_resumed_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=7, save_every=2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:300] + b"\xff\xfe")
    run(tmp_path, save_every=2)
    assert lines(tmp_path)[-1]["step"] == 12


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint.999999.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    run(tmp_path, steps=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def on_a_full_disk(folder: Path, size: int) -> list[str]:
    """What training and saving a checkpoint say where files of so many bytes fit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    said = []
    for write in (
        lambda: run(folder, save_every=2),
        lambda: save_checkpoint(folder / "checkpoint", model("bert"), tokenizer()),
    ):
        try:
            write()
            said.append("written")
        except MaskwiseError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(
    "size",
    [20_000, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 2000, 40_000))],
)
def test_a_full_disk_is_one_line_and_the_last_good_state_stays(size: int, tmp_path: Path) -> None:
    """Files of so many bytes fit: none, the tokenizer but no weights, weights but no optimiser
    state.
    """
    whole, _ = run(tmp_path / "whole", save_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=5, save_every=2)
    said = forked(on_a_full_disk, tmp_path / "cut", size)()
    assert [line.startswith("cannot write") for line in said] == [True, size < 40_000], said
    assert not any("\n" in line for line in said)
    assert not list((tmp_path / "cut").rglob(".*.partial"))
    assert (tmp_path / "cut" / "checkpoint").exists() == (size == 40_000)
    resumed, facts = run(tmp_path / "cut", save_every=2)
    assert facts["resumed_at"] == 4 and same(whole, resumed)


def test_the_tokenizer_of_a_checkpoint_cuts_where_the_positions_end(tmp_path: Path) -> None:
    words = copy.copy(tokenizer())
    words.model_max_length = 3  # of the start that it came with
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, num_layers=1, d_ff=8))
    for network in (model("bert"), model("roberta"), t5):
        folder = tmp_path / network.config.model_type
        save_checkpoint(folder, network, words if network is not t5 else tokenizer())
        most = load_tokenizer(str(folder)).model_max_length
        # as transformers says "no limit"
        assert most > 1e20 if network is t5 else 3 < most == most_tokens(network.config) < 1000


def test_a_checkpoint_does_not_know_whether_there_was_a_network(tmp_path: Path) -> None:
    manifests = set()
    for offline in (False, True):
        tools = copy.deepcopy(tokenizer())
        tools.init_kwargs |= {"local_files_only": offline}
        save_checkpoint(tmp_path / str(offline), model("bert"), tools)
        manifests.add((tmp_path / str(offline) / "manifest.json").read_bytes())
    assert len(manifests) == 1


def test_without_states_a_run_starts_anew(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    run(tmp_path, steps=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 2] and not (
        tmp_path / "resume"
    ).exists()


def test_metrics_have_the_documented_fields(tmp_path: Path) -> None:
    _, facts = run(tmp_path, eval_every=0)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    text = (
        (Path(__file__).parents[1] / "docs" / "files.md")
        .read_text()
        .split("### metrics.jsonl")[1]
        .split("```")[1]
    )
    train_keys, eval_keys = (
        set(re.findall(r'"(\w+)":', part)) for part in text.split('{"kind": "eval"')
    )
    assert all(line.keys() | line["speed"].keys() == train_keys for line in found[:-1])
    assert [x["step"] for x in found] == [2, 4, 6, 8, 10, 12, 12]
    assert found[-1].keys() == eval_keys | {"kind"}
    # 8 rows of 14 words and 2 special tokens a step; the ratio falls from 0.4 in step 0.
    assert [x["tokens"] for x in found[:-1]] == [2 * 8 * 14 * n for n in range(1, 7)]
    assert found[0]["scheduled_ratio"] == pytest.approx((0.4 + 0.4 - 0.2 / 12) / 2, abs=2e-3)
    assert found[0]["ratio"] == pytest.approx(found[0]["targets"] / (2 * 8 * 14))
    assert facts["targets"] == sum(x["targets"] for x in found[:-1])


def test_a_ratio_that_rises_from_nothing_is_not_stopped_for_want_of_targets() -> None:
    """At first it asks for less than a target in fifty steps; one that asks for many and has none
    is stopped.
    """
    how: dict[str, Any] = {"steps": 60, "log_every": 60, "eval_every": 0}
    rising = Masker(tokenizer(), ratio="linear(0.0, 0.0004)", budget="bernoulli", min_targets=0)
    _, facts = run(masker=rising, batch_size=1, **how)
    assert facts["steps"] == 60 and facts["targets"] < 10
    with pytest.raises(MaskwiseError, match="the first 60 steps had no token to predict"):
        run(masker=Unmasked(lambda step: True), **how)


class Unmasked:
    """A masker that masks nothing in some steps; in odd ones if not said."""

    def __init__(self, bare: Any = lambda step: step % 2):
        self.inner, self.bare = Masker(tokenizer(), ratio=0.3), bare

    def __call__(self, rows: Any, *, step: int, total_steps: int, epoch: int) -> Any:
        batch = self.inner(rows, step=step, total_steps=total_steps, epoch=epoch)
        if self.bare(step):
            batch.labels.fill_(IGNORE)
            batch.targets = 0
        return batch


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_without_targets_changes_nothing(optimizer: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"eval_every": 0, "optimizer": optimizer, "log_every": 1}
    more |= {"decay": "constant", "warmup": 0.0}
    three, _ = run(tmp_path, steps=3, masker=Unmasked(), **more)
    four, done = run(tmp_path, steps=4, masker=Unmasked(), **more)
    assert same(three, four)
    found = [x for x in lines(tmp_path) if x["kind"] == "train"]
    # no loss, not 0
    assert (found[3]["loss"], found[3]["targets"], found[3]["grad_norm"]) == (None, 0, 0.0)
    assert done["loss"] == found[2]["loss"] > 1  # the last that there was


def test_a_run_that_goes_on_where_no_target_is_left_has_the_same_last_loss(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "save_every": 2,
        "eval_every": 11,
        "masker": Unmasked(lambda step: step > 7),
    }
    whole = run(tmp_path / "whole", **how)[1]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=11, **how)
    assert run(tmp_path / "cut", **how)[1]["loss"] == whole["loss"] > 1


def test_a_tiny_model_learns_the_language(tmp_path: Path) -> None:
    """Convergence: from the unigram loss (3.7 nats) to a fraction of it in 200 steps."""
    data = Language(512)
    chosen = settings(steps=200, batch_size=32, optimizer="muon", log_every=50, learning_rate=6e-3)
    log_unigram = log_frequencies(counts(data))
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    fields |= {"intermediate_size": 48, "initializer_range": 0.05}
    fields["layer_types"] = ["full_attention"] * 2
    shape = new_config("modernbert", tokenizer(), 16, **fields)
    objective = MaskedLanguageModelling(new_model(shape, seed=0, log_unigram=log_unigram))
    shown = Masker(tokenizer(), corruption="mask-only")
    held_out = HeldOut(HELD_OUT, {"token": shown}, log_unigram)
    with torch.no_grad():
        before = held_out(objective)[0]
    assert before["loss"] == pytest.approx(before["unigram"], abs=0.25)  # by the output bias
    source = MaskedSource(data, Masker(tokenizer(), ratio=0.3, corruption="mask-only"), chosen)
    evaluate = lambda _, ranks: held_out(objective, ranks)  # noqa: E731
    train(objective, source, chosen, folder=tmp_path, evaluate=evaluate)
    after = lines(tmp_path)[-1]
    assert after["loss"] < after["unigram"] / 2, after


# --- models


def test_new_models_are_a_function_of_their_seed() -> None:
    made = config("bert")
    assert same(new_model(made, seed=1), new_model(made, seed=1))
    assert not same(new_model(made, seed=1), new_model(made, seed=2))
    for architecture, positions in (("bert", 16), ("roberta", 17), ("camembert", 17)):
        fresh = new_config(architecture, tokenizer(), 16)  # the others count from pad + 1
        assert fresh.max_position_embeddings == positions and most_tokens(fresh) == 16
        assert (fresh.vocab_size, fresh.pad_token_id) == (FIRST + WORDS, 0)


# has no such bias
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "eurobert"])
def test_the_output_bias_starts_at_the_log_frequencies(architecture: str) -> None:
    """In every architecture, and it survives tying: a fresh model's loss is about the unigram
    loss.
    """
    log_unigram = torch.linspace(-9.0, 0.0, FIRST + WORDS).log_softmax(0)
    net = new_model(config(architecture), seed=0, log_unigram=log_unigram).eval()
    ids = HELD_OUT.line(torch.arange(8))["input_ids"]
    found = net(input_ids=ids).logits.log_softmax(-1)
    assert (found - log_unigram).abs().mean().item() < 0.3


# --- two processes


TWO: dict[str, Any] = {"dropout": 0.0, "log_every": 1, "steps": 6}


def rank_of_two(folder: Path) -> None:
    for name, optimizer in (("bert", "adamw"), ("modernbert", "muon")):
        more: dict[str, Any] = {**TWO, "accumulate": 2, "architecture": name}
        more |= {"optimizer": optimizer, "masker": Masker(tokenizer(), ratio=0.3)}
        net, _ = run(folder / name, **more)
        for parameter in net.parameters():
            gathered = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(gathered, parameter.detach().contiguous())
            assert torch.equal(*gathered), "ranks differ"


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two ranks, in micro-batches: the same parameters on both, and one process's losses."""
    two_ranks(rank_of_two, tmp_path)
    for name, optimizer in (("bert", "adamw"), ("modernbert", "muon")):
        alone = tmp_path / f"{name}-alone"
        how = {**TWO, "masker": Masker(tokenizer(), ratio=0.3)}
        run(alone, architecture=name, optimizer=optimizer, **how)
        for a, b in zip(lines(alone), lines(tmp_path / name), strict=True):
            close(a, b, rel=1e-4)


@pytest.mark.parametrize("changed", [{"activation_checkpointing": True}, {"accumulate": 2}])
def test_a_resumed_run_says_what_it_rounds_differently(
    changed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {"steps": 4, "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=3, **how)
    run(tmp_path, **how, **changed)
    [(name, value)] = changed.items()
    assert f"{name} {value} (was {settings().model_dump()[name]})" in capsys.readouterr().err


def test_all_settings_that_change_the_rounding_are_kept_in_a_state(tmp_path: Path) -> None:
    run(tmp_path, steps=2, save_every=1)
    [path] = (tmp_path / "resume").glob("step-00000001/state.json")
    state = json.loads(path.read_text())
    assert TrainingSettings.that_change("rounding") <= set(state["bits"])
