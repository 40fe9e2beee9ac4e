"""The verdict is by non-inferiority with Holm's correction,
and its reasons say what would settle it.
"""

import factories
import pytest
from factories import compare_int8, with_task

from model_serve_flow.compare.stats.paired import Interval, items_to_settle, share_at_most
from model_serve_flow.compare.tiers import Tiers
from model_serve_flow.compare.verdict import decide, with_items_to_settle
from model_serve_flow.flow.results.compared import Difference
from model_serve_flow.report.tables import reading


def difference(p, change=0.0, half_width=3.0, **fields):
    """A task's difference with this non-inferiority p-value."""
    values = {
        "n": 200,
        "base": 70.0,
        "candidate": 70.0 + change,
        "difference": change,
        "ci95": (change - half_width, change + half_width),
        "unit": "points",
        "higher_is_better": True,
        "method": "score",
        "margin": 3.1,
        "noninferiority_p": p,
    }
    return Difference(**{**values, **fields})


def test_good_candidate_ships_and_bad_one_does_not():
    comparison = factories.sample_comparison()
    assert [candidate.verdict for candidate in comparison.candidates] == ["SHIP", "DO NOT SHIP"]
    good, bad = (candidate.reasons for candidate in comparison.candidates)
    assert good[0].startswith("The average score over 1 task")
    assert "within the accepted drop of 3.0 points (Holm-adjusted p = 0.024)" in good[0]
    assert (
        "McNemar p = 1.000): within the accepted drop of 5.0 points (Holm-adjusted p = 0.001)"
        in good[1]
    )
    assert "beyond the accepted drop of 3.0 points" in bad[0]
    assert any("mmlu_dev cannot decide" in reason for reason in good)
    assert not any("settle" in reason for reason in (*good, *bad))


def test_one_test_that_would_pass_alone_does_not_pass_among_several():
    alone = {"a": {"acc": difference(0.02)}}
    assert decide(alone, difference(0.001))[0] == "SHIP"
    among = {**alone, "b": {"acc": difference(0.02)}, "c": {"acc": difference(0.0001)}}
    verdict, reasons, _ = decide(among, difference(0.001))
    assert verdict == "INCONCLUSIVE"
    assert reasons[0].startswith("a changed by +0.0 points")
    assert (
        "not clearly within the accepted drop of 3.1 points (Holm-adjusted p = 0.040)" in reasons[0]
    )
    needed = items_to_settle(200, Interval(0.0, -3.0, 3.0), 3.1, tests=3)
    assert f"About {needed:,} items would settle it." in reasons[0]
    assert needed > 200


def test_one_loss_that_would_fail_alone_does_not_fail_among_several():
    alone = {"a": {"acc": difference(0.98, -6.2)}}
    assert decide(alone, difference(0.001))[0] == "DO NOT SHIP"
    among = {**alone, "b": {"acc": difference(0.0001)}}
    assert decide(among, difference(0.001))[0] == "INCONCLUSIVE"
    surely = {"a": {"acc": difference(0.99, -6.5)}, "b": {"acc": difference(0.0001)}}
    verdict, reasons, _ = decide(surely, difference(0.001))
    assert verdict == "DO NOT SHIP"
    assert "beyond the accepted drop of 3.1 points (Holm-adjusted p = 0.020)" in reasons[0]


@pytest.mark.parametrize(
    ("p", "verdict"), [(0.03, "INCONCLUSIVE"), (0.02, "SHIP"), (0.98, "DO NOT SHIP")]
)
def test_suite_decides_at_its_own_level(p, verdict):
    assert (
        decide({"a": {"acc": difference(0.001)}, "b": {"acc": difference(0.001)}}, difference(p))[0]
        == verdict
    )


def test_near_chance_tasks_and_other_metrics_are_not_in_the_family():
    silent = difference(0.6, near_chance=True, chance=25.0)
    tasks = {"a": {"acc": difference(0.02), "acc_norm": difference(0.02)}, "mmlu": {"acc": silent}}
    verdict, reasons, _ = decide(tasks, difference(0.001))
    assert verdict == "SHIP"
    assert reasons[-1].startswith("mmlu cannot decide")


def test_a_task_too_weak_to_lose_its_margin_is_named_and_counts_for_nothing():
    weak = difference(
        0.0001,
        base=1.0,
        candidate=1.1,
        too_weak=True,
        base_low=0.6,
        retention=0.95,
        retention_p=0.4,
    )
    verdict, reasons, _ = decide(
        {"a": {"acc": difference(0.02)}, "gsm8k": {"acc": weak}}, difference(0.001)
    )
    assert verdict == "SHIP"
    assert reasons[-1] == (
        "gsm8k cannot decide: the base scores 1.0 points (lower bound 0.6, n = 200), too close to "
        "guessing (0.0 points) to lose the accepted 3.1."
    )
    assert decide({"gsm8k": {"acc": weak}}, None)[:2] == ("INCONCLUSIVE", (
        "No task can decide, so none speaks for the candidate.", reasons[-1]))  # fmt: skip


def test_ship_is_withheld_where_a_weak_task_shows_a_loss():
    gone = difference(
        0.0001,
        base=1.0,
        candidate=0.0,
        too_weak=True,
        base_low=0.6,
        retention=0.95,
        retention_p=0.98,
    )
    verdict, reasons, _ = decide(
        {"a": {"acc": difference(0.0001)}, "gsm8k": {"acc": gone}}, difference(0.001)
    )
    assert verdict == "INCONCLUSIVE"
    assert reasons[0].endswith(
        "But the candidate scores 0.0 there, clearly less than 95 % of the base's score above "
        "guessing (p = 0.020): SHIP is withheld."
    )
    assert sum("gsm8k" in reason for reason in reasons) == 1


@pytest.mark.parametrize(
    ("retention_p", "verdict", "place"),
    [
        (0.01, "SHIP", "within"),
        (0.3, "INCONCLUSIVE", "not clearly within"),
        (0.99, "DO NOT SHIP", "beyond"),
    ],
)
def test_a_task_must_also_keep_its_share_of_the_score(retention_p, verdict, place):
    task = difference(
        0.0001,
        -1.0,
        base=36.0,
        chance=25.0,
        retention=0.9,
        retention_p=retention_p,
        retention_limit=1.1,
    )
    found, reasons, _ = decide({"a": {"acc": task}}, difference(0.001))
    assert found == verdict
    accepted = (
        f"{place} the accepted drop of 1.1 points, 10 % of what the base scores above guessing, (p"
    )
    assert any(accepted in reason for reason in reasons)


def test_an_advisory_task_is_shown_and_decides_nothing():
    tiers = Tiers(advisory=("bad",))
    tasks = {
        "a": {"acc": difference(0.02)},
        "bad": {"acc": difference(0.9999, -9.0, tier="advisory")},
    }
    assert decide(tasks, difference(0.001))[0] == "DO NOT SHIP"
    verdict, reasons, _ = decide(tasks, difference(0.001), tiers)
    assert verdict == "SHIP" and not any("bad" in reason for reason in reasons)
    filled, _ = with_items_to_settle(tasks, difference(0.001), tiers)
    assert filled["a"]["acc"].adjusted_p == (0.02, 0.98)  # a family of one
    assert reading(filled["bad"]["acc"]) == "advisory, decides nothing: beyond margin"


def test_a_required_task_that_is_missing_or_cannot_decide_withholds_ship():
    tiers = Tiers(required=("gsm8k", "mmlu"))
    tasks = {
        "a": {"acc": difference(0.0001)},
        "mmlu": {"acc": difference(0.6, near_chance=True, chance=25.0)},
    }
    verdict, reasons, _ = decide(tasks, difference(0.001), tiers)
    assert verdict == "INCONCLUSIVE"
    assert reasons[:2] == (
        "gsm8k is required, but it was not measured: SHIP is withheld.",
        "mmlu is required, but it cannot decide: SHIP is withheld.",
    )
    lost = {**tasks, "a": {"acc": difference(0.9999, -9.0)}}
    verdict, reasons, _ = decide(lost, difference(0.001), tiers)
    assert verdict == "DO NOT SHIP" and reasons[0].startswith("a changed by -9.0")
    assert sum("is required" in reason for reason in reasons) == 2
    healthy = {"gsm8k": {"acc": difference(0.0001)}, "mmlu": {"acc": difference(0.0001)}}
    assert decide(healthy, difference(0.001), tiers)[0] == "SHIP"


def test_items_to_settle_are_given_where_the_question_is_open():
    tasks = {
        "open": {"acc": difference(0.3, -2.0), "f1": difference(0.3, -2.0)},
        "settled": {"acc": difference(0.0001)},
    }
    filled, suite = with_items_to_settle(tasks, difference(0.3, -2.0))
    interval = Interval(-2.0, -5.0, 1.0)
    assert filled["open"]["acc"].items_to_settle == items_to_settle(200, interval, 3.1, tests=2)
    assert (
        filled["open"]["f1"].items_to_settle
        == items_to_settle(200, interval, 3.1)
        == suite.items_to_settle
    )
    assert filled["settled"]["acc"].items_to_settle is None


def test_the_table_reads_as_the_verdict_decides():
    """Clear of the margin by itself, but not after Holm's correction: undecided in both."""
    tasks = {"a": {"acc": difference(0.02, 0.0, 3.0)}, "b": {"acc": difference(0.02, 0.0, 3.0)}}
    filled, _ = with_items_to_settle(tasks, difference(0.001))
    assert decide(tasks, difference(0.001))[0] == "INCONCLUSIVE"
    assert filled["a"]["acc"].adjusted_p == (0.04, 1.0)
    assert reading(filled["a"]["acc"]).startswith("undecided")
    # a metric that does not count in the verdict
    assert reading(tasks["a"]["acc"]) == "within margin"


def test_the_perplexity_of_answers_decides_where_it_is_all_there_is():
    only = difference(0.999, 9.0, 1.0, unit="percent", higher_is_better=False)
    verdict, reasons, _ = decide(
        {"a": {"acc": difference(0.001)}, "lambada": {"perplexity": only}}, difference(0.001)
    )
    assert verdict == "DO NOT SHIP"
    assert reasons[0].startswith("Perplexity on lambada")


def test_generated_answers_and_texts_decide_too():
    tasks = {
        "gsm8k": {"exact_match,strict-match": difference(0.999, -9.0)},
        "a": {"acc": difference(0.0001)},
    }
    verdict, reasons, _ = decide(tasks, difference(0.001))
    assert verdict == "DO NOT SHIP"
    assert reasons[0].startswith("gsm8k changed by -9.0 points")
    worse = with_task(
        factories.accuracy("w8a8-int8"), "wikipedia", factories.text_task(50, loss=0.3)
    )
    result = compare_int8(accuracy=worse)
    assert result.verdict == "DO NOT SHIP"
    assert result.reasons[0].startswith("Word perplexity on wikipedia")


def test_documents_that_would_settle_a_perplexity():
    text = difference(0.2, 2.0, 1.5, unit="percent", higher_is_better=False)
    verdict, reasons, _ = decide(
        {"a": {"acc": difference(0.001)}, "wiki": {"word_perplexity": text}}, difference(0.001)
    )
    needed = items_to_settle(200, Interval(-2.0, -3.5, -0.5), 3.1, tests=2)
    assert verdict == "INCONCLUSIVE"
    assert f"About {needed:,} documents would settle it." in reasons[0]


def test_too_few_documents_or_items_for_a_bootstrap_leave_it_open():
    few = difference(None, 0.1, 0.2, n=6, too_few=10, unit="percent", higher_is_better=False)
    verdict, reasons, _ = decide(
        {"a": {"acc": difference(0.001)}, "wiki": {"word_perplexity": few}}, difference(0.001)
    )
    assert verdict == "INCONCLUSIVE"
    assert (
        reasons[0]
        == "Word perplexity on wiki is not decided: too few documents (n = 6; at least 10 are "
        "needed)."
    )
    f1 = difference(None, n=9, too_few=10)
    verdict, reasons, _ = decide(
        {"a": {"acc": difference(0.001)}, "qa": {"f1": f1}}, difference(0.001)
    )
    assert (verdict, reasons[0]) == (
        "INCONCLUSIVE",
        "qa is not decided: too few items (n = 9; at least 10 are needed).",
    )


@pytest.mark.parametrize("documents", [5, 40])
def test_few_documents_are_said_in_the_verdict_and_the_table(documents):
    tasks = [factories.text_task(documents, loss) for loss in (0.0, 0.009)]
    result = compare_int8(
        base_accuracy=with_task(factories.accuracy(), "wikipedia", tasks[0]),
        accuracy=with_task(factories.accuracy("w8a8-int8"), "wikipedia", tasks[1]),
        base_accuracy_again=with_task(factories.accuracy_again(), "wikipedia", tasks[0]),
    )
    d = result.accuracy["wikipedia"]["word_perplexity"]
    assert (result.verdict, d.too_few, d.items_to_settle) == (
        ("INCONCLUSIVE", 10, 10) if documents < 10 else ("SHIP", None, None)
    )
    assert ("too few" in reading(d)) == (documents < 10)


def test_collapsed_documents_are_counted_beside_the_mean():
    base, fine = factories.text_task(40), factories.text_task(40, loss=0.009)
    broken = factories.text_task(40, loss=0.9)  # the first document alone collapses
    worse = fine.model_copy(update={"items": (broken.items[0], *fine.items[1:]), "metrics": {}})
    for task, count, said in (
        (fine, 0, "None of the 40 documents doubled"),
        (worse, 1, "1 of the 40 documents"),
    ):
        found = compare_int8(
            base_accuracy=with_task(factories.accuracy(), "wikipedia", base),
            accuracy=with_task(factories.accuracy("w8a8-int8"), "wikipedia", task),
            base_accuracy_again=None,
        )
        tail = found.accuracy["wikipedia"]["word_perplexity"].tail
        assert (tail.collapsed, tail.share_at_most) == (count, share_at_most(count, 40))
        assert any(said in reason and "of such documents do" in reason for reason in found.reasons)


def test_the_same_answers_on_few_items_are_never_a_reason_not_to_ship():
    tasks = {"few": factories.choice_task(20, 15)}
    same = {"tasks": tasks}
    result = compare_int8(
        base_accuracy=factories.accuracy().model_copy(update=same),
        accuracy=factories.accuracy("w8a8-int8").model_copy(update=same),
        base_accuracy_again=None,
        base_distribution_again=None,
    )
    assert result.verdict == "INCONCLUSIVE"
    assert "not clearly within" in result.reasons[0]
    assert "items would settle it" in result.reasons[0]


def test_a_drop_of_a_near_chance_task_does_not_decide():
    worse = with_task(
        factories.accuracy("w8a8-int8"), "mmlu_dev", factories.choice_task(273, 78, 0, 78)
    )
    assert compare_int8(accuracy=worse).verdict == "SHIP"


def test_without_a_deciding_task_it_is_inconclusive():
    text = difference(0.0001, 0.1, 0.2, unit="percent", higher_is_better=False)
    silent = difference(0.6, near_chance=True, chance=25.0)
    verdict, reasons, _ = decide({"mmlu": {"acc": silent}, "wiki": {"word_perplexity": text}}, None)
    assert verdict == "INCONCLUSIVE"
    assert reasons[0].startswith("No task can decide")
    ruined = text.model_copy(update={"noninferiority_p": 1.0})
    verdict, reasons, _ = decide(
        {"mmlu": {"acc": silent}, "wiki": {"word_perplexity": ruined}}, None
    )
    assert verdict == "DO NOT SHIP"
    assert reasons[0].startswith("Word perplexity on wiki")
