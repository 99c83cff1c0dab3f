"""Groups are what hangs together, whatever the order in which one is told."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.groups import Groups

JOINS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15)


def joined(joins):
    groups = Groups(10)
    for one, other in joins:
        groups.join(one, other)
    return groups


@given(joins=JOINS)
def test_the_order_of_the_pairs_changes_nothing(joins):
    turned = [(other, one) for one, other in reversed(joins)]
    assert joined(joins).all() == joined(turned).all()


@given(joins=JOINS)
def test_every_number_is_in_one_group_and_pairs_are_together(joins):
    groups = joined(joins)
    assert sorted(number for group in groups.all() for number in group) == list(range(10))
    assert all(groups.joined(one, other) for one, other in joins)


def test_groups_are_joined_through_others():
    groups = joined([(4, 2), (2, 7), (1, 9)])
    assert groups.all() == [[0], [1, 9], [2, 4, 7], [3], [5], [6], [8]]
    assert groups.joined(4, 7)
    assert not groups.joined(4, 9)
