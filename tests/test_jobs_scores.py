import math
from collections import Counter, defaultdict

import pytest

from jobs.scores import Tally, scores


def tally(language="Python", *, tokens=10, size=30, base=20.0, adapter=15.0, **more):
    found = Tally(language, Counter(tokens=tokens, bytes=size))
    found.sums["base"]["nats"], found.sums["adapter"]["nats"] = base, adapter
    for name, (count, of_base, of_adapter) in more.items():
        found.counts["fills" if name.startswith("fim") else "next_lines"] = count
        found.sums["base"][name], found.sums["adapter"][name] = of_base, of_adapter
    return found


BOTH = ("base", "adapter")


def test_losses_are_means_over_tokens_not_over_documents():
    found = scores([tally(tokens=10, base=10, size=20), tally(tokens=90, base=270, size=380)], BOTH, 200)
    assert found["base"]["loss"] == 2.8
    assert found["base"]["perplexity"] == pytest.approx(math.exp(2.8), abs=1e-5)
    assert found["base"]["bits_per_byte"] == pytest.approx(280 / math.log(2) / 400, abs=1e-5)
    assert (found["documents"], found["tokens"], found["bytes"]) == (2, 100, 400)


def test_a_difference_is_told_from_documents_that_differ_more_than_base_and_adapter_do():
    hard = [tally(base=10 * number, adapter=10 * number - 1) for number in range(1, 40)]
    found = scores(hard, BOTH, 1000)
    assert found["difference"]["loss"] == {"mean": -0.1, "low": -0.1, "high": -0.1}
    base, adapter = (found["intervals"][side]["loss"] for side in BOTH)
    assert base["low"] < found["adapter"]["loss"] < base["high"]
    assert adapter["low"] < found["base"]["loss"] < adapter["high"]


def test_completions_count_only_where_there_were_some():
    known = [tally(next_line_exact=(2, 1, 2)), tally(), tally(next_line_exact=(2, 0, 1))]
    found = scores(known, BOTH, 200)
    assert found["base"]["next_line_exact"] == 0.25
    assert found["adapter"]["next_line_exact"] == 0.75
    assert found["base"]["fim_exact"] is None
    assert found["difference"]["fim_exact"] is None


def test_a_share_that_is_the_same_everywhere_has_no_interval():
    hits = [tally(next_line_exact=(2, 0, number % 3), base=20 + number) for number in range(8)]
    found = scores(hits, BOTH, 200)
    assert found["intervals"]["base"]["next_line_exact"] == {"mean": 0.0, "low": None, "high": None}
    assert found["intervals"]["adapter"]["next_line_exact"]["low"] < found["adapter"]["next_line_exact"]
    assert found["difference"]["next_line_exact"]["low"] is not None
    nothing = scores([tally(fim_exact=(2, 0, 0)) for _ in range(8)], BOTH, 200)["difference"]
    assert nothing["fim_exact"] == {"mean": 0.0, "low": None, "high": None}
    assert nothing["loss"]["low"] == nothing["loss"]["high"]


def test_languages_are_scored_apart():
    found = scores([tally(base=10), tally("Go", base=40), tally("Go", base=20)], BOTH, 200)
    assert {name: part["base"]["loss"] for name, part in found["languages"].items()} == {"Python": 1.0, "Go": 3.0}
    assert found["languages"]["Python"]["difference"]["loss"] == {"mean": 0.5, "low": None, "high": None}


def test_a_base_alone_has_no_difference():
    found = scores([tally()], ("base",), 200)
    assert "difference" not in found
    assert "adapter" not in found


def test_what_is_no_number_is_null():
    found = scores([tally(base=math.nan), tally(base=1e9)], BOTH, 200)
    assert found["base"]["loss"] is None
    assert scores([tally(base=1e9)], BOTH, 200)["base"]["perplexity"] is None


def test_a_tally_begins_empty():
    assert Tally("Go").sums == defaultdict()
    assert Tally("Go").counts["tokens"] == 0
