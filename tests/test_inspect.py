"""``maskwise inspect`` and ``list``: the difference between policies is seen, and texts cannot do
harm.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from maskwise.annotate.registry import annotator
from maskwise.annotate.run import annotate_corpus
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import parse_call, read_options
from maskwise.cli import views
from maskwise.cli.views import TABLES, describe_table, names_in
from maskwise.evaluation.evaluate import measure_of
from maskwise.evaluation.measure import TextMeasure
from maskwise.masking.corruptions import corruption
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masks.inspection import STYLES, inspect_text, render_masks, write_masks
from maskwise.recipe import read_recipe, shipped
from maskwise.samplers import sampler
from maskwise.tasks import KINDS, load_task
from maskwise.text import train_tokenizer
from tiny import maskwise

TEXT = "Unbelievably, hedgehogs photographed Wolverhampton: campaigns for endangered species"
PLAIN = {"ratio": "0.3", "budget": "expected", "corruption": "bert", "fill": "none", "seed": 0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Short pieces, so that words have several."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = train_tokenizer([TEXT] * 3, vocab_size=64, lowercase=False)
    made.add_special_tokens({"additional_special_tokens": [f"<extra_id_{n}>" for n in range(50)]})
    made.save_pretrained(folder)
    return str(folder)


def look(text, policies, tokenizer, step=None, texts=None, **more):
    return inspect_text(
        text,
        policies,
        {**PLAIN, **more},
        tokenizer=tokenizer,
        step=step,
        total_steps=None if step is None else 100,
        texts=texts,
    )


def test_the_usual_tokenizer_of_words_has_sentinels():
    [first], [second] = (
        inspect_text(TEXT, "token", {"corruption": "t5"}, tokenizer=name) for name in (None, "")
    )
    assert first == second and first.tokenizer == "bundled:tokenizer"
    assert "<extra_id_0>" in first.target


def test_the_pieces_are_the_text(tokenizer):
    text = f"  {TEXT}\n[MASK] ünïcode 👩‍🚀"
    with pytest.warns(UserWarning, match=r"contain \[MASK\], .* plain text"):
        entries = look(text, "token,whole-word,span(p=0.5)", tokenizer, seed=1)
    for entry in entries:
        assert "".join(piece.text for piece in entry.pieces) == entry.text.rstrip()
        states = {piece.state for piece in entry.pieces}
        assert {"shown", "masked"} <= states <= set(STYLES)
        assert all(bool(piece.shown) == (piece.state == "random") for piece in entry.pieces)


def test_whole_words_are_masked_whole(tokenizer):
    tokens, words = look(TEXT, "token,whole-word", tokenizer)
    assert tokens.words_in_part > 5 and words.words_in_part == 0 < words.whole_words
    assert 0.2 < words.ratio < 0.4 and 0.25 < tokens.ratio <= 0.3  # of words at most one unit more


def test_the_ratio_follows_the_schedule(tokenizer):
    start, end = (
        look(TEXT, "token", tokenizer, ratio="linear(0.4, 0.1)", step=s)[0].ratio for s in (0, 100)
    )
    assert start == pytest.approx(0.4, abs=0.02) and end == pytest.approx(0.1, abs=0.02)


def test_sequence_to_sequence_shows_what_is_read_and_written(tokenizer):
    [entry] = look(TEXT, "whole-word", tokenizer, corruption="t5")
    assert "<extra_id_0>" in entry.source and entry.target.startswith("<extra_id_0>")
    facts = entry.as_dict()
    assert facts["source"] and facts["target"] and facts["words_in_part"] == 0


def test_permuted_sentences_are_seen():
    """Any text has sentences; the tokens are as they were, elsewhere, so reading and writing are
    shown.
    """
    text = "One fox. Two dogs. Three hens. Four cats."
    [entry] = look(text, "sentence", None, corruption="permute-sentences", ratio="1.0")
    assert entry.source != entry.target and text.lower() in entry.target
    assert sorted(entry.source.split()) == sorted(entry.target.split())
    assert {piece.state for piece in entry.pieces} == {"kept"} and not entry.note


def printed(found, *, colours):
    file = io.StringIO()
    system = "truecolor" if colours else None
    Console(file=file, width=200, force_terminal=colours, color_system=system).print(
        render_masks(found, colours=colours)
    )
    return file.getvalue()


def test_a_text_cannot_steer_the_terminal_or_the_page(tokenizer, tmp_path):
    evil = "<script>alert(1)</script> [red]markup[/red] \x1b[2J wipes the screen"
    found = look(evil, "token", tokenizer, ratio="0.0")
    plain = printed(found, colours=False)
    assert "\x1b" not in plain and "[red]markup[/red]" in plain
    write_masks(found, tmp_path / "deep" / "masks.html")
    page = (tmp_path / "deep" / "masks.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_text_from_right_to_left_is_set_so_on_the_page(tokenizer, tmp_path):
    found = look("שלום, \u200fעולם", "token", tokenizer, ratio="0.0")
    write_masks(found, tmp_path / "masks.html")
    page = (tmp_path / "masks.html").read_text(encoding="utf-8")
    assert '<p dir="auto">שלום' in page and "\u200fעולם" in page


def test_why_nothing_is_chosen_is_said_in_the_terminal_and_on_the_page(tokenizer, tmp_path):
    for ratio in ("0.0", "0.3"):
        found = look(TEXT, "token", tokenizer, ratio=ratio)
        write_masks(found, tmp_path / "masks.html")
        page = (tmp_path / "masks.html").read_text(encoding="utf-8")
        words = ["nothing is masked" in told for told in (printed(found, colours=False), page)]
        assert words == [ratio == "0.0"] * 2


def test_unknown_tokens_are_the_reason_if_most_are_unknown(tokenizer):
    [shown] = look("Москва и реки, Москва и реки", "token", tokenizer, ratio="0.1")
    assert shown.eligible == 1 and "most tokens are unknown" in shown.note
    [shown] = look("the cat sat", "token", tokenizer, ratio="0.0")
    assert "--ratio" in shown.note


def test_a_random_token_of_bytes_is_shown_as_text(tmp_path):
    text = " ".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    train_tokenizer([text] * 2, kind="bpe", vocab_size=900).save_pretrained(tmp_path)
    settings = {"ratio": 1.0, "corruption": "bert(mask=0, random=1)"}
    [shown] = inspect_text(text, "token", settings, tokenizer=str(tmp_path))
    replaced = [piece.shown for piece in shown.pieces if piece.state == "random"]
    assert sum(token in text for token in replaced) > 9
    assert all(token and token.isprintable() for token in replaced)


def test_inspect_imports_neither_torch_nor_transformers():
    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails
from maskwise.cli import main
policies = "token,whole-word,span,t5-span,salient,frequency,mixture(token,span)"
sys.exit(main(["inspect", "The cat sat in [[Warsaw]].", "--policy", policies, "--ratio", "0.4"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "salient" in done.stdout, done.stderr


def test_a_file_is_inspected_text_by_text(tokenizer, tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(f"Document number {n} is about hedgehogs." for n in range(9)))
    assert maskwise("inspect", path, "--tokenizer", tokenizer, "--policy", "token", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["text"][:17] for entry in found] == [f"Document number {n}" for n in range(5)]
    # The number of texts is used for a file, and refused for a text.
    assert len(look(str(path), "token", tokenizer, texts=7)) == 7
    with pytest.raises(MaskwiseError, match="a number of texts is given for one text"):
        look(TEXT, "token", tokenizer, texts=7)
    # A folder is not inspected as the text of its own name.
    assert [entry.text for entry in look(str(tmp_path), "token", tokenizer)] == [
        entry["text"] for entry in found
    ]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--policy", "phrase"], "needs the layer 'phrase'"),
        (["--policy", "whole-wrd"], "did you mean 'whole-word'"),
        (["--policy", "span(p=2)"], "span"),
        (["--ratio", "1.5"], "1.5"),
        (["--corruption", "nonsense"], "unknown corruption"),
        (["--budget", "roughly"], "unknown budget"),
        (["--tokenizer", "/nowhere/at/all"], "there is no model or tokenizer"),
        (["--step", "many"], "--step"),
        (["--policy", ","], "no policy"),
        (["--html", ""], "is a folder"),
        (["--html", "/"], "is a folder"),
        (["--nonsense"], "--nonsense"),
        (
            ["--policy", "group-weighted(layer='salient')"],
            "'salient' has spans; use layer='pos'",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, said, capfd):
    assert maskwise("inspect", "A text.", *arguments) == 2
    out, err = capfd.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_roles_of_a_tokenizer_may_come_from_its_class(tokenizer, tmp_path):
    folder = shutil.copytree(tokenizer, tmp_path / "t")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    [given], [plain] = look(TEXT, "token", str(folder)), look(TEXT, "token", tokenizer)
    assert given.ratio == pytest.approx(plain.ratio, abs=0.1)


CUT = '{"version": "1.0", "trunc'


@pytest.mark.parametrize(
    "file, old, new, said",
    [
        ("tokenizer.json", r"[\s\S]+", CUT, "cannot load tokenizer"),
        ("tokenizer_config.json", r"[\s\S]+", CUT, "cannot load tokenizer"),
        ("tokenizer_config.json", r"[\s\S]+", "[]", "cannot load tokenizer"),
        ("tokenizer.json", r'("\[MASK\]"): 4', r"\1: 2147483648", "a token id that is too large"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(file, old, new, said, tokenizer, tmp_path, capfd):
    damaged = shutil.copytree(tokenizer, tmp_path / "t") / file
    damaged.write_text(re.sub(old, new, damaged.read_text("utf-8"), count=1), "utf-8")
    assert maskwise("inspect", TEXT, "--tokenizer", tmp_path / "t") == 2
    out, err = capfd.readouterr()
    assert said in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no text"),
        ("nowhere.txt", "does not exist"),
        (" \n", "no text"),
        # What Python makes of an argument in Latin-1.
        ("caf\udce9", "not valid UTF-8"),
    ],
)
def test_no_text(text, said, capfd):
    assert maskwise("inspect", text) == 2
    assert said in capfd.readouterr().err


def test_a_text_without_tokens_has_no_masks(tmp_path):
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(tmp_path)
    found = inspect_text("\u200b", "token", {"ratio": "0.15"}, tokenizer=str(tmp_path))
    assert [row.whole_words for row in found] == [0]


@pytest.mark.parametrize("what", list(TABLES))
def test_lists(what, capsys):
    assert maskwise("list", what, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(names_in(what))
    assert all(row["what"] for row in rows), "everything listed says what it is"
    for row in rows:
        assert (row["name"] in row["example"] and row["what"][-1] in ".?!") or what in (
            "tasks",
            "cards",
        )
    assert maskwise("list", what) == 0
    assert all(name in capsys.readouterr().out for name in list(names_in(what))[:1])


def test_examples_of_the_catalogue_are_right(tmp_path, monkeypatch):
    """What an example writes is read as a recipe would read it."""
    readers = {
        "policies": policy,
        "schedules": schedule,
        "corruptions": corruption,
        "annotators": annotator,
        "samplers": lambda call: sampler(call, ["mlm", "atd"]),
        "measures": measure_of,
    }
    # Files and folders of the user.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_texts.conllu").write_text(
        "# text = Owls fly.\n1\tOwls\t_\tNOUN" + "\t_" * 6 + "\n\n"
    )
    (tmp_path / "my_spans.jsonl").write_text('{"text": "Owls fly.", "spans": [[0, 4]]}\n')
    (tmp_path / "my_texts.txt").write_text("\n".join(f"Owl {n} flies." for n in range(9)))
    fact = {"obj_label": "owl", "masked_sentences": ["An [MASK] flies."]}
    (tmp_path / "my_facts.jsonl").write_text(json.dumps(fact) + "\n")
    annotate_corpus(["Owls fly."], ["words"], "FOLDER")
    for what, read in readers.items():
        for row in describe_table(what):
            name = row["name"]
            call = re.search(rf"{re.escape(name)}(?:\(.*\))?(?=\"|$)", row["example"])
            # Learning takes long, and the vectors of ``difference`` are counted in a corpus.
            if name not in ("learned", "difference"):
                read(call[0])
    for row in describe_table("measures"):
        of_text = isinstance(measure_of(shlex.split(row["example"])[4]), TextMeasure)
        assert ("--text" in row["example"]) == of_text
    for row in describe_table("metrics"):
        spec = shlex.split(row["example"])[-1]
        _, options = read_options(spec, load_task, kind="task", example="")
        assert options["metric"] in KINDS[options["kind"]].metrics


@pytest.mark.parametrize(
    ("what", "name", "found"),
    [
        ("keys", "masking", "masking.ratio"),
        ("keys", "masking.ratio", "masking.ratio"),
        ("policies", "span", "span"),
    ],
)
def test_a_list_of_one_name_or_section(what, name, found, capsys):
    assert maskwise("list", what, name, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert found in [row["name"] for row in rows]
    assert all(f"{row['name']}.".startswith(f"{name}.") for row in rows)
    assert maskwise("list", what, f"{name}x") == 2
    assert "did you mean" in capsys.readouterr().err


def test_annotators_are_listed_with_their_models():
    rows = {row["name"]: row["arguments"] for row in describe_table("annotators")}
    assert "model=None" in rows["pos"] and "model=None" in rows["salient"]


@pytest.mark.parametrize(
    ("written", "quoted"),
    [
        ("pairs(bundled:pairs)", "pairs('bundled:pairs')"),
        ("cloze(my/facts.jsonl, items=5)", "cloze('my/facts.jsonl', items=5)"),
        ("pos(model=~/tagger, salient=True)", "pos(model='~/tagger', salient=True)"),
    ],
)
def test_a_text_without_quotes_is_shown_with_them(written, quoted):
    with pytest.raises(MaskwiseError, match=f"quotes: {re.escape(quoted)}$"):
        parse_call(written)
    assert str(parse_call(quoted)) == quoted


@pytest.mark.parametrize("written", ["0.3,0.15", "linear(0.3, -0.1", "linear 0.3 0.15", "f(1.5 2)"])
def test_numbers_are_not_put_in_quotes(written):
    with pytest.raises(MaskwiseError) as caught:
        parse_call(written)
    assert caught.value.do is None


def test_the_examples_of_policies_mask_their_sentence(capsys):
    for row in describe_table("policies"):
        if row["name"] == "learned":  # the folder is the user's
            assert "learned('FOLDER')" in row["example"]
            continue
        assert maskwise(*shlex.split(row["example"])[1:], "--json") == 0
        [found] = json.loads(capsys.readouterr().out)
        assert found["ratio"] > 0, row["example"]


def test_lists_show_no_address(capsys):
    for what in set(TABLES) - {"tasks"}:
        assert maskwise("list", what, "--json") == 0
        assert " at 0x" not in capsys.readouterr().out
    assert maskwise("list", "policies", "--json") == 0
    [arguments] = [
        m["arguments"] for m in json.loads(capsys.readouterr().out) if m["name"] == "group-weighted"
    ]
    assert arguments.endswith("faithful=False")


def test_a_text_of_unknown_tokens_does_not_blame_the_ratio():
    with pytest.warns(UserWarning, match="unknown"):
        [entry] = inspect_text("☃☃☃ ☀☀ ☁☁", "token", PLAIN)
    assert "unknown" in entry.note and "ratio" not in entry.note
    [short] = inspect_text("cat", "token", {**PLAIN, "ratio": "0.01", "min_targets": 0})
    assert "ratio" in short.note and "eligible" not in short.as_dict()


def test_recipes_are_recommended_for_the_command_that_they_are_for():
    """``study`` was recommended for recipes of one arm, one of them of 20,000 steps."""
    commands = {row["name"]: row["example"].split()[1] for row in describe_table("recipes")}
    for name in shipped():
        study = read_recipe(name).study
        several = len(study.arms) > 1 or bool(study.contrasts)
        assert commands[name] == ("study" if several else "pretrain"), name
    assert commands["one-gpu"] == "pretrain" and commands["quick-start"] == "study"


def test_a_new_name_with_an_argument_that_no_example_knows_is_listed(monkeypatch):
    def by_moon(phase: float, tide: float = 1.0) -> None:
        """Masks more at full moon."""

    monkeypatch.setitem(views.TABLES, "moons", lambda: {"by-moon": by_moon})
    monkeypatch.setitem(views.EXAMPLES, "moons", "maskwise inspect --policy {call}")
    (row,) = describe_table("moons")
    assert row["example"] == "maskwise inspect --policy by-moon(PHASE)"
