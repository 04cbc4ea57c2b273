"""The shipped tagger, salient spans by its tags, other pipelines, gold columns, and texts that are
hard to tag.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import spacy
from annotate import bundled, join_tokens, named_set, overlap_scores, tag_accuracy
from spacy.training import Example

from maskwise.annotate import tagger as tagger_module
from maskwise.annotate.registry import SPANS, annotator
from maskwise.annotate.tagger import SALIENT, SpacyPipeline, one_pass
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import bundled_file
from maskwise.text.conll import POS, read_conllu
from maskwise.text.layers import CharSpans, Layer, check_spans, given_spans

SHIPPED = bundled_file("tagger-en")
GOLD = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def tagger() -> SpacyPipeline:
    return SpacyPipeline()


def shown(text: str, spans: CharSpans, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    assert spans.value is not None
    rows = zip(spans.start.tolist(), spans.end.tolist(), spans.value.tolist())
    return [(text[a:b], labels[code - 1]) for a, b, code in rows]


def tags(made: SpacyPipeline, text: str) -> list[tuple[str, str]]:
    return shown(text, made.annotate([text])[0]["pos"], POS.labels)


def salient(made: SpacyPipeline, text: str) -> list[tuple[str, str]]:
    return shown(text, made.annotate([text])[0]["salient"], SALIENT.labels)


def test_tags_of_a_sentence(tagger: SpacyPipeline) -> None:
    found = tags(tagger, "She  bought three\nold houses in Berlin.")
    words = ["She", "bought", "three", "old", "houses", "in", "Berlin", "."]
    kinds = ["PRON", "VERB", "NUM", "ADJ", "NOUN", "ADP", "PROPN", "PUNCT"]
    assert found == list(zip(words, kinds))


def test_matrix_products_are_numpys() -> None:
    """BLIS, spaCy's default, takes nearly three times as long."""
    assert spacy.load(SHIPPED).get_pipe("tok2vec").model.ops.use_blis
    models = [part.model for _, part in SpacyPipeline().nlp.pipeline]
    assert not any(node.ops.use_blis for model in models for node in model.walk())


def test_accuracy_on_the_bundled_part_of_the_ewt_test(tagger: SpacyPipeline) -> None:
    found = tag_accuracy(tagger, bundled()[::4])
    assert found["raw"] > 0.92 and found["gold_tokens"] > 0.91 and found["words"] > 1500


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("He met Marie Curie in Paris.", [("Marie Curie", "name"), ("Paris", "name")]),
        ("He speaks Korean in the United States.", [("Korean", "name"), ("United States", "name")]),
        (
            "They left on 3 May 1999, at 10:30 pm sharp.",
            [("3 May 1999", "date"), ("10:30 pm", "date")],
        ),
        ("It was built in the 1990s.", [("1990s", "date")]),
        (
            "It cost $5.2 million, or 30 percent.",
            [("$5.2 million", "number"), ("30 percent", "number")],
        ),
        ("There were 12 men and twenty women.", [("12", "number"), ("twenty", "number")]),
        ("It was one of 3, not 1,200.", [("3", "number"), ("1,200", "number")]),
        ("The old house is small.", []),
        ("Paris\nLondon", [("Paris", "name"), ("London", "name")]),
        (
            "He was at the University of Oxford with Charles de Gaulle.",
            [("University of Oxford", "name"), ("Charles de Gaulle", "name")],
        ),
        ("It cost [$5].", [("$5", "number")]),
        ("", []),
    ],
)
def test_salient_spans(tagger: SpacyPipeline, text: str, spans: list[tuple[str, str]]) -> None:
    assert salient(tagger, text) == spans


def test_both_layers_are_those_of_each_alone_and_of_any_batch(tagger: SpacyPipeline) -> None:
    texts = ["Anna saw Bob in May 2001.", "", "  \n ", "No names here.", "Rome " * 50] * 3
    both = tagger.annotate(texts)
    for name in ("pos", "salient"):
        alone = annotator(name)
        expected = [{name: layers[name]} for layers in both]
        np.testing.assert_equal(alone.annotate(texts), expected)
        np.testing.assert_equal([alone.annotate([text])[0] for text in texts], expected)


def test_emoji_and_stray_marks_are_no_names(tagger: SpacyPipeline) -> None:
    texts = ["I love it 😀👍🏽 so much!", "👩‍👩‍👧 family 🇩🇪", "no.1 vs. No. 7", "nul \x00 here"]
    for text in texts:
        assert all(any(map(str.isalnum, span)) for span, _ in salient(tagger, text)), text


HARD = {
    "empty": "",
    "spaces": " \n\t\u2028 ",
    "control characters": "a\0b \x01\x1b c",
    "halves of surrogate pairs": "John \ud83d met Mary \udc00.",
    "emoji, marks, CJK, NBSP, URL": "👩‍👩‍👧 e\u0301té\u00a0王賞 https://a.b/c?d=1 \u200b.",
    "a word of 100,000 letters": "x" * 100_000,
    "10,000 brackets": "(" * 10_000,
    "any code points": "".join(map(chr, range(0, 0x110000, 601))),
}


@pytest.mark.parametrize("name", HARD)
def test_no_text_stops_it(tagger: SpacyPipeline, name: str) -> None:
    text = HARD[name]
    found = tagger.annotate([text])[0]
    for layer, kind in tagger.layers.items():
        check_spans(found[layer], kind, len(text))
    covered = np.zeros(len(text), dtype=bool)
    for start, end, _ in zip(*found["pos"]):
        covered[start:end] = True
    assert all(covered[i] for i, char in enumerate(text) if not char.isspace() and char.isalnum())


def test_long_texts_are_cut_where_nothing_is_lost(
    tagger: SpacyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of pieces is in memory together: of 200,000 characters each it took 4.5 GB."""
    text = "Anna went to Rome. She saw 12 cats.\n\n" * 40
    whole = tagger.annotate([text])
    monkeypatch.setattr(tagger_module, "PIECE_CHARACTERS", 200)
    pieces = [text[begin:end] for begin, end in tagger_module._pieces(text)]
    assert "".join(pieces) == text and max(map(len, pieces)) <= 200 and len(pieces) > 5
    assert all(piece.endswith("\n\n") for piece in pieces)
    np.testing.assert_equal(tagger.annotate([text]), whole)


def test_version_names_model_layers_and_rules(
    tagger: SpacyPipeline, tmp_path: Path, monkeypatch
) -> None:
    spacy.load(SHIPPED).to_disk(tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("changed")
    others = [SpacyPipeline(["pos"]), SpacyPipeline(model=str(tmp_path / "other"))]
    assert tagger.version == SpacyPipeline().version
    versions = {tagger.version, *(other.version for other in others)}
    monkeypatch.setattr(tagger_module, "VERSION", "salient-0")
    assert len({*versions, SpacyPipeline().version}) == 4


def test_pos_and_salient_of_one_pipeline_are_one_pass() -> None:
    assert one_pass(["words", "salient", "pos"]) == ["words", "pos(salient=True)"]
    # as it was written
    assert one_pass(["pos", 'salient(model="m")']) == ["pos", 'salient(model="m")']
    assert list(annotator("pos(salient=True)").layers) == ["pos", "salient"]


def test_another_pipeline_by_its_tags(tmp_path: Path) -> None:
    """Universal tags in `tag_`, as pipelines trained on UD have them, and OntoNotes' kinds of
    entities.
    """
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    example = Example.from_dict(nlp.make_doc("a b ."), {"tags": ["NOUN", "NOUN", "PUNCT"]})
    nlp.initialize(lambda: [example])
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns(
        [{"label": "DATE", "pattern": "yesterday"}, {"label": "ORG", "pattern": "acme"}]
    )
    nlp.to_disk(tmp_path / "small")
    made = SpacyPipeline(model=str(tmp_path / "small"))
    assert {tag for _, tag in tags(made, "acme fell yesterday")} <= {"NOUN", "PUNCT"}
    assert salient(made, "acme fell yesterday") == [("acme", "name"), ("yesterday", "date")]


def test_pipelines_that_do_not_serve(tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    spacy.blank("en").to_disk(blank)
    spacy.blank("en").to_disk(tmp_path / "broken")
    (tmp_path / "broken" / "config.cfg").write_text("[nlp]\nlang = 3\n")
    for model, message in (
        ("en_core_web_xx", "'en_core_web_xx' is installed.*spacy download en_core_web_xx"),
        ("__main__", "no spaCy pipeline '__main__' is installed"),
        (str(blank), "blank gives no universal parts of speech"),
        (str(tmp_path / "broken"), "cannot load the spaCy pipeline"),
    ):
        with pytest.raises(MaskwiseError, match=message):
            SpacyPipeline(model=model).annotate(["x"])


CONLLU = """\
# newdoc id = one
# sent_id = 1
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\t_\t_\t_\t_\t_\t_
2\tn't\tnot\tPART\t_\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\t_\t_\t_\t_\t_\tSpaceAfter=No
3.1\tnow\tnow\tADV\t_\t_\t_\t_\t_\t_
4\t!\t!\tPUNCT\t_\t_\t_\t_\t_\t_

# newpar
1-2\tim\t_\t_\t_\t_\t_\t_\t_\t_
1\tI\tI\tPRON\t_\t_\t_\t_\t_\t_
2\tam\tbe\tAUX\t_\t_\t_\t_\t_\t_

# newdoc id = two
1\tYes\tyes\tINTJ\t_\t_\t_\t_\t_\t_
"""


def test_conllu_brings_its_own_tags(tmp_path: Path) -> None:
    path = tmp_path / "x.conllu"
    path.write_text(CONLLU)
    one, two = read_conllu(path)
    assert (one.id, one.text, two.id, two.text) == ("one", "Don't go!\nim", "two", "Yes")
    assert shown(one.text, one.layers["pos"], POS.labels) == [
        ("Do", "AUX"),
        ("n't", "PART"),
        ("go", "VERB"),
        ("!", "PUNCT"),
        ("im", "PRON"),
    ]
    path.write_text(CONLLU.replace("INTJ", "UH"))
    with pytest.raises(MaskwiseError, match="not a universal part of speech; got UH"):
        list(read_conllu(path))
    path.write_text("1\tx\n")
    with pytest.raises(MaskwiseError, match=r"line 1 of .*10 columns"):
        list(read_conllu(path))


def test_columns_entities_and_running_text(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text(
        'In O\nNew B-LOC\nYork I-LOC\nJohn B-PER\n( O\n" O\nx O\n" O\n) O\n. O\n\nHi O\n'
    )
    texts, names = named_set(path)
    assert texts == ['In New York John ("x").', "Hi"]
    assert [texts[0][a:b] for a, b in names[0]] == ["New York", "John"] and names[1] == []
    tokens = ["It", "is", "n't", '"', "so", '"', "yet"]
    text, offsets = join_tokens(tokens)
    assert text == 'It isn\'t "so" yet' and [text[a:b] for a, b in offsets] == tokens


def test_given_spans() -> None:
    layer = Layer("spans", ("who", "city"))
    found = given_spans([[7, 12, "city"], [0, 4, "who"], [5, 6, None]], layer)
    assert found.start.tolist() == [0, 5, 7] and found.value.tolist() == [1, 0, 2]
    assert given_spans([[0, 4]], SPANS).value is None
    for span, kind in (
        (["a", 2], SPANS),
        ([0, 4, "who"], SPANS),
        ([True, 2], SPANS),
        ([0, 2**31], SPANS),
        ([0, 2, "x"], layer),
        ([0, 2], layer),
        (3, SPANS),
    ):
        with pytest.raises(MaskwiseError, match=r"span|label"):
            given_spans([span], kind)


def test_overlap_scores_by_hand() -> None:
    """Two gold names. One is met by a name with other borders, one by a date only; one name is met
    by nothing.
    """
    found = CharSpans.of([(0, 6, 1), (10, 14, 2), (20, 25, 1)], SALIENT)
    scores = overlap_scores(
        ["x" * 30], [[(3, 9), (10, 14)]], lambda texts: [{"salient": found}] * len(texts)
    )
    assert scores["names"] == {"spans": 2, "recall": 0.5, "precision": 0.5, "exact_f1": 0.0}
    assert scores["all"] == {"spans": 3, "recall": 1.0, "precision": 0.6667, "exact_f1": 0.4}


def test_the_card_and_the_files_are_there() -> None:
    card = (SHIPPED / "README.md").read_text()
    assert "CC BY-SA 4.0" in card and "WNUT-17" in card
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert not [path for path in files if path.suffix in (".pkl", ".py")]
    assert json.loads((SHIPPED / "meta.json").read_text())["license"] == "CC BY-SA 4.0"


def test_words_that_were_met_do_not_stay_in_memory_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = SpacyPipeline(["pos"])
    texts = [" ".join(f"{chr(97 + i)}word{j}" for j in range(50)) for i in range(20)]
    before = made.annotate(texts)
    monkeypatch.setattr(tagger_module, "MAX_NEW_WORDS", 100)
    nlp = made.nlp
    after = made.annotate(texts)
    assert made.nlp is not nlp  # and the old one can go
    for old, new in zip(before, after):
        np.testing.assert_array_equal(old["pos"].value, new["pos"].value)
