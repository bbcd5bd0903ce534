"""Which node depends on which: order, length of chains, cycles. Pure, without recursion, in linear time.

`sources` maps a node to the nodes that it takes something from; every source is a key itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

Sources = Mapping[str, Sequence[str]]


def users(sources: Sources) -> dict[str, list[str]]:
    """The other direction: a node and those that take something from it."""
    found: dict[str, list[str]] = {node: [] for node in sources}
    for node, above in sources.items():
        for source in dict.fromkeys(above):
            found[source].append(node)
    return found


def lengths(sources: Sources) -> dict[str, int]:
    """The number of nodes in the longest chain that ends at each node; nodes that depend on a cycle are left
    out."""
    below = users(sources)
    waiting = {node: len(set(above)) for node, above in sources.items()}
    found: dict[str, int] = {}
    ready = deque(node for node, count in waiting.items() if not count)
    while ready:
        node = ready.popleft()
        found[node] = 1 + max((found[source] for source in sources[node]), default=0)
        for user in below[node]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    return found


def cycles(sources: Sources, among: Iterable[str]) -> Iterator[list[str]]:
    """Cycles that share no node, against the links: each node takes something from the next.

    `among` are nodes that depend on a cycle, all of them; each of those has a source that does too.
    """
    left = dict.fromkeys(among)
    seen: set[str] = set()
    for start in left:
        path: dict[str, None] = {}
        node = start
        while node not in seen:
            seen.add(node)
            path[node] = None
            node = next(source for source in sources[node] if source in left)
        if node in path:
            trail = list(path)
            yield trail[trail.index(node) :]


def reached(start: Iterable[str], steps: Mapping[str, Iterable[str]]) -> set[str]:
    """All nodes that can be reached from `start`, itself included."""
    found = set(start)
    open_ = list(found)
    while open_:
        for node in steps[open_.pop()]:
            if node not in found:
                found.add(node)
                open_.append(node)
    return found
