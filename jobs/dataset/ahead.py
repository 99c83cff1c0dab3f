"""Works on the next items while one is looked at.

For work that mostly leaves Python: scanning for secrets, sorting, compressing. What comes out is what `map` would give,
in the same order, so that the number of threads changes nothing but the time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: On two cores two were slower (one of them often waits for Python's own lock), and more were no faster.
_THREADS = 3


def ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], count: int | Callable[[], int] = 4
) -> Iterator[_Result]:
    """`map(function, items)`, with some items begun that were not asked for yet.

    `items` is read in the caller's thread.

    Args:
        function: what is done to each.
        items: read one by one.
        count: how many are begun at most; where that changes, what tells it, asked before each.
    """
    rest = iter(items)
    most = count if callable(count) else lambda: count
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ahead") as threads:
        begun: deque[Future[_Result]] = deque()

        def begin(wanted: int) -> None:
            begun.extend(threads.submit(function, item) for item in islice(rest, max(0, wanted - len(begun))))

        try:
            begin(max(1, most()))
            while begun:
                result = begun.popleft().result()
                begin(most())
                yield result
                begin(1)
        finally:
            for future in begun:
                future.cancel()
