"""What the page says about arms, masks and missing files is true of the study: names, signs, and
differences between captions. The words themselves are in ``sentences.json``.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from maskwise.report import write_report
from maskwise.results.estimates import outcome_labels
from maskwise.verdict import summarise
from report_fixture import (
    START,
    heldout_record,
    make_records,
    make_study,
    row_of,
    with_unigram,
    write_study,
)

ARMS = {"token-15": 0.0, "token-30": 0.03}
FORMATS = ("full", "sentinels", "spans")
HIGHER = [0.52, 0.55, 0.53, 0.51, 0.54, 0.56]
LOWER = [0.50, 0.53, 0.54, 0.50, 0.51, 0.52]


def page_of(folder: Path, study: dict, records: list[dict], summary: dict | None) -> str:
    """The page as text without the code of its charts."""
    written = write_study(folder, study, records, summary=summary, samples=None)
    page = write_report(written).read_text("utf-8")
    page = re.sub(r"<(script|style|svg)\b.*?</\1>", "", page, flags=re.S)
    return html.unescape(page).replace("\u00a0", " ")


def text_of(markup: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", markup).split())


def arms_on(page: str) -> list[str]:
    """What the list of arms says, one text for every arm, without the setting in small print."""
    [listed] = re.findall(r'aria-label="The arms">(.*?)</ul>', page, flags=re.S)
    items = re.findall(r"<li>(.*?)</li>", listed, flags=re.S)
    return [text_of(re.sub(r'<small class="spec">.*?</small>', "", item)) for item in items]


def settings_on(page: str) -> list[str]:
    return [text_of(part) for part in re.findall(r'<small class="spec">(.*?)</small>', page)]


def ends_on(page: str) -> list[str]:
    """What stands at the two ends of each axis of a comparison."""
    return [text_of(part) for part in re.findall(r'<div class="ends">(.*?)</div>', page, re.S)]


def described(policy: str, ratio: str = "constant(0.15)", **facts: Any) -> dict[str, Any]:
    return {"policy": policy, "ratio": ratio, "overrides": {}, "units": "token", "runs": {}} | facts


def test_the_axis_names_the_arms_and_one_arm_is_not_its_own_baseline(tmp_path: Path) -> None:
    """The only contrast of the arm is with the unchanged model, so this is the worse end."""
    one = {"token-30": 0.03}
    changes: dict[str, Any] = {"contrasts": [["token-30", "no-pretraining"]]}
    study = make_study(runs=6, arms=one, untrained={START: "the unchanged model"}, **changes)
    records = make_records(study, one)
    page = page_of(tmp_path / "one", study, records, summarise(records, study))
    assert not any("baseline" in arm for arm in arms_on(page))
    assert ends_on(page)
    for ends in ends_on(page):
        assert "← the unchanged model is better" in ends and "token-30 is better →" in ends
    assert "1 way" not in page

    study = make_study(runs=6, arms=ARMS)
    records = make_records(study, ARMS)
    page = page_of(tmp_path / "two", study, records, summarise(records, study))
    assert ["baseline" in arm for arm in arms_on(page)] == [True, False]
    assert ends_on(page)
    for ends in ends_on(page):
        assert "← token-15 is better" in ends and "token-30 is better →" in ends


def test_an_axis_of_several_pairs_names_no_single_arm(tmp_path: Path) -> None:
    arms = {**ARMS, "token-45": 0.01}
    study = make_study(
        runs=6, arms=arms, contrasts=[["token-30", "token-15"], ["token-45", "token-30"]]
    )
    records = make_records(study, arms)
    page = page_of(tmp_path, study, records, summarise(records, study))
    first = ends_on(page)[0]
    assert not re.search(r"token-\d+ is better", first)


def test_arms_that_differ_have_different_descriptions(tmp_path: Path) -> None:
    """Arms with the same policy differ in what the decoder writes, in the setting, or both."""
    full = {"phases.1.masking.corruption": "t5(target='full')"}
    asked = "span-layer(layer='asked')"
    arms = {
        "random": described("token", judged_on=["token sentinels"]),
        "random-full": described("token", judged_on=["token full"], overrides=full),
        "oracle": described(asked, judged_on=["whole-word sentinels"]),
        "oracle-full": described(asked, judged_on=["whole-word full"], overrides=full),
        "decay": described("token", "linear(0.45, 0.15)"),
        "drawn": described("whole-word", "uniform(0, 1)"),
        "bell": described("whole-word", "bell(0.5, 0.15)"),
        "other": described("my-plug-in(x=1) or token"),
        "from-jobs": described("learned", overrides={"learning.task": "jobs"}),
        "from-schools": described("learned", overrides={"learning.task": "schools"}),
        **{take: described(f"learned(take='{take}')") for take in ("spans", "top-1", "top-5")},
        "shares": described("token", sampler="shares(1, 4)"),
        "only": described("token", sampler="single(mlm)"),
    }
    study = make_study(runs=1, tasks=1) | {"arms": arms, "baseline": "random", "contrasts": []}
    page = page_of(tmp_path, study, [], None)
    said = arms_on(page)
    words = [text.removeprefix(name) for text, name in zip(said, arms, strict=True)]
    # Only the task of two learned policies differs, and their settings show the task.
    assert len(set(words)) == len(words) - 1
    settings = settings_on(page)
    assert len(set(zip(words, settings, strict=True))) == len(words)
    for name, text, setting in zip(arms, words, settings, strict=True):
        facts = arms[name]
        assert facts.get("sampler", facts["policy"]) in setting
        if name != "bell" and name != "other":
            assert "constant(" not in text and "linear(" not in text and "=" not in text
    assert "word" not in " ".join(
        text for name, text in zip(arms, words) if name in ("spans", "top-1", "top-5")
    )
    assert "15 %" in words[0] and "45" in words[4] and "100 %" in words[5]


def test_held_out_masks_of_every_format_have_a_caption_of_their_own(tmp_path: Path) -> None:
    kinds = [f"{masks} {written}" for masks in ("salient", "token") for written in FORMATS]
    study = make_study(runs=1, tasks=0)
    losses = [heldout_record("token-15", 0, kind, 4.0) for kind in [*kinds, "salient"]]
    records = [line for loss in losses for line in with_unigram(loss)]
    page = page_of(tmp_path, study, records, None)
    section = page[page.index("Held-out loss") :]
    captions = re.findall(r"<figure><h3>(Masked.*?)</h3>", section)
    assert len(captions) == len(set(captions)) == 7
    assert not any(f"{kind} masks" in caption for kind in kinds for caption in captions)
    labels = outcome_labels(f"heldout:{kind}@0.15" for kind in kinds)
    assert len(set(labels.values())) == 6


def test_without_records_the_page_says_what_to_run(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_study(runs=6, arms=ARMS), [], None)
    assert "no records" in page and "maskwise study" in page and "--out" in page
    assert not re.search("still running|interrupted", page)
    # Nothing points to comparisons, which the page does not have.
    assert "What was compared" not in page
    assert not re.search("comparisons? above|section above", page)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_interval_is_of_the_lead_of_the_arm_that_is_ahead(swapped: bool) -> None:
    scores = {"token-15": LOWER, "token-30": HIGHER}
    ahead, behind = "token-30", "token-15"
    if swapped:
        scores = {"token-15": HIGHER, "token-30": LOWER}
        ahead, behind = behind, ahead
    row = row_of(scores)
    low, high = re.search(
        rf"95 % interval of {ahead}'s lead: (−?[\d.]+) to (−?[\d.]+)", row["sentence"]
    ).groups()
    low, high = (float(end.replace("−", "-")) for end in (low, high))
    wanted = [100 * end for end in (row["natural"]["low"], row["natural"]["high"])]
    if swapped:
        wanted = [-end for end in reversed(wanted)]
    assert [low, high] == pytest.approx(wanted, abs=0.051)
    assert row["sentence"].index(ahead) < row["sentence"].index(behind) and high > 0


def test_an_arm_that_masks_nothing_is_not_said_to_mask(tmp_path: Path) -> None:
    study = make_study(runs=2, arms=ARMS)
    records = make_records(study, ARMS)
    study["arms"]["token-15"] = described("token", judged_on=[])
    page = page_of(tmp_path, study, records, None)
    assert ["masks" in arm for arm in arms_on(page)] == [False, True]


def test_an_escaped_name_is_escaped_once(tmp_path: Path) -> None:
    study = make_study(runs=2, arms=ARMS)
    study["arms"]["token-15"] = described("function('a & b')")
    written = write_study(tmp_path, study, make_records(study, ARMS), summary=None, samples=None)
    page = write_report(written).read_text("utf-8")
    assert "&amp;amp;" not in page and "&amp;#39;" not in page
