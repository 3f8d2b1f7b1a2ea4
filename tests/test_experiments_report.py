"""The report: its verdicts, its completeness, and that the committed file is what the records give."""

from collections import Counter

import pytest

from experiments import report, summary
from experiments.common.claims import Claim


@pytest.fixture(scope="module")
def rows():
    return report.rows()


@pytest.fixture(scope="module")
def claims():
    return report.claims()


@pytest.mark.parametrize(
    ("published", "error", "ours", "half", "verdict"),
    [
        (0.5, 0.02, 0.525, 0.01, "reproduced"),
        (0.5, 0.02, 0.51, 0.2, "same order"),  # an interval that holds anything decides nothing
        (0.5, 0.02, 1.1, 0.8, "not reproduced"),
        (0.5, 0.02, 0.54, 0.01, "same order"),
        (0.5, None, 0.26, None, "same order"),
        (0.5, 0.02, 1.1, 0.01, "not reproduced"),
        (0.5, 0.02, None, None, "not run"),
    ],
)
def test_verdicts(published, error, ours, half, verdict):
    assert report.judge(published, error, ours, half) == verdict


def test_what_diverged_in_all_runs_is_not_reproduced():
    assert report.judge(0.5, 0.02, None, None, diverged=True) == "not reproduced"
    assert report.judge(0.5, 0.02, 0.51, 0.01, diverged=True) == "reproduced"  # by the runs that finished


def test_the_committed_report_is_what_the_records_give(rows, claims):
    assert report.REPORT.read_text() == report.content(rows, claims)


def test_every_published_number_has_one_row(rows):
    counts = Counter(row.evaluation for row in rows)
    # 24 curves at 4 epochs less one beyond the edge; 2 tables of 5 methods and 6 columns; 7 methods twice; 38 times and shares
    assert counts == {"synthetic regression": 95, "collaborative filtering": 60, "images": 14, "efficiency": 76}
    assert len({(r.evaluation, r.setting, r.method, r.measure) for r in rows}) == len(rows)
    assert {r.verdict for r in rows} <= set(report.VERDICTS)
    # What defines a unit is no evidence: FOMAML's own times, the start of each rise, and MAML where it fills the memory.
    assert Counter(r.method for r in rows if r.verdict == "given") == {
        "FOMAML": 9,
        "MAML": 2,
        "A-MAML": 1,
        "iMAML": 1,
        "Reptile": 1,
    }


def test_every_claim_names_its_test_and_what_decided(claims):
    assert len({(c.evaluation, c.claim) for c in claims}) == len(claims) > 25
    assert all(c.test and c.published and (c.ours or c.verdict == "not run") for c in claims)
    assert {c.evaluation for c in claims} >= {"tradeoff", "efficiency", "images", "audit of the released code"}


def test_the_summary_shows_every_claim_and_every_number(rows, claims):
    table = report.table(rows)
    assert len(summary.claims(claims)) == len(summary.tests(claims)) == len(claims)
    counts = summary.counts(table)
    assert counts["all"].sum() == len(rows) and counts.drop(columns="all").sum().sum() == len(rows)
    assert sum(len(summary.numbers(table, name)) for name in table["evaluation"].unique()) == len(rows)
    facts = summary.facts(claims, table)
    assert sum(int(facts[name]) for name in ("holds", "part", "fails", "open")) == int(facts["claims"]) == len(claims)
    assert facts["scheme"].endswith("% off")
    made_up = Claim("x", "y", "z", "", "", "does not hold")
    assert summary.facts([*claims, made_up], table)["fails"] == str(int(facts["fails"]) + 1)


def test_the_claims_fit_on_one_screen(claims):
    shown = summary.screen(claims)
    assert list(shown.data["verdict"]) == [summary.SIGNS[c.verdict] for c in claims] and len(claims) <= 40
    evaluations, words = zip(*shown.data.index, strict=True)
    assert evaluations == tuple(c.evaluation for c in claims) and max(map(len, words)) <= 80  # a line each
    assert shown.to_html() == summary.screen(claims).to_html()  # no random names: it is committed


def test_the_hours_are_those_of_all_records():
    spent = summary.spent()
    assert spent["cells"].sum() > 900 and spent["hours"].gt(0).all()
