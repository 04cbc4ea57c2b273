"""What makes training fast on a GPU: rearranged layers, large chunks, short turns of threads."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from maskwise.masking import Masker
from maskwise.models.families import patched
from maskwise.models.weights import blocks_of
from maskwise.objectives import MaskedLanguageModelling, chunks
from maskwise.training import MaskedSource, compiled, data, train
from maskwise.training.compiled import (
    GATED,
    ROTARY,
    compiled_block,
    forget_other_models,
    rearrange,
)
from maskwise.training.data import TURN, QuickTurns, look_ahead
from test_training import DATA, settings
from training_tools import tokenizer

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
FAMILIES = {
    "modernbert": {"mlp_bias": True, "attention_bias": True},
    "modernbert-decoder": {},
    "eurobert": {},
    "nomic_bert": {},
}
"""Families with layers that ``rearrange`` changes, and some of their settings."""


def built(family: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family], **more)
    return AutoModel.from_config(config).double()


def outcome(model: nn.Module) -> list[Tensor]:
    """Return the output of a model, and the gradients of all its weights."""
    model.zero_grad()
    ids = torch.arange(1, 25).view(2, 12)
    states = model(input_ids=ids).last_hidden_state
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    (states * weights).sum().backward()
    return [states.detach(), *(weight.grad.clone() for weight in model.parameters())]


def changed(model: nn.Module) -> set[str]:
    """Return the classes of the layers whose forward methods are replaced."""
    return {type(layer).__name__ for layer in model.modules() if "forward" in vars(layer)}


@pytest.mark.parametrize("family", FAMILIES)
def test_rearranged_layers_compute_the_same(family: str) -> None:
    model = built(family)
    before = outcome(model)
    with patched(model):
        rearrange(blocks_of(model))
        assert changed(model) & set(ROTARY)
        after = outcome(model)
    for old, new in zip(before, after, strict=True):
        # Rotary embeddings are computed in single precision.
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6)
    assert not changed(model)


def test_every_class_is_tried() -> None:
    seen = set()
    for family in FAMILIES:
        model = built(family)
        with patched(model):
            rearrange(blocks_of(model))
            seen |= changed(model)
    assert seen == {*GATED, *ROTARY}


def test_an_attention_of_the_same_name_may_rotate_in_another_way() -> None:
    class NomicBertAttention(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states

    layer = NomicBertAttention()
    rearrange([layer])
    assert "forward" not in vars(layer)


def test_a_wrapped_matrix_stays_as_it_is() -> None:
    class Wrapped(nn.Linear):
        """A matrix with an addition of its own, like LoRA's."""

    model = built("modernbert")
    layer = model.layers[0].mlp
    layer.Wi = Wrapped(32, 96)
    with patched(model):
        rearrange([model.layers[0]])
        assert "forward" not in vars(layer)
        assert "forward" in vars(model.layers[0].attn)


def test_the_compiler_uses_rearranged_layers() -> None:
    """Without them, each block has one product for both halves, and rotates (B, H, L, D)."""
    model = built("modernbert").train()
    block = model.layers[1]
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    def found() -> tuple[int, set[int]]:
        """Return the number of products, and the number of heads' dimension in concatenations."""
        torch.compiler.reset()
        graphs.clear()
        states = torch.rand(2, 12, 32, dtype=torch.float64)
        angles = torch.rand(2, 12, 16, dtype=torch.float64)

        # A function of its own: other tests may have compiled the block's too often, and torch
        # 2.9 then leaves it alone.
        def run(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return block.forward(states, position_embeddings=(cos, sin), attention_mask=None)

        torch.compile(run, backend=keep, fullgraph=True)(states, angles.cos(), angles.sin())
        (graph,) = graphs
        nodes = list(graph.graph.nodes)
        products = sum(node.target is torch._C._nn.linear for node in nodes)
        turned = [node.meta["example_value"] for node in nodes if node.target is torch.cat]
        return products, {value.shape.index(2, 1) for value in turned}

    assert found() == (4, {1})
    with patched(model):
        rearrange([block])
        assert found() == (5, {2})


class Block(nn.Module):
    """A class of its own, because the versions of one class are counted together."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states).relu()


def test_the_compiler_forgets_blocks_of_other_models(monkeypatch) -> None:
    """It keeps eight versions, of all models of a process, and the ninth was a hard error."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for width in range(1, 11):
        block = Block(width)
        forget_other_models(block, {})
        states = torch.rand(3, width)
        expected = block(states)
        block.forward = compiled_block(block, block.forward)
        assert torch.equal(block(states), expected)


@pytest.mark.slow
def test_a_process_trains_compiled_models_of_many_sizes(monkeypatch) -> None:
    """The fifth one failed: the versions of its blocks were more than the compiler keeps."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    resets = []
    reset = torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(reset()))
    compiled._last_model.clear()
    chosen = settings(steps=1, compile=True)
    for heads, seed in ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (16, 1)):
        sizes = SIZES | {"hidden_size": 4 * heads, "num_attention_heads": heads}
        sizes |= {"vocab_size": len(tokenizer()), "num_hidden_layers": 2}
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("modernbert", **sizes))
        source = MaskedSource(DATA, Masker(tokenizer(), ratio=0.3), chosen)
        assert train(MaskedLanguageModelling(model), source, chosen)["steps"] == 1
    # Models that are alike share their code.
    assert len(resets) == 4


def test_all_layers_of_a_class_share_their_compiled_code() -> None:
    """A function of its own for each layer would make the compiler begin anew for each layer."""
    model = built("modernbert")
    with patched(model):
        rearrange(blocks_of(model))
        functions = {vars(block.attn)["forward"].__func__ for block in model.layers}
    assert len(functions) == 1


def test_blocks_are_compiled_only_in_training() -> None:
    block = nn.Linear(2, 2)
    forward = compiled_block(block, block.forward)
    block.eval()
    states = torch.ones(1, 2)
    assert torch.equal(forward(states), block(states))


class Turns:
    """A source of batches that notes how long other threads may keep it waiting."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def ahead(self, step: int) -> bool:
        return True

    def batches(self, step: int, *, rank: int, ranks: int) -> list[dict[str, Tensor]]:
        self.seen.append(sys.getswitchinterval())
        return [{"labels": torch.tensor([[1, -100]])}]

    def facts(self, batches: object) -> dict[str, float]:
        return {}

    def summarise(self, sums: object) -> dict[str, Any]:
        return {}


def test_threads_take_short_turns_while_any_training_runs() -> None:
    before = sys.getswitchinterval()
    first, second = QuickTurns(), QuickTurns()
    first.__enter__()
    second.__enter__()
    assert sys.getswitchinterval() == pytest.approx(TURN)
    first.__exit__()
    assert sys.getswitchinterval() == pytest.approx(TURN)
    second.__exit__()
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("ends", ["early", "late"])
@pytest.mark.parametrize("gpu", [False, True])
def test_turns_are_short_only_for_gpus(
    gpu: bool, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = SimpleNamespace(send=lambda make: (make(), None), receive=lambda sent, mark: None)
    monkeypatch.setattr(data, "copies_aside", lambda device: gpu)
    monkeypatch.setattr(data, "Lane", lambda device: lane)
    before = sys.getswitchinterval()
    source = Turns()
    steps = look_ahead(source, range(4))
    for step in steps:
        if ends == "early" and step.number == 1:
            break
    steps.close()  # type: ignore[attr-defined]
    assert max(source.seen) == pytest.approx(TURN if gpu else before)
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize(
    ("gibibytes", "entries"), [(2, 1 << 26), (80, 536_870_912), (139, 932_813_209)]
)
def test_chunks_grow_with_the_memory_of_the_card(
    gibibytes: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=gibibytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert chunks.entries(torch.device("cuda")) == entries
    assert chunks.entries(torch.device("cpu")) == 1 << 26
