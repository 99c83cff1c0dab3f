"""A planted leak is measured and named, and a shared licence header is none."""

import numpy as np
import pytest

from jobs.dataset.overlap import Overlap, OverlapReport, Pair
from jobs.dataset.shingles import shingles
from jobs.dataset.survey import thinned
from jobs.shards import DatasetError


def text(name, words=200):
    return " ".join(f"{name}{place}" for place in range(words))


def runs(content):
    return shingles(content, 13)


HEADER = text("licence", 100)


def learned(sources):
    overlap = Overlap()
    for name, content in sources:
        overlap.learn(name, runs(content))
    return overlap


def test_texts_of_their_own_do_not_overlap():
    overlap = learned([("a.py", text("a")), ("b.py", text("b"))])
    report = overlap.measure([("c.py", runs(text("c")))])
    assert report == OverlapReport(0.0, ())
    overlap.refuse(report, 0.5)


def test_a_planted_copy_is_caught_and_named():
    overlap = learned([("a.py", text("a")), ("leak.py", text("a") + text("secret") + text("b"))])
    report = overlap.measure([("held.py", runs(text("secret"))), ("fine.py", runs(text("fine")))])
    assert [(pair.held_out, pair.train) for pair in report.worst] == [("held.py", "leak.py")]
    assert report.worst[0].share > 0.95
    assert 0.45 < report.share < 0.5
    with pytest.raises(DatasetError, match=r"leak\.py holds 9\d% of the held-out file held\.py"):
        overlap.refuse(report, 0.5)


def test_a_share_at_the_limit_passes():
    Overlap().refuse(OverlapReport(0.5, (Pair("h", "t", 0.5),)), 0.5)


def test_pieces_in_many_files_count_in_the_share_but_refuse_nothing():
    pieces = text("held", 400).split(" ")
    overlap = learned([(f"{n}.py", " ".join(pieces[n * 40 : n * 40 + 52])) for n in range(10)])
    report = overlap.measure([("held.py", runs(text("held", 400)))])
    assert report.share > 0.95
    assert report.worst[0].share < 0.15
    overlap.refuse(report, 0.5)


def test_a_licence_header_is_counted_apart():
    sources = [(f"{number}.py", HEADER + " " + text(f"own{number}_")) for number in range(12)]
    report = learned(sources).measure([("held.py", runs(HEADER + " " + text("held")))])
    assert report.share == 0.0
    assert report.worst == ()
    assert 0.25 < report.boilerplate < 0.35


def test_a_leak_under_a_licence_header_is_caught_all_the_same():
    sources = [(f"{number}.py", HEADER + " " + text(f"own{number}_")) for number in range(12)]
    overlap = learned([*sources, ("leak.py", HEADER + " " + text("held"))])
    report = overlap.measure([("held.py", runs(HEADER + " " + text("held")))])
    assert (report.worst[0].train, report.worst[0].share) == ("leak.py", 1.0)


def test_many_versions_of_one_file_make_no_boilerplate():
    overlap = learned([("leak.py", f"version {number} " + text("held")) for number in range(30)])
    report = overlap.measure([("held.py", runs(text("held")))])
    assert (report.worst[0].train, report.boilerplate) == ("leak.py", 0.0)


def test_many_names_of_one_leak_hide_it_unless_boilerplate_is_given():
    overlap = Overlap(boilerplate=runs(HEADER))
    sources = [(f"commit {number}", text("held")) for number in range(30)]
    held_out = [("held.py", runs(HEADER + " " + text("held")))]
    for name, content in sources:
        overlap.learn(name, runs(content))
    report = overlap.measure(held_out)
    assert report.worst == (Pair("held.py", "commit 0", pytest.approx(0.94, abs=0.01)),)
    assert 0.25 < report.boilerplate < 0.35
    assert learned(sources).measure(held_out).worst == ()


@pytest.mark.parametrize("turn", [1, -1])
def test_of_equal_leaks_the_first_by_name_is_told(turn):
    sources = [(name, text("held")) for name in ("b.py", "a.py", "c.py")][::turn]
    assert learned(sources).measure([("held.py", runs(text("held")))]).worst[0].train == "a.py"


def test_the_ten_worst_are_told_in_their_order():
    sources = [("all.py", " ".join(text(f"h{number}_", 100 + number) for number in range(15)))]
    held_out = [(f"h{number}", runs(text(f"h{number}_", 100 + number) + " " + text("own", 50))) for number in range(15)]
    worst = learned(sources).measure(held_out).worst
    assert [pair.held_out for pair in worst] == [f"h{number}" for number in range(14, 4, -1)]


def test_what_is_seen_is_told_word_by_word():
    held = text("held", 40)
    overlap = learned([("a.py", held)])
    content = "new one here " + held + " and more that is new"
    seen = overlap.seen(content)
    words = [content.encode()[start:].split()[0].decode() for start in seen.starts]
    assert words == content.split()
    assert [word for word, known in zip(words, seen.known, strict=True) if known] == held.split()
    chosen = np.array([word.startswith("held") for word in words])
    assert seen.runs_of(chosen).tolist() == runs(held).tolist()
    chosen[20] = False
    parts = held.split()
    assert set(seen.runs_of(chosen)) == {*runs(" ".join(parts[:17])), *runs(" ".join(parts[18:]))}
    assert len(overlap.seen("too short").runs_of(np.ones(2, np.bool_))) == 0
    assert not overlap.seen(" ".join(held.split()[:12]) + " other").known.any()
    assert len(overlap.seen("").known) == 0


@pytest.mark.parametrize("pairs", [1000, 4 << 20])
@pytest.mark.parametrize("thin", [1, 16])
def test_what_is_seen_is_told_of_a_sample_of_the_runs_too(thin, pairs):
    overlap = Overlap(thin=thin)
    overlap._postings._most_pairs = pairs
    held = text("held", 2000)
    overlap.learn("a.py", thinned(runs(held), thin))
    seen = overlap.seen(text("new", 500) + " " + held + " " + text("other", 500)).known
    assert seen[700:2300].all()
    assert not seen[:400].any()
    assert not seen[2700:].any()


def test_short_texts_and_no_texts_at_all_are_measured():
    overlap = learned([("a.py", "too short"), ("b.py", text("held", 20))])
    assert overlap.measure([]) == OverlapReport(0.0, ())
    report = overlap.measure([("held.py", runs(text("held", 20))), ("empty.py", np.empty(0, np.uint64))])
    assert (report.share, report.worst) == (1.0, ())
