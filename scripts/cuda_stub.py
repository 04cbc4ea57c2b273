"""Walk the CUDA path of a training step without a card: attention, types, waits, generated kernels.

    make test-cuda-stub

A stand-in for NVIDIA's libraries (tests/cuda_stub) claims one H100. With fake tensors, which have
shapes and types but no numbers, torch then makes whole updates on "cuda" (``Engine.update``: both
passes, clipping and the optimiser): it chooses the attention kernels that it would choose on the
card, and Inductor generates the code that it would run there. So this shows, for every objective
and layout, which attention kernel is used, which products are in single precision, where the host
would wait for the card, how many graphs torch.compile makes of the blocks and of the head with its
loss, and the kernels and bytes of each graph. It shows no times and no numbers.

The result is written to benchmarks/results/gpu/cuda-stub.json, also if the walk is interrupted; it
then names the cases that did not run. A walk of some cases (``--only``) or of other code
(``--src``) is written into the folder of ``--build`` instead. The exit code is 1 if a case fails or
did not run, the host waits, an encoder in half precision does not use the kernel for documents of
different lengths, compiled code has a graph break, is compiled again after the second update or is
not generated, or the head is not one graph for any number of targets. It needs gcc, and torch's
build for CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from gpu_versions import git  # noqa: E402

SOURCES = ROOT / "tests" / "cuda_stub"
RESULT = ROOT / "benchmarks" / "results" / "gpu" / "cuda-stub.json"

LAYOUTS = ("packed", "document")
LENGTH, ROWS = 128, 16
SIZE = {
    "hidden_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "vocab_size": 32768,
}
BART = {
    "d_model": 256,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "attention_dropout": 0.0,
}
T5 = {"d_model": 256, "d_kv": 64, "num_layers": 2, "num_heads": 4, "d_ff": 512, "dropout_rate": 0.0}
SIZES = {"bart": BART, "t5": T5, "bert": SIZE, "modernbert": SIZE}
DROPOUT = {"bert": "attention_probs_dropout_prob", "modernbert": "attention_dropout"}
MASKING = {"denoise": {"corruption": "infill"}, "emlm": {"policy": "guided(layer=word_ids)"}}
HALVED = (("mlm", "bert"), ("mlm", "modernbert"))
"""Objective and family of cases that also run with a residual stream in bf16."""
CHUNKED = "compiled, head in chunks"
"""Words of the case whose head runs in chunks, as with many targets."""
CHUNK = 128
"""Number of targets of a chunk in that case."""
TRY = "compiled, try "
"""Words of cases that walk a variant of benchmarks/gpu_variants.py, before its name. What a card
must have, such as the package of FlashAttention 3, is not needed: they only generate code."""
STEPS = 3
"""Updates of a case. Their batches have different numbers of targets."""

ASKS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "repeat_interleave",
}
"""Operations whose result the host reads, or whose shape depends on numbers."""
RAGGED = "_varlen_attn"
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--result", type=Path, help="the file of the result")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda-stub")
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="the code to walk")
    parser.add_argument("--only", default="", help="only cases whose names contain this text")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the cases")
    parser.add_argument("--part", type=int, default=-1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part >= 0:
        return walk_part(given)
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # The code may change while the cases run.
    commit = git("rev-parse", "--short=10", "HEAD")
    changed_files = git("status", "--porcelain", "--untracked-files=no").splitlines()
    environment = os.environ | libraries(given.build)
    folders = [given.src.resolve(), ROOT / "packages" / "maskwise-data" / "src"]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    command = [sys.executable, __file__, f"--build={given.build}", f"--only={given.only}"]
    command.append(f"--jobs={given.jobs}")
    walks = []
    for part in range(given.jobs):
        lines_of(given.build, part).unlink(missing_ok=True)
        walks.append(subprocess.Popen([*command, f"--part={part}"], env=environment))
    with contextlib.suppress(KeyboardInterrupt):
        for walk in walks:
            walk.wait()
    for walk in walks:
        walk.terminate()
    found = merged(given.build, given.jobs)
    part = {} if is_whole(given) else {"only": given.only, "src": str(given.src)}
    found = {"date": date, "commit": commit, "changed_files": changed_files, **part, **found}
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    result = result_of(given)
    result.write_text(text, encoding="utf-8")
    counts = {name: len(found[name]) for name in ("cases", "wrong", "not_run")}
    sys.stdout.write(f"{counts}: {result}\n")
    whole = all(walk.returncode == 0 for walk in walks)
    return int(bool(found["wrong"] or found["not_run"] or not found["cases"] or not whole))


def is_whole(given: argparse.Namespace) -> bool:
    """Return whether all cases of this code are walked, as in the record."""
    return not given.only and given.src.resolve() == ROOT / "src"


def result_of(given: argparse.Namespace) -> Path:
    """Return the file of the result. A walk that is not whole does not replace the record."""
    if given.result is not None:
        return Path(given.result)
    return RESULT if is_whole(given) else given.build / RESULT.name


def lines_of(build: Path, part: int) -> Path:
    """Return the file to which a process writes one line for each case as soon as it has run."""
    return build / f"cases-{part}.jsonl"


def merged(build: Path, parts: int) -> dict[str, Any]:
    """Return the results of all processes as one, with the cases in their order."""
    facts: dict[str, Any] = {}
    lines: dict[str, Any] = {}
    for part in range(parts):
        file = lines_of(build, part)
        read = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        for line in map(json.loads, read):
            if "case" in line:
                lines[line["case"]] = line
            else:
                facts = line
    order = facts.pop("order", [])
    return {
        **facts,
        "wrong": [name for name in order if name in lines and lines[name]["wrong"]],
        "not_run": [name for name in order if name not in lines],
        "cases": [lines[name] for name in order if name in lines],
    }


def libraries(build: Path) -> dict[str, str]:
    """Compile the stand-ins, and return the environment in which programs use them."""
    build.mkdir(parents=True, exist_ok=True)
    headers = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "include"
    # The functions ignore most of their arguments, and do not declare all of them.
    plain = ["gcc", "-shared", "-fPIC", "-O1", "-w"]
    runtime = build / "libruntime.so"
    driver = build / "libcuda.so.1"
    subprocess.run(
        [*plain, f"-I{headers}", "-o", str(runtime), str(SOURCES / "runtime.c")], check=True
    )
    subprocess.run(
        [*plain, "-Wl,-soname,libcuda.so.1", "-o", str(driver), str(SOURCES / "driver.c")],
        check=True,
    )
    return {"LD_PRELOAD": str(runtime.resolve()), "LD_LIBRARY_PATH": str(build.resolve())}


def cases() -> list[tuple[str, str, str, str]]:
    """List objective, layout, family and policy of all cases."""
    from maskwise.objectives import OBJECTIVES, objective_class

    found = []
    for name in OBJECTIVES:
        kind = objective_class(name)
        for layout in LAYOUTS:
            if layout == "packed" and kind.layout != "any":
                continue
            if kind.kind == "encoder":
                found.append((name, layout, "modernbert", ""))
            else:
                found.append((name, layout, "t5" if layout == "packed" else "bart", ""))
    for layout in LAYOUTS:
        found.append(("mlm", layout, "bert", ""))
    found.append(("mlm", "packed", "bert", "pos-weighted"))
    return found


def runs() -> Iterator[tuple[tuple[str, str, str, str], str, dict[str, Any]]]:
    """Yield every case with further words of its name, and with settings of training."""
    for case in cases():
        objective, _, family, policy = case
        yield case, "", {}
        yield case, "compiled", {"compile": True}
        if (objective, family) in HALVED and not policy:
            yield case, "compiled, residual bf16", {"compile": True, "residual": "bf16"}
    words = ("mlm", "packed", "bert", "")
    yield words, CHUNKED, {"compile": True}
    yield words, "compiled, muon", {"compile": True, "optimizer": "muon"}
    for name, kind in variants().items():
        for family in kind.computed:
            case = ("mlm", "packed", family, "")
            yield case, TRY + name, {"compile": True, "residual": "bf16"}


def variants() -> dict[str, Any]:
    """Return the variants of a step that gpu.py can try."""
    from gpu_variants import VARIANTS

    return VARIANTS


def walk_part(given: argparse.Namespace) -> int:
    """Walk the cases of one of several processes, and write a line for each."""
    import torch
    import transformers

    from maskwise.base import devices

    warnings.filterwarnings("ignore")
    # Fake tensors cannot be pinned. tests/test_device.py shows what is copied from pinned memory.
    devices.PINNING = ()
    # BART draws a number on the host for each layer, which a fake tensor does not have.
    plain = torch.rand
    torch.rand = lambda *size, **named: 1.0 if size == ([],) else plain(*size, **named)
    named = [
        (", ".join(part for part in (*case, words) if part), case, words, more)
        for case, words, more in runs()
    ]
    named = [each for each in named if given.only in each[0]]
    facts = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "card": torch.cuda.get_device_name(),
        "rows": f"{ROWS} × {LENGTH}",
        "order": [name for name, *_ in named],
    }
    # A case and its compiled forms are walked by the same process, because they share a count.
    groups = list(dict.fromkeys(case for _, case, _, _ in named))
    with lines_of(given.build, given.part).open("w", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        write(facts)
        for name, case, words, more in named:
            if groups.index(case) % given.jobs != given.part:
                continue
            with in_small_chunks() if words == CHUNKED else contextlib.nullcontext():
                line = {"case": name, **tried(case, more, words)}
            write(line)
            sys.stdout.write(json.dumps(line, ensure_ascii=False)[:500] + "\n")
            sys.stdout.flush()
    return 0


def tried(case: tuple[str, str, str, str], more: dict[str, Any], words: str) -> dict[str, Any]:
    """Walk a case; what is wrong with it is listed in ``wrong``.

    Args:
        case: objective, layout, family and policy.
        more: settings of training.
        words: the further words of its name.
    """
    try:
        plain = tuple((name, value) for name, value in more.items() if name != "compile")
        line = deepcopy(counted_update(case, plain))
        if more.get("compile"):
            line |= compiled_updates(case, more, words.removeprefix(TRY))
    except Exception as error:
        places = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "/maskwise/" in frame.filename or "/transformers/" in frame.filename
        ]
        text = f"{type(error).__name__}: {error}"[:400]
        return {"wrong": [text], "at": places[::-1][:6]}
    wrong = wrong_with(line, encodes=case[2] in DROPOUT, chunked=words == CHUNKED)
    return {"wrong": wrong, **line}


def wrong_with(line: dict[str, Any], *, encodes: bool, chunked: bool) -> list[str]:
    """Return what is wrong with a case that ran.

    Args:
        line: what was counted.
        encodes: whether the model is an encoder that knows documents.
        chunked: whether the head runs in chunks.
    """
    wrong = []
    if line["waits"]:
        wrong.append("the host waits")
    called = [line["attention"]]
    if "graphs_of_blocks" in line:
        called.append(name for each in line["graphs_of_blocks"] for name in each["attention"])
    if encodes and not all(any(RAGGED in kernel for kernel in kernels) for kernels in called):
        wrong.append("attention does not use the kernel for documents")
    if encodes and "graphs" in line and not line.get("graphs_of_blocks"):
        wrong.append("no block is compiled")
    if line.get("graph_breaks"):
        wrong.append("graph breaks")
    if line.get("compiled_again"):
        wrong.append("graphs are compiled again for other numbers of targets or lengths")
    graphs = [each for name in line if name.startswith("graphs_of_") for each in line[name]]
    if any("failed" in each for each in graphs):
        wrong.append("the code of a graph is not generated")
    # Chunks are computed again in the backward pass, where the flags of fake tensors differ, so
    # that dynamo makes another graph.
    passes = 4 if chunked else 2
    if len(line.get("graphs_of_head", ())) != passes * line.get("heads", 0):
        wrong.append("not every head is one graph, forward and backward")
    return wrong


# A step with fake tensors
# -------------------------------------------------------------------------------------------


@cache
def text() -> tuple[Any, Any]:
    """Return a tokenizer and pieces of the bundled text."""
    from maskwise.text import read_documents, read_pieces, tokenise, train_tokenizer

    documents = list(read_documents("bundled:wikipedia", limit=300))
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=8192)
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=LENGTH)
    pieces.columns["pos"] = pieces.columns["word_ids"] % 17
    return tokenizer, pieces


def made(case: tuple[str, str, str, str], more: dict[str, Any]) -> tuple[Any, list[Any], Any, Any]:
    """Return the objective of a case, its first batches, learners and settings, on the host.

    Args:
        case: objective, layout, family and policy.
        more: settings of training.
    """
    import torch

    from maskwise.masking.batch import COPIED
    from maskwise.models.loading import new_config, new_model
    from maskwise.objectives import objective, objective_class
    from maskwise.text import Rows
    from maskwise.training import MaskedSource, TrainingSettings

    name, layout, family, policy = case
    tokenizer, pieces = text()
    kind = objective_class(name)
    fields = dict(SIZES[family])
    if family in DROPOUT:
        fields[DROPOUT[family]] = 0.0
    torch.manual_seed(0)
    model = new_model(new_config(family, tokenizer, LENGTH, kind=kind.kind, **fields), seed=0)
    settings = TrainingSettings(steps=10, batch_size=ROWS, log_every=10, **more)
    masking = {**MASKING.get(name, {}), **({"policy": policy} if policy else {})}
    masker = kind.maker(tokenizer, seed=0, length=LENGTH, **masking)
    source = MaskedSource(Rows.of(pieces, layout), masker, settings)
    batches = [source.batches(number, rank=0, ranks=1)[0] for number in range(STEPS)]
    for batch in batches:
        # Training computes these on the host, too, before the batch is copied.
        for attribute in COPIED:
            getattr(batch, attribute)
    return objective(name, model), batches, source.learners(), settings


def fake(value: Any) -> Any:
    """Return fake tensors on the card in place of a tensor, or of a dict or tuple of tensors.

    Call it in a ``FakeTensorMode``, as the next two functions.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")
    if isinstance(value, dict):
        return {name: fake(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(fake(each) for each in value)
    return value


def on_card(batch: Any) -> Any:
    """Return a batch on the card."""
    from dataclasses import replace

    from maskwise.masking.batch import COPIED

    there = replace(batch)
    if batch.loss_weight is not None:
        there.loss_weight = fake(batch.loss_weight.float())
    for name in COPIED:
        setattr(there, name, fake(getattr(batch, name)))
    return there


def put_on_card(objective: Any) -> None:
    """Replace the parameters of an objective by fake ones on the card."""
    import torch

    # Tied weights stay tied.
    known: dict[int, Any] = {}
    for part in objective.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is None:
                    continue
                if id(value) not in known:
                    moved = fake(value)
                    if isinstance(value, torch.nn.Parameter):
                        moved = torch.nn.Parameter(moved, value.requires_grad)
                    known[id(value)] = moved
                tensors[name] = known[id(value)]


@contextlib.contextmanager
def training(case: tuple[str, str, str, str], more: dict[str, Any]) -> Iterator[Any]:
    """A context with the objective of a case, and an iterator of functions that make an update.

    Args:
        case: objective, layout, family and policy.
        more: settings of training.
    """
    from unittest.mock import patch

    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.optim.optimizer import _foreach_supported_types as in_optimisers
    from torch.utils._foreach_utils import _foreach_supported_types as elsewhere

    from maskwise.training.data import Step
    from maskwise.training.engine import Engine

    # Fake tensors are updated as real ones are: many with one call.
    for types in (in_optimisers, elsewhere):
        if FakeTensor not in types:
            types.append(FakeTensor)
    objective, batches, learners, settings = made(case, more)
    for learner in learners.values():
        learner.meet(objective)

    def observe(batch: Any, loss: Any) -> None:
        for learner in learners.values():
            learner.observe(batch, loss)

    def updates(engine: Any) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            counted = batch.targets if batch.counted is None else batch.counted
            sums = {"targets": batch.targets, "counted": counted}
            step = Step(number, [on_card(batch)], batch.targets, {}, counted, sums)
            yield lambda step=step: engine.update(step, observe)

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        # Fake parameters are on the card from the beginning, and cannot be replaced later.
        patch.object(torch.nn.Module, "to", lambda module, *given, **named: module),
    ):
        put_on_card(objective)
        engine = Engine(objective, settings)
        try:
            yield objective, updates(engine)
        finally:
            engine.close()


@cache
def counted_update(case: tuple[str, str, str, str], more: tuple[tuple[str, Any], ...]) -> Any:
    """Count what runs in the second update without compilation. ``more`` are settings.

    That of compiled updates is counted here, too, because nothing compiles inside a mode that
    counts, or after it.
    """
    with training(case, dict(more)) as (_, updates):
        # In the first one, optimisers make their state.
        next(updates)()
        update = next(updates)
        with counting() as found:
            update()
    return found


@contextlib.contextmanager
def in_small_chunks() -> Iterator[None]:
    """A context in which the head runs in chunks of ``CHUNK`` targets."""
    from unittest.mock import patch

    from maskwise.objectives import chunks

    # The same case has been counted with a head in one piece.
    counted_update.cache_clear()
    with patch.object(chunks, "entries", lambda device: CHUNK * SIZE["vocab_size"]):
        yield
    counted_update.cache_clear()


@contextlib.contextmanager
def counting() -> Iterator[dict[str, Any]]:
    """A context whose value has, afterwards, what ran in it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    attention = Counter[str]()
    single = Counter[str]()
    waits = Counter[str]()
    kernels = Counter[str]()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = function(*args, **(kwargs or {}))
            name = function.overloadpacket.__name__
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            # A question for the device of a tensor is no operation.
            if not function.is_view and function.namespace != "prim":
                kernels["operations"] += 1
            if "attn" in name or "attention" in name:
                attention[f"{name} {str(made[0].dtype)[6:]}"] += 1
            if name in PRODUCTS and made[0].dtype == torch.float32:
                single[f"{name} {tuple(made[0].shape)}, {place()}"] += 1
            comes_back = (
                name == "_to_copy"
                and any(x.device.type == "cuda" for x in given)
                and made[0].device.type == "cpu"
            )
            by_mask = name == "index" and any(x.dtype == torch.bool for x in given[1:])
            if name in ASKS or comes_back or by_mask:
                waits[f"{name}, {place()}"] += 1
            return result

    found: dict[str, Any] = {}
    with Counting():
        yield found
    found["attention"] = dict(attention)
    found["products_in_float32"] = dict(single)
    found["waits"] = dict(waits)
    found["operations"] = kernels["operations"]


def place() -> str:
    """Return the line of maskwise that an operation comes from."""
    frames = [f for f in traceback.extract_stack() if "/src/maskwise/" in f.filename]
    if not frames:
        return "backward"
    return f"{frames[-1].filename.rpartition('/maskwise/')[2]}:{frames[-1].lineno}"


# Compiled blocks and heads
# -------------------------------------------------------------------------------------------


def compiled_updates(
    case: tuple[str, str, str, str], more: dict[str, Any], variant: str
) -> dict[str, Any]:
    """Walk updates with compiled code, which is generated but not run.

    In the first update, blocks with documents are not compiled, because they record which masks
    they need. ``variant`` may be the name of a variant of the step.
    """
    import torch._dynamo
    from gpu_variants import Variant, changed_blocks

    from maskwise.models.families import prediction_head
    from maskwise.models.weights import parts
    from maskwise.objectives import MaskedLanguageModelling

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    generated: dict[str, list[dict[str, Any]]] = {}
    graphs = []
    found: dict[str, Any] = {}
    trial = variants().get(variant, Variant)()
    with (
        inductor(generated),
        # FlashAttention 3 is another implementation of the same operator.
        contextlib.nullcontext() if trial.missing() else trial.active(),
        changed_blocks(trial.change),
        training(case, more) as (objective, updates),
    ):
        heads = [*parts(objective, MaskedLanguageModelling)]
        found["heads"] = sum(prediction_head(head.model) is not None for head in heads)
        for update in updates:
            trial.before_step()
            update()
            graphs.append(counters["stats"].get("unique_graphs", 0))
    # The first update compiles heads, and the second one blocks.
    found["graphs"] = graphs[1]
    found["compiled_again"] = graphs[-1] - graphs[1]
    found["graph_breaks"] = dict(counters["graph_break"])
    for part, lines in generated.items():
        found[f"graphs_of_{part}"] = lines
    return found


@contextlib.contextmanager
def inductor(generated: dict[str, list[dict[str, Any]]]) -> Iterator[None]:
    """A context in which ``torch.compile`` generates code for the card, and then runs the graph.

    Args:
        generated: gets, for each kind of compiled function ("blocks", "head", "muon"), a dict for
            each graph: forward or backward, kernels of Triton, products, attention kernels, and
            bytes read and written.
    """
    from unittest.mock import patch

    import torch
    import torch._inductor.async_compile as compiler
    import torch._inductor.config as config
    from functorch.compile import make_boxed_func
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.graph import GraphLowering

    from maskwise.objectives.mlm import read_head
    from maskwise.training import wrapping
    from maskwise.training.optim import orthogonal

    names = {read_head: "head", orthogonal: "muon"}
    codes: list[tuple[str, float]] = []
    plain_codegen = GraphLowering.codegen

    def codegen(graph: Any) -> Any:
        code = plain_codegen(graph)
        moved, _, _ = graph.count_bytes()
        codes.append((getattr(code[0], "value", str(code[0])), moved))
        return code

    class Kernel:
        """In place of a kernel of Triton, which is not compiled."""

        def run(self, *given: Any, **named: Any) -> None: ...
        def precompile(self, *given: Any, **named: Any) -> None: ...

    def inner(part: str, graph: Any, inputs: Any, **named: Any) -> Any:
        before = len(codes)
        reason = ""
        try:
            compile_fx_inner(graph, inputs, **named)
        # It may end where kernels should be loaded; the code has been generated by then.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[-1500:]
        line: dict[str, Any] = {"pass": "backward" if named.get("is_backward") else "forward"}
        if len(codes) > before:
            code, moved = codes[-1]
            products = Counter(re.findall(r"extern_kernels\.(\w+)\(", code))
            called = re.findall(r"torch\.ops\.([\w.]+?)(?:\.default)?\(", code)
            line["triton_kernels"] = len(re.findall(r"\n +triton_\w+\.run\(", code))
            line["random_numbers"] = len(re.findall(r"\btl\.rand|randint", code))
            line["erf"] = len(re.findall(r"libdevice\.erf", code))
            line["products"] = dict(products)
            line["attention"] = sorted({name for name in called if "attn" in name})
            line["megabytes"] = round(moved / 1e6, 1)
        else:
            line |= {"attention": [], "failed": reason}
        generated.setdefault(part, []).append(line)
        return make_boxed_func(graph.forward)

    # Functions share compiled code only if they have the same backend.
    backends = {
        part: partial(compile_fx, inner_compile=partial(inner, part))
        for part in ("blocks", *names.values())
    }
    plain = torch.compile

    def compiled(function: Any = None, **named: Any) -> Any:
        named.pop("mode", None)
        return plain(function, **named, backend=backends[names.get(function, "blocks")])

    with (
        patch.object(torch, "compile", compiled),
        patch.object(wrapping, "require_compiler", lambda device: None),
        patch.object(GraphLowering, "codegen", codegen),
        patch.object(compiler.AsyncCompile, "triton", lambda *given, **named: Kernel()),
        patch.object(compiler.AsyncCompile, "wait", lambda self, scope: None),
        config.patch(compile_threads=1, fx_graph_cache=False, force_disable_caches=True),
    ):
        yield


if __name__ == "__main__":
    sys.exit(main())
