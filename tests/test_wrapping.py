"""What is put around a model changes nothing but its memory, its speed and where its weights
are.
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils._python_dispatch import TorchDispatchMode

from maskwise.base.errors import MaskwiseError
from maskwise.evaluation import HeldOut
from maskwise.masking import Masker
from maskwise.models import attention
from maskwise.models.attention import with_dropout
from maskwise.models.families import patched
from maskwise.models.loading import new_config, new_model
from maskwise.models.weights import blocks_of
from maskwise.objectives import MaskedLanguageModelling
from maskwise.objectives.denoising import Denoising
from maskwise.objectives.mlm import read_head
from maskwise.text import Document, Rows, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train, wrapping
from maskwise.training.data import look_ahead
from maskwise.training.engine import Engine
from maskwise.training.optim import Optimizers
from maskwise.training.ranks import Ranks
from test_training import DATA, close, lines, settings
from training_tools import ARCHITECTURES, bart, model, tokenizer

TEXT = "the cat sat on the mat "
UNEVEN: dict[str, Any] = {"ratio": 0.3, "budget": "bernoulli", "min_targets": 0}
"""Rows, and so ranks, with unequal numbers of targets."""

SMALL: dict[str, dict[str, int]] = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "t5": {"d_model": 32, "d_kv": 16, "num_layers": 2, "num_heads": 2, "d_ff": 48},
}
"""Settings of small models, by family."""


def made(kind: str, **masking: Any) -> tuple[Any, Masker]:
    """An objective and its masker."""
    if kind == "denoise":
        return Denoising(bart()), Masker(tokenizer(), corruption="infill", **{**UNEVEN, **masking})
    return MaskedLanguageModelling(model("bert")), Masker(tokenizer(), **{**UNEVEN, **masking})


def trained(kind: str, folder: Path | None = None, **more: Any) -> Any:
    """The objective after some steps."""
    chosen = settings(**{"log_every": 1, "steps": 6, **more})
    trainee, masker = made(kind)
    train(trainee, MaskedSource(DATA, masker, chosen), chosen, folder=folder)
    return trainee


# --- activations that are computed twice


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_the_layers_of_a_model(architecture: str) -> None:
    net = model(architecture)
    blocks = blocks_of(net)
    assert len(blocks) == (1 if architecture == "albert" else 2)
    assert len(blocks_of(Denoising(bart()))) == 4
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    named = net.named_parameters()
    assert inside > 0.6 * sum(p.numel() for name, p in named if "embed" not in name)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "distilbert", "deberta-v2"])
def test_activations_computed_twice_give_the_same_gradients(architecture: str) -> None:
    """Dropout included; the model is as it was afterwards."""
    names = ("hidden_dropout_prob", "mlp_dropout", "dropout", "embedding_dropout")
    found = []
    for twice in (False, True):
        chosen = settings(activation_checkpointing=twice, clip=0.0)
        trainee = MaskedLanguageModelling(model(architecture, **dict.fromkeys(names, 0.1)))
        block = blocks_of(trainee)[0]
        inner = next(m for m in block.modules() if isinstance(m, torch.nn.Linear))
        engine = Engine(trainee, chosen)
        calls: list[object] = []
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        [step] = look_ahead(MaskedSource(DATA, Masker(tokenizer(), ratio=0.3), chosen), range(1))
        engine.optimizers.zero_grad = lambda: None  # type: ignore[method-assign]
        update = engine.update(step, lambda *_: None)
        grads = [p.grad for p in trainee.parameters() if p.grad is not None]
        found.append([update.losses[0], update.norm, *grads])
        assert len(calls) == 1 + twice
        engine.close()
        assert "forward" not in vars(block)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "bart"])
def test_a_residual_stream_in_bf16_is_the_same_training_to_rounding(architecture: str) -> None:
    """All states between blocks are bf16, as those of autocast alone are not."""
    found = []
    for residual in ("fp32", "bf16"):
        chosen = settings(precision="bf16", residual=residual, clip=0.0)
        net = bart() if architecture == "bart" else model(architecture)
        trainee = Denoising(net) if architecture == "bart" else MaskedLanguageModelling(net)
        blocks = blocks_of(trainee)
        dtypes: set[torch.dtype] = set()
        for block in blocks:
            block.register_forward_hook(
                lambda _, __, output, dtypes=dtypes: dtypes.add(
                    output.dtype if isinstance(output, torch.Tensor) else output[0].dtype
                )
            )
        corruption = "infill" if architecture == "bart" else "bert"
        masker = Masker(tokenizer(), ratio=0.3, corruption=corruption)
        engine = Engine(trainee, chosen)
        [step] = look_ahead(MaskedSource(DATA, masker, chosen), range(1))
        engine.optimizers.zero_grad = lambda: None  # type: ignore[method-assign]
        update = engine.update(step, lambda *_: None)
        slope = torch.cat([p.grad.flatten() for p in trainee.parameters() if p.grad is not None])
        engine.close()
        assert all("forward" not in vars(part) for part in trainee.modules())
        if residual == "bf16":
            assert dtypes == {torch.bfloat16}
        elif architecture in ("bert", "modernbert"):
            assert dtypes == {torch.float32}
        found.append((update.losses[0] / step.targets, slope))
    (loss, slope), (other, changed) = found
    assert 0 < abs(float(loss - other)) < 0.01
    assert torch.cosine_similarity(slope, changed, dim=0) > 0.999


def parts_of(trainee: torch.nn.Module) -> list[dict[str, Any]]:
    """What stands in the modules themselves, where a patched method would."""
    return [
        {name: value for name, value in vars(part).items() if not name.startswith("_")}
        for part in trainee.modules()
    ]


@pytest.mark.parametrize("more", [{"save_every": 1, "learning_rate": 0.5}, {"compile": True}])
def test_an_engine_that_cannot_start_leaves_the_model_as_it_was(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state has another learning rate, or there is no compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    trainee, masker = made("mlm")
    chosen = settings(save_every=1, steps=2)
    train(trainee, MaskedSource(DATA, masker, chosen), chosen, folder=tmp_path)
    before = parts_of(trainee)
    with pytest.raises(MaskwiseError):
        Engine(trainee, settings(steps=2, **more), tmp_path)
    assert parts_of(trainee) == before


# --- compiled


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler here")


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    says = (
        "training.compile needs no-such-compiler, which is not installed; install it, or set "
        "training.compile: false"
    )
    with pytest.raises(MaskwiseError, match=says):
        trained("mlm", compile=True)


class Versions:
    """Counts graphs by the function that was compiled, and computes them as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.graphs: Counter[str] = Counter()
        self.options: list[dict[str, Any]] = []
        plain = torch.compile
        torch._dynamo.reset()

        # One for each function: another backend would be another version.
        @cache
        def backend(name: str) -> Any:
            def count(graph: Any, _: Any) -> Any:
                self.graphs[name] += 1
                return graph.forward

            return count

        def compiled(function: Any, **options: Any) -> Any:
            self.options.append(options)
            return plain(function, **options, backend=backend(function.__name__))

        monkeypatch.setattr(torch, "compile", compiled)
        monkeypatch.setattr(wrapping, "require_compiler", lambda device: None)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "document"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_lengths_and_phases_need_few_versions_of_a_block(
    family: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps eight, and then computes without: no warning, and no speed. The width of the
    model is one of the lengths, and every phase evaluates, as those of ``mmbert`` do.
    """
    found = Versions(monkeypatch)
    layers = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    if family == "modernbert":
        kinds = ["full_attention", "sliding_attention", "full_attention"]
        layers |= {"layer_types": kinds, "local_attention": 8}
    tools = train_tokenizer([TEXT] * 9, vocab_size=80)
    config = new_config(family, tools, 64, intermediate_size=48, **layers)
    net = new_model(config, seed=0)
    for length, ratio in ((32, 0.3), (64, 0.15), (32, 0.05)):
        documents = [Document(str(n), TEXT * (1 + n % 4)) for n in range(64)]
        pieces = read_pieces(tokenise(documents, tools), tokenizer=tools, length=length)
        rows = Rows.of(pieces, layout)
        chosen = TrainingSettings(steps=4, batch_size=4, compile=True, precision="no", eval_every=2)
        source = MaskedSource(rows, Masker(tools, ratio=ratio), chosen)
        held_out = HeldOut(rows, {"token": Masker(tools, ratio=0.3, seed=0)}, None)
        trainee = MaskedLanguageModelling(net)

        def evaluate(_: int, ranks: Ranks, held_out: Any = held_out, trainee: Any = trainee) -> Any:
            return held_out(trainee, ranks)

        train(trainee, source, chosen, evaluate=evaluate)
    blocks = found.graphs["forward"] + found.graphs["forward_with_checkpointing"]
    assert 0 < blocks <= (1 if family == "bert" else 3)
    assert 0 < found.graphs["read_head"] <= 2
    assert all(options["dynamic"] for options in found.options)
    # The blocks are whole graphs, or an error.
    assert sum(options.get("fullgraph", False) for options in found.options) == 3 * 3


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("bert", "packed"),
        ("bert", "document"),
        pytest.param("t5", "packed", marks=pytest.mark.slow),
    ],
)
def test_chance_in_a_batch_needs_no_other_version_of_a_block(
    family: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some batches have no padding, and some of packed rows have one document in each row."""
    found = Versions(monkeypatch)
    tools = train_tokenizer([TEXT] * 9, vocab_size=80)
    texts = {"whole": TEXT * 9, "short": TEXT, "shorter": TEXT[:12]}
    documents = [Document(f"{name} {n}", text) for name, text in texts.items() for n in range(4)]
    pieces = read_pieces(tokenise(documents, tools), tokenizer=tools, length=16)
    rows = Rows.of(pieces, layout)
    full = rows.lengths == rows.lengths.max()
    several = np.diff(rows.first) > 1
    # Rows without and with padding, and rows of several documents.
    kinds = [rows_of for rows_of in (full & ~several, ~full & ~several, several) if rows_of.any()]
    chosen = TrainingSettings(steps=4, batch_size=2, compile=True, precision="no")
    kind = "encoder" if family == "bert" else "encoder-decoder"
    net = new_model(new_config(family, tools, 32, kind=kind, **SMALL[family]), seed=0)
    trainee = MaskedLanguageModelling(net) if family == "bert" else Denoising(net)
    masker = Masker(tools, corruption="bert" if family == "bert" else "infill")
    source = MaskedSource(rows, masker, chosen)
    engine = Engine(trainee, chosen)
    graphs = []
    for number in sorted([*range(len(kinds))] * 2):
        drawn = torch.from_numpy(np.flatnonzero(kinds[number])[:2])
        monkeypatch.setattr(source.order, "draw", lambda step, drawn=drawn: (drawn, 0))
        [step] = look_ahead(source, range(number, number + 1))
        engine.update(step, lambda *_: None)
        graphs.append(sum(found.graphs.values()))
    assert trainee.read_head is not read_head
    engine.close()
    assert trainee.read_head is read_head, "the head is as it was"
    assert len(kinds) == (2 if layout == "document" else 3)
    # In the first update with documents, blocks are not compiled.
    assert 0 < graphs[1] == graphs[-1]


class Copies(TorchDispatchMode):
    """How many tensors were copied."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "clone"
        return func(*args, **(kwargs or {}))


def test_muon_is_compiled_and_skips_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Versions(monkeypatch)
    trainee = made("mlm")[0]
    chosen = settings(optimizer="muon", compile=True, learning_rate=1e-3)
    optimizers = Optimizers(trainee, chosen)
    optimizers.set_rate(3)
    muon = optimizers.members[1]
    kept: list[list[torch.Tensor]] = []
    for sound in (True, False):
        for parameter in trainee.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 if sound else torch.nan)
        muon.found_inf = torch.tensor(float(not sound))  # type: ignore[attr-defined]
        # Under a dispatch mode torch compiles nothing.
        copies = Copies()
        with nullcontext() if sound else copies:
            muon.step()
        assert copies.count == 0
        means = [muon.state[p]["momentum_buffer"] for p in muon.param_groups[0]["params"]]
        kept.append([x.detach().clone() for x in (*trainee.parameters(), *means)])
    assert all(map(torch.equal, *kept)) and found.graphs["orthogonal"] == 2  # two shapes


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlm", "denoise"])
@pytest.mark.parametrize("residual", ["fp32", "bf16"])
def test_compiled_training_is_eager_training(kind: str, residual: str, tmp_path: Path) -> None:
    halved = {"precision": "bf16", "residual": "bf16"} if residual == "bf16" else {}
    eager = trained(kind, tmp_path / "eager", **halved)
    compiled = trained(kind, tmp_path / "compiled", compile=True, **halved)
    assert compiled.read_head is read_head, "the objective is as it was"
    for a, b in zip(lines(tmp_path / "eager"), lines(tmp_path / "compiled"), strict=True):
        close(a, b, rel=1e-2 if halved else 1e-5)
    if halved:
        # Compiled code rounds to bf16 less often.
        return
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- dropout on a processor


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    values = torch.randn(1001, 333, generator=torch.manual_seed(1)).double().requires_grad_()
    torch.manual_seed(0)
    found = with_dropout(values, rate)
    zeros = (found == 0).double().mean().item()
    assert zeros == pytest.approx(rate, abs=4 * (rate * (1 - rate) / values.numel()) ** 0.5)
    kept = found != 0
    torch.testing.assert_close(found[kept], values[kept] / (1 - rate), rtol=1e-4, atol=0)
    found.sum().backward()
    assert values.grad is not None and torch.equal(values.grad == 0, ~kept)
    torch.manual_seed(0)
    again, other = with_dropout(values, rate), with_dropout(values, rate)
    assert torch.equal(again, found) and torch.equal(other, found) == (rate in (0, 1))


def test_barts_blocks_drop_by_the_fast_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that drops nothing, a block in training equals one in evaluation; and another
    model of the family keeps torch's dropout."""
    net = bart()
    other = bart().get_encoder().layers[0].train()
    states = torch.randn(2, 5, net.config.d_model, generator=torch.manual_seed(0))
    blocks = [net.get_encoder().layers[0], net.get_decoder().layers[0]]
    expected = [block.eval()(states, None) for block in blocks]
    for block in (*blocks, other):
        block.dropout = 0.25
    asked: list[float] = []

    def kept(values: torch.Tensor, rate: float) -> torch.Tensor:
        asked.append(rate)
        return values

    monkeypatch.setattr(attention, "with_dropout", kept)
    with patched(net):
        attention.quicken(net)
        for block, output in zip(blocks, expected, strict=True):
            assert torch.equal(block.train()(states, None), output)
    assert asked == [0.25, 0.0, 0.25] * 2, "after attention, activation and the second layer"
    for block in (*blocks, other):
        block.train()
    assert not torch.equal(other(states, None), expected[0])
    assert not torch.equal(blocks[0](states, None), expected[0])
    assert len(asked) == 6


def test_a_run_leaves_the_setting_of_torch_that_nobody_changed() -> None:
    # pytest's monkeypatch would delete the setting: torch keeps it outside the module's __dict__.
    with symbolic_shapes.patch(use_duck_shape=False):
        with wrapping.wrapped(made("mlm")[0], settings(), nullcontext):
            pass
        assert symbolic_shapes.use_duck_shape is False
