"""Studies of what learns: samplers over objectives, and policies over annotated layers, from recipe
to page.
"""

from __future__ import annotations

from tiny import load_json, maskwise, read_lines, records_of, write_inputs

SHORT = [
    "training.steps=8",
    "training.save_every=0",
    "training.eval_every=4",
    "training.log_every=2",
    "tasks=[]",
    "study.seeds=1",
    "study.contrasts=null",
    "corpus.held_out=0.3",
    "evaluation.rows=4",
]


def test_a_study_of_samplers_shows_what_each_spent_on_what(tmp_path):
    out = tmp_path / "out"
    arms = "study.arms={even: {sampler: sequential}, plus: {sampler: 'mometas-plus(every=2)'}}"
    more = ["objectives={mlm: , atd: , rtd: }", "sampler=uniform", arms, "study.baseline=even"]
    more += ["corpus.held_out=0.49", "corpus.length=16"]
    assert maskwise("study", write_inputs(tmp_path), *SHORT, *more, "--out", out, "--jobs", 1) == 0
    costs = {r["arm"]: r for r in records_of(out, "cost")}
    assert costs["even"]["objectives"] == {"mlm": 3, "atd": 3, "rtd": 2}
    assert costs["even"]["probe_flops"] == 0
    assert sum(costs["plus"]["objectives"].values()) == 8
    assert 0 < costs["plus"]["probe_flops"] < costs["plus"]["flops"]
    for facts in load_json(out / "study.json")["arms"].values():  # a rule is watched too
        lines = read_lines(out / facts["runs"]["0"] / "metrics.jsonl")
        last = [line for line in lines if line["kind"] == "train"][-1]
        assert set(last["probe_losses"]) == {"mlm", "atd", "rtd"} and last["probe_step"] == 8
    assert "Which objective trained" in (out / "report.html").read_text()


def test_samples_of_a_policy_that_learns_have_its_layers_and_last_weights(tmp_path):
    out = tmp_path / "out"
    arms = (
        "study.arms={words: {}, ptw: {masking.policy: pos-weighted}, types: {masking.policy: "
        "type-weighted}}"
    )
    more = ["corpus.layers=[pos]", "masking.policy=whole-word", arms, "study.baseline=words"]
    assert maskwise("study", write_inputs(tmp_path), *SHORT, *more, "--out", out, "--jobs", 1) == 0
    samples = load_json(out / "samples.json")
    # the weights of types are not kept
    assert set(samples) == {"words", "ptw"} and samples["words"]
    assert all(row["learnt"] for row in samples["ptw"]) and "learnt" not in samples["words"][0]
    assert "learned weights" in (out / "report.html").read_text()
