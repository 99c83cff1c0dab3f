"""Things that belong together, given pair by pair."""


class Groups:
    """Numbers from 0, each in a group of its own until it is joined with others."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def join(self, one: int, other: int) -> None:
        """Make one group of the groups of two numbers."""
        roots = sorted((self._root(one), self._root(other)))
        self._parents[roots[1]] = roots[0]

    def joined(self, one: int, other: int) -> bool:
        """Whether two numbers are in one group, be it through others."""
        return self._root(one) == self._root(other)

    def all(self) -> list[list[int]]:
        """Every group, sorted, in the order of the smallest members."""
        groups: dict[int, list[int]] = {}
        for number in range(len(self._parents)):
            groups.setdefault(self._root(number), []).append(number)
        return list(groups.values())

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number
