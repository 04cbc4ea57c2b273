"""The loop: the same bits however often it is stopped, the same result however the batch is cut."""

from __future__ import annotations

import copy
import json
import math
import re
import resource
from contextlib import suppress
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

from maskwise.errors import MaskwiseError
from maskwise.evaluation import HeldOut
from maskwise.families import most_tokens
from maskwise.folders import damage, file_hash
from maskwise.masking import IGNORE, Masker
from maskwise.models import load_model, new_config, new_model
from maskwise.objectives import MaskedLanguageModelling, objective
from maskwise.text import load_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, log_frequencies, permutation, train
from maskwise.training.arms import Arms
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.log import not_finite
from maskwise.training.optim import (
    BatchedMuon,
    Optimizers,
    hidden_matrices,
    rate_factor,
)
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

    def evaluate(step: int) -> list[dict[str, Any]]:
        if step == stop:
            raise KeyboardInterrupt
        return held_out(objective)

    source = MaskedSource(DATA, masker, chosen)
    result = train(objective, source, chosen, folder=folder, evaluate=evaluate, quiet=True)
    return objective.model, result


def lines(folder: Path) -> list[dict[str, Any]]:
    """Metrics without what no comparison may see."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "speed")} for line in found]


def close(a: dict[str, Any], b: dict[str, Any], *, rel: float) -> None:
    """Numbers alike to ``rel``, counts and names exactly."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value == (pytest.approx(b[key], rel=rel) if isinstance(value, float) else b[key]), (
            key,
            a,
            b,
        )


def same(a: Any, b: Any) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# --- settings, the learning rate, optimisers


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"steps": 0}, "greater than or equal to 1"),
        ({"learning_rate": math.inf}, "finite number"),
        ({"betas": (0.9, 1.0)}, "less than 1"),
        ({"optimizer": "sgd"}, "'adamw' or 'muon'"),
        ({"warm_up": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_say_what_is_wrong(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        TrainingSettings(**wrong)


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


BLOCKS = {
    "bert": r"bert\.encoder\.layer\.\d\."
    r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)",
    "distilbert": r"distilbert\.transformer\.layer\.\d\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])",
    "modernbert": r"model\.layers\.\d\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))",
}
BLOCKS["roberta"], BLOCKS["electra"] = (
    BLOCKS["bert"].replace("bert", name, 1) for name in ("roberta", "electra")
)
BLOCKS["albert"] = (
    r"albert\.encoder\.albert_layer_groups\.0\.albert_layers\.0\."
    r"(attention\.(query|key|value|dense)|ffn|ffn_output)"
)


HEADS = {
    "bert": r"cls\.predictions\.transform\.dense",
    "roberta": r"lm_head\.dense",
    "distilbert": "vocab_transform",
    "electra": r"generator_predictions\.dense",
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
    net = auto.from_config(
        config(architecture, **({} if auto is AutoModelForMaskedLM else awkward))
    )
    for made in (net, auto.from_config(config(architecture, **awkward))):
        ids = {id(p) for p in hidden_matrices(made)}
        found = {name for name, p in made.named_parameters() if id(p) in ids}
        head = f"|{HEADS[architecture]}" if auto is AutoModelForMaskedLM else ""
        where = f"({BLOCKS[architecture]}{head})"
        expected = {n for n, _ in made.named_parameters() if re.fullmatch(where + r"\.weight", n)}
        assert found == expected and len(found) - bool(head) in (8, 12, 6)


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_muon_leaves_heads_and_decoders_of_several_objectives_to_adamw(architecture: str) -> None:
    """The arms stand in a ModuleList, as blocks do: heads, untied decoders and ELECTRA's projection
    went to Muon.
    """
    net = model(architecture, tie_word_embeddings=False, hidden_dropout_prob=0.1)
    names = {"mlm": "mlm", "again": "mlm", "atd": "atd", "cse": "cse", "sbo": "sbo"}
    arms = Arms({name: objective(spec, net) for name, spec in names.items()})
    one = {id(p) for p in hidden_matrices(MaskedLanguageModelling(net))}
    assert one and {id(p) for p in hidden_matrices(arms)} == one


def test_every_parameter_has_one_optimiser_and_vectors_no_decay() -> None:
    net = model("bert")
    made = Optimizers(net, settings(optimizer="muon", weight_decay=0.1))
    groups = [group for member in made.members for group in member.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    assert all(
        (group["weight_decay"] == 0) == (p.ndim == 1) for group in groups for p in group["params"]
    )
    made.set_rate(3)
    assert [g["lr"] for g in groups] == pytest.approx([3e-3 * 9 / 12, 3e-3 * 9 / 12, 0.02 * 9 / 12])


def test_an_update_that_is_not_finite_on_another_rank_says_so() -> None:
    said = str(not_finite([1.0, 2.0], step=3, rate=1e-3))
    assert "gradient of another process is not finite at step 3; got finite values here" in said
    assert "loss is not finite at step 3; got nan" in str(
        not_finite([math.nan, 2.0], step=3, rate=1.0)
    )


def test_muon_needs_blocks() -> None:
    with pytest.raises(
        MaskwiseError,
        match=r"optimizer muon needs trainable matrices .* got Linear; use optimizer: adamw",
    ):
        Optimizers(torch.nn.Linear(3, 3), settings(optimizer="muon"))
    frozen = model("bert")
    frozen.requires_grad_(False)
    frozen.get_input_embeddings().requires_grad_(True)
    with pytest.raises(MaskwiseError, match="needs trainable matrices"):
        Optimizers(frozen, settings(optimizer="muon"))


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
    ("architecture", "more"),
    [("bert", {}), ("modernbert", {"optimizer": "muon", "accumulate": 2, "precision": "bf16"})],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    architecture: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped after every single step in turn; an epoch has 5 steps, a state is kept every 2."""
    more = {"architecture": architecture, "save_every": 2, **more}
    whole, facts = run(tmp_path / "whole", **more)
    for stop in (1, 2, 3, 5, 6, 9, 12) if architecture == "modernbert" else range(1, 13):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop=stop, **more)
        resumed, again = run(folder, **more)
        assert again["resumed_at"] == max(0, (stop - 1) // 2 * 2)
        assert same(whole, resumed), stop
        assert lines(folder) == lines(tmp_path / "whole"), stop
        assert {k: again[k] for k in ("loss", "tokens", "targets")} == {
            k: facts[k] for k in ("loss", "tokens", "targets")
        }


@pytest.mark.parametrize("more", [{}, {"on_nan": "skip"}])
def test_states_need_not_stand_at_lines_of_metrics(more: dict[str, Any], tmp_path: Path) -> None:
    """A state every 3 steps, a line every 5: what was summed up between is neither lost nor counted
    twice.
    """
    every = {"log_every": 5, **more}
    whole, facts = run(tmp_path / "whole", **every)
    saved, _ = run(tmp_path / "saved", save_every=3, **every)
    assert same(whole, saved) and lines(tmp_path / "saved") == lines(tmp_path / "whole")
    for stop in (4, 7, 8, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop), stop=stop, save_every=3, **every)
        resumed, again = run(tmp_path / str(stop), save_every=3, **every)
        assert again["resumed_at"] == (stop - 1) // 3 * 3
        assert same(whole, resumed) and lines(tmp_path / str(stop)) == lines(tmp_path / "whole")
        assert [again[k] for k in ("loss", "tokens", "targets")] == [
            facts[k] for k in ("loss", "tokens", "targets")
        ]


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
    wrong = (
        r"resume/step-00000004 belongs to a run with different settings; got steps 14 \(was 12\); "
        r"give a new folder"
    )
    with pytest.raises(MaskwiseError, match=wrong):
        run(tmp_path, save_every=2, steps=14)
    run(tmp_path, save_every=2, accumulate=2)
    assert (
        "with accumulate 2 (was 1): the same run except for rounding and dropout"
        in capsys.readouterr().err
    )


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=3, save_every=2)
    with pytest.raises(
        MaskwiseError, match=r"step-00000002 belongs to a different model; give a new folder"
    ):
        run(tmp_path, save_every=2, architecture="electra")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("manifest.json", "[]", "no readable manifest"),
        ("manifest.json", '{"sha256": null}', "no readable manifest"),
        ("state.json", '{"step": "2"}', "state.json is damaged"),
        ("state.json", "[]", "state.json is damaged"),
        ("tokens", "many", "state.json is damaged"),
    ],
)
def test_a_state_with_nonsense_in_it_is_skipped(
    file: str, content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the manifest was made to fit; the run begins anew and ends as if nothing had
    been.
    """
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=3, save_every=2)
    state = tmp_path / "resume" / "step-00000002"
    if file == "tokens":
        path = state / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tokens": content}))
    else:
        path = state / file
        path.write_text(content)
    if file != "manifest.json":
        hashes = {p.name: file_hash(p) for p in state.iterdir() if p.name != "manifest.json"}
        (state / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    assert run(tmp_path, save_every=2)[1]["resumed_at"] == 0
    assert f"step-00000002: {words}" in capsys.readouterr().err


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


@pytest.mark.parametrize("size", [0, 2000, 20_000, 40_000])
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
    for architecture in ("bert", "roberta"):
        network = model(architecture)
        save_checkpoint(tmp_path / architecture, network, words)
        saved = load_tokenizer(str(tmp_path / architecture))
        assert 3 < saved.model_max_length == most_tokens(network.config) < 1000
    save_checkpoint(
        tmp_path / "t5",
        T5ForConditionalGeneration(T5Config(d_model=8, num_layers=1, d_ff=8)),
        tokenizer(),
    )
    # as transformers says "no limit"
    assert load_tokenizer(str(tmp_path / "t5")).model_max_length > 1e20


def test_a_checkpoint_does_not_know_whether_there_was_a_network(tmp_path: Path) -> None:
    tools = {}
    for offline in (False, True):
        tools[offline] = load_tokenizer(str(save_checkpoint_of(tmp_path / f"given-{offline}")))
        tools[offline].init_kwargs |= {"local_files_only": offline}
        save_checkpoint(tmp_path / str(offline), model("bert"), tools[offline])
    assert damage(tmp_path / "True") is None
    assert (tmp_path / "True" / "manifest.json").read_bytes() == (
        tmp_path / "False" / "manifest.json"
    ).read_bytes()


def save_checkpoint_of(folder: Path) -> Path:
    save_checkpoint(folder, model("bert"), tokenizer())
    return folder


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


def test_cutting_a_batch_changes_nothing(tmp_path: Path) -> None:
    """One batch of 8 or 4 × 2: the same loss and gradient norm, though micro-batches differ in
    targets.
    """
    masker = Masker(tokenizer(), ratio=0.3, budget="bernoulli", min_targets=0)
    for name, accumulate in (("one", 1), ("four", 4)):
        run(
            tmp_path / name,
            dropout=0.0,
            accumulate=accumulate,
            log_every=1,
            eval_every=0,
            masker=masker,
            steps=6,
        )
    one, four = lines(tmp_path / "one"), lines(tmp_path / "four")
    assert len(one) == 7 and one[-1]["kind"] == "eval"
    for a, b in zip(one, four, strict=True):
        close(a, b, rel=2e-5)


def test_a_ratio_that_rises_from_nothing_is_not_stopped_for_want_of_targets(tmp_path: Path) -> None:
    """At first it asks for less than a target in fifty steps; one that asks for many and has none
    is stopped.
    """
    rising = Masker(tokenizer(), ratio="linear(0.0, 0.0004)", budget="bernoulli", min_targets=0)
    _, facts = run(
        tmp_path / "rising", masker=rising, steps=60, batch_size=1, log_every=60, eval_every=0
    )
    assert facts["steps"] == 60 and facts["targets"] < 10
    with pytest.raises(MaskwiseError, match="not one target in the first 60 steps"):
        run(
            tmp_path / "none",
            masker=Unmasked(lambda step: True),
            steps=60,
            log_every=60,
            eval_every=0,
        )


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
    more: dict[str, Any] = {
        "eval_every": 0,
        "optimizer": optimizer,
        "log_every": 1,
        "decay": "constant",
        "warmup": 0.0,
    }
    for steps in (3, 4):
        nets, done = run(tmp_path, steps=steps, masker=Unmasked(), **more)
        if steps == 3:
            kept = nets
    assert same(kept, nets)
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


def test_batch_size_must_be_divisible() -> None:
    with pytest.raises(MaskwiseError) as caught:
        run(batch_size=8, accumulate=3)
    assert (
        str(caught.value)
        == "batch_size must be a multiple of accumulate × processes; got 8 for 3 × 1"
    )


def test_a_corpus_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(
        MaskwiseError,
        match="smaller than one batch; got 40 rows; allowed: at least batch_size = 64",
    ):
        run(batch_size=64)


def test_trackers_get_the_numbers_of_evaluations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr("accelerate.Accelerator.log", lambda self, line, step: sent.update(line))
    chosen = settings(steps=1)
    source = MaskedSource(DATA, Masker(tokenizer()), chosen)
    line = {"masks": "token", "loss": 2.0, "note": None, "by": {"the": 1.0}}
    train(objective("mlm", model("bert")), source, chosen, evaluate=lambda _: [line], quiet=True)
    assert {name: sent[name] for name in sent if "eval" in name} == {"eval/token/loss": 2.0}


def test_trackers_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="unknown or missing tracker 'tensorbord'"):
        run(tmp_path, trackers=("tensorbord",))
    with pytest.raises(MaskwiseError, match="trackers need a folder"):
        run(trackers=("tensorboard",))
    with pytest.raises(MaskwiseError, match="unknown or missing tracker 'dvclive'"):
        run(tmp_path, trackers=("dvclive",))


def test_source_is_a_function_of_seed_and_step() -> None:
    masker, chosen = Masker(tokenizer(), ratio="linear(0.5, 0.1)"), settings(accumulate=2)
    source = MaskedSource(DATA, masker, chosen)

    def ids(step: int, rank: int = 0, ranks: int = 1, source: Any = source) -> list[Any]:
        batches = source.batches(step, rank=rank, ranks=ranks)
        return [batch.source.example_id.tolist() for batch in batches]

    first = [ids(step) for step in range(11)]
    assert ids(7, source=MaskedSource(DATA, masker, chosen)) == first[7], "nothing before matters"
    for epoch in (first[:5], first[5:10]):
        assert sorted(i for step in epoch for part in step for i in part) == list(range(40))
    assert first[:5] != first[5:10]
    assert first[0][0] + first[0][1] == permutation(40, seed=0, epoch=0)[:8].tolist()
    left, right = ids(3, 0, 2), ids(3, 1, 2)
    assert [a + b for a, b in zip(left, right, strict=True)] == first[3]
    ratio = [float(source.batches(step, rank=0, ranks=1)[0].ratio[0]) for step in (0, 6, 11)]
    assert ratio == pytest.approx([masker.ratio(step, 12) for step in (0, 6, 11)])


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
    evaluate = lambda step: held_out(objective)  # noqa: E731
    train(objective, source, chosen, folder=tmp_path, evaluate=evaluate, quiet=True)
    after = lines(tmp_path)[-1]
    assert after["loss"] < after["unigram"] / 2, after


# --- models


def test_new_models_are_a_function_of_their_seed() -> None:
    made = new_config(
        "bert", tokenizer(), 16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    assert (
        made.vocab_size == FIRST + WORDS
        and made.pad_token_id == 0
        and made.max_position_embeddings == 16
    )
    assert same(new_model(made, seed=1), new_model(made, seed=1)) and not same(
        new_model(made, seed=1), new_model(made, seed=2)
    )
    for architecture in ("roberta", "camembert"):  # they count from pad + 1
        fresh = new_config(architecture, tokenizer(), 16)
        assert fresh.max_position_embeddings == 17 and most_tokens(fresh) == 16
    with pytest.raises(MaskwiseError, match=r"unknown architecture 'bret'.*did you mean 'bert'"):
        new_config("bret", tokenizer(), 16)
    with pytest.raises(
        MaskwiseError, match=r"unknown bert model setting 'hiden_size'.*did you mean 'hidden_size'"
    ):
        new_config("bert", tokenizer(), 16, hiden_size=3)
    with pytest.raises(MaskwiseError, match="there is no model or tokenizer in '/nowhere'"):
        load_model("/nowhere")


# has no such bias
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "eurobert"])
def test_the_output_bias_starts_at_the_log_frequencies(architecture: str) -> None:
    """In every architecture, and it survives tying: a fresh model's loss is about the unigram
    loss.
    """
    log_unigram = torch.linspace(-9.0, 0.0, FIRST + WORDS).log_softmax(0)
    net = new_model(config(architecture), seed=0, log_unigram=log_unigram).eval()
    ids = HELD_OUT.batch(torch.arange(8))["input_ids"]
    found = net(input_ids=ids).logits.log_softmax(-1)
    assert (found - log_unigram).abs().mean().item() < 0.3


# --- two processes


def rank_of_two(folder: Path) -> None:
    more: dict[str, Any] = {
        "dropout": 0.0,
        "log_every": 1,
        "eval_every": 1,
        "save_every": 2,
        "steps": 6,
        "accumulate": 2,
        "masker": Masker(tokenizer(), ratio=0.3),
    }
    nets = []
    for name in ("bert", "modernbert"):
        more |= {"architecture": name, "optimizer": "muon" if name == "modernbert" else "adamw"}
        nets.append(run(folder / name, **more)[0])
        with suppress(KeyboardInterrupt):
            run(folder / f"{name}-cut", stop=5, **more)
        assert same(nets[-1], run(folder / f"{name}-cut", **more)[0])
    for parameter in [p for net in nets for p in net.parameters()]:
        gathered = [torch.empty_like(parameter) for _ in range(2)]
        dist.all_gather(gathered, parameter.detach().contiguous())
        assert torch.equal(*gathered), "ranks differ"


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two ranks: the same parameters on both, one process's losses, and resuming."""
    (tmp_path / "two").mkdir()
    two_ranks(rank_of_two, tmp_path / "two")
    for name in ("bert", "modernbert"):
        optimizer = "muon" if name == "modernbert" else "adamw"
        run(
            tmp_path / "one" / name,
            architecture=name,
            dropout=0.0,
            log_every=1,
            eval_every=1,
            steps=6,
            optimizer=optimizer,
            masker=Masker(tokenizer(), ratio=0.3),
        )
        one, two = lines(tmp_path / "one" / name), lines(tmp_path / "two" / name)
        assert lines(tmp_path / "two" / f"{name}-cut") == two
        for a, b in zip(one, two, strict=True):
            close(a, b, rel=1e-4)
