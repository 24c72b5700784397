"""Tell what a node goes through: whole lives of its sandboxes, one after the other or interleaved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from events.schema import ContainerId, Event, Pod, Stored
from tests.support.stories import catalogue
from tests.support.stories.events import EventFactory, container
from tests.support.stories.life import Life, with_carried_effects
from tests.support.stories.values import NETWORKS


class Node(EventFactory):
    """Tells the lives of a node's sandboxes in whole parts; ``Life`` has the single events."""

    def __init__(self, node: str = "node-1") -> None:
        super().__init__(node)

    def attach(
        self,
        sandbox: str,
        pod: Pod,
        networks: Sequence[str] = NETWORKS[:2],
        *,
        fails_at: int | None = None,
        silent: bool = False,
        carried: bool = False,
    ) -> Iterator[Event]:
        """Yield an ADD. *carried*: its outcome carries the effects, because the worker made the interfaces itself."""
        life = Life(self, ContainerId(sandbox), networks=networks, pod=pod, silent=silent)
        return _with_effects(life.add(fails_at=fails_at), carried)

    def detach(
        self,
        sandbox: str,
        pod: Pod,
        networks: Sequence[str] = NETWORKS[:2],
        *,
        fails: bool = False,
        carried: bool = False,
    ) -> Iterator[Event]:
        return _with_effects(Life(self, ContainerId(sandbox), networks=networks, pod=pod).delete(fails=fails), carried)

    def drift(self, sandbox: str, pod: Pod, *, ends: str = "") -> Iterator[Event]:
        return Life(self, ContainerId(sandbox), pod=pod).drift(ends=ends)

    def leak(self, sandbox: str, *, ends: str = "") -> Iterator[Event]:
        return Life(self, ContainerId(sandbox)).leak(ends=ends)


def _with_effects(events: Iterator[Event], carried: bool) -> Iterator[Event]:
    if not carried:
        return events
    story = (Stored(number, event) for number, event in enumerate(events, 1))
    return iter([stored.event for stored in with_carried_effects(story)])


def busy_day(pods: int, node: Node | None = None) -> Iterator[Event]:
    """Yield about ten events for each of *pods*: most come and go, some fail, some stay, a worker restarts.

    A third has interfaces that the worker made itself.
    """
    node = node or Node()
    yield node.start()
    for number in range(pods):
        sandbox, pod = container(number), Pod("shop", f"web-{number}", f"uid-{number}")
        carried = number % 3 == 0
        if number % 7 == 3:
            yield from node.attach(sandbox, pod, NETWORKS, fails_at=2)
            continue
        yield from node.attach(sandbox, pod, NETWORKS, carried=carried)
        if number % 11 == 5:
            yield node.start(pending=1)
        if number % 5 == 1:
            yield from node.detach(sandbox, pod, NETWORKS, fails=True)
        if number % 5 != 4:
            yield from node.detach(sandbox, pod, NETWORKS, carried=carried)
        if number % 5 == 0:
            yield from node.detach(sandbox, pod, NETWORKS)  # runtimes do repeat DEL


def busy_node(sandboxes: int) -> Iterator[Event]:
    """Yield the events of a node that handles eight sandboxes at any time. Most pods come, live and go."""
    factory = EventFactory()
    dice = random.Random(1)
    weights = {
        catalogue.attached_and_detached: 90,
        catalogue.failed_and_rolled_back: 3,
        catalogue.detach_fails_then_succeeds: 3,
        catalogue.attached_and_kept: 4,
    }
    chosen = dice.choices(list(weights), list(weights.values()), k=sandboxes)
    for first in range(0, sandboxes, 8):
        stories = enumerate(chosen[first : first + 8], first + 1)
        yield from interleave([story(factory, container(number)) for number, story in stories], dice.randrange)


def interleave(stories: Iterable[Iterator[Event]], choose: Callable[[int], int]) -> Iterator[Event]:
    """Yield the events of *stories* mixed, each in its order; *choose* picks one of so many."""
    left = list(stories)
    while left:
        index = choose(len(left))
        event = next(left[index], None)
        if event is None:
            del left[index]
        else:
            yield event
