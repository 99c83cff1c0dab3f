"""What belongs together is held out together; both sides get something."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.split import Unit, held_out_names
from jobs.shards import DatasetError

UNITS = st.lists(
    st.builds(
        Unit,
        name=st.text(max_size=8),
        bytes=st.integers(1, 10_000),
        keys=st.lists(st.sampled_from("abcdefghijkl"), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda unit: unit.name,
)


@given(units=UNITS, share=st.floats(0.01, 0.49), seed=st.integers(0, 2**64))
def test_no_key_lies_on_both_sides_and_neither_side_is_empty(units, share, seed):
    try:
        held_out = held_out_names(units, share, seed)
    except DatasetError:
        return
    sides = [{key for unit in units if (unit.name in held_out) is side for key in unit.keys} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert 0 < len(held_out) < len(units)


@given(units=UNITS, seed=st.integers(0, 100))
def test_the_order_of_the_files_changes_nothing(units, seed):
    try:
        held_out = held_out_names(units, 0.1, seed)
    except DatasetError:
        return
    assert held_out == held_out_names(units[::-1], 0.1, seed)


def files(count, size=1000):
    return [Unit(f"src/file_{number}.py", size) for number in range(count)]


def test_the_share_is_about_what_was_asked():
    assert 60 <= len(held_out_names(files(1000), 0.1, seed=17)) <= 140


def test_a_few_files_hold_out_their_share():
    assert len(held_out_names(files(2), 0.05, seed=17)) == 1
    for seed in range(50):
        assert 1 <= len(held_out_names(files(20), 0.1, seed)) <= 7


def test_the_one_big_file_is_learned_and_not_held_out():
    for seed in range(50):
        assert "big" not in held_out_names([*files(5), Unit("big", 1_000_000)], 0.3, seed)


def test_new_files_move_no_old_file_of_a_large_repository():
    before, after = (held_out_names(files(count), 0.1, seed=17) for count in (1000, 1100))
    assert before == {name for name in after if int(name.split("_")[1][:-3]) < 1000}


def test_another_seed_holds_out_other_files():
    assert held_out_names(files(1000), 0.1, seed=1) != held_out_names(files(1000), 0.1, seed=2)


@pytest.mark.parametrize("units", [files(1), [Unit("a", 1, ("same",)), Unit("b", 1, ("same",))]])
def test_one_content_cannot_be_split(units):
    with pytest.raises(DatasetError, match="held out"):
        held_out_names(units, 0.1, seed=17)


def test_a_near_copy_of_a_held_out_file_is_held_out_with_it():
    before = held_out_names(files(1000), 0.1, seed=17)
    for number in range(50):
        held_out = min(before)
        units = [unit for unit in files(1000) if unit.name != held_out]
        pair = [Unit(held_out, 1000, ("near",)), Unit(f"a/copy_{number}.py", 1000, ("near",))]
        assert before < held_out_names([*units, *pair], 0.1, seed=17)


def test_a_renamed_file_stays_on_its_side():
    before = held_out_names([Unit(f"{n}.py", 1000, origin=f"old/{n}.py") for n in range(500)], 0.1, seed=17)
    after = held_out_names([Unit(f"new/{n}.py", 1000, origin=f"old/{n}.py") for n in range(500)], 0.1, seed=17)
    assert after == {f"new/{name}" for name in before}


def test_one_giant_group_is_learned_and_the_rest_is_split():
    giant = [Unit(f"generated/{number}.py", 1000, ("near",)) for number in range(900)]
    for seed in range(20):
        held_out = held_out_names([*giant, *files(100)], 0.05, seed)
        assert 1 <= len(held_out) <= 99
        assert not any(name.startswith("generated") for name in held_out)


def test_a_giant_group_beside_one_file_is_learned():
    giant = [Unit(f"generated/{number}.py", 1000, ("near",)) for number in range(900)]
    assert held_out_names([*giant, Unit("other", 10)], 0.05, seed=1) == {"other"}


def test_of_a_few_large_files_one_of_the_small_is_held_out():
    units = [Unit("a", 4000), Unit("b", 4000), Unit("c", 1000), Unit("d", 1200)]
    assert {held_out_names(units, 0.05, seed) for seed in range(30)} == {frozenset("c"), frozenset("d")}


def test_files_of_one_group_are_told_to_belong_together():
    with pytest.raises(DatasetError, match="All 3 files of the repository belong together"):
        held_out_names([Unit(name, 1, ("same",)) for name in "abc"], 0.1, seed=17)
