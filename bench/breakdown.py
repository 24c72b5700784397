"""Where the time of one ADD goes, what the kernel alone would take, and how long the event loop is ever held up."""

from __future__ import annotations

import argparse
import ipaddress
import time
from collections.abc import Sequence

import msgspec

from bench.attach import throughput
from bench.report import quantile, report
from bench.stage import BRIDGE, PARENT, Stage, pods
from bench.traced_worker import Trace
from events.schema import Phase
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import addresses, links
from nodeworker.kernel.rtnetlink.socket import Netlink

_WARM = 5

Span = tuple[str, float, float]


def breakdown(spans: Sequence[Span], begin: float, end: float) -> dict[str, float]:
    """Return the seconds of each part of the ADD from *begin* to *end*; what overlaps another part is that one's."""
    mine = [span for span in spans if begin <= span[1] and span[2] <= end]

    def total(*names: str) -> float:
        return sum(until - since for name, since, until in mine if name in names)

    def first(name: str) -> tuple[float, float]:
        return next((since, until) for each, since, until in mine if each == name)

    answer, attach, requested = first("answer"), first("attach"), first("ack AttachRequested")
    waited = first("ack AttachCompleted")[1]
    begun = min(since for name, since, _ in mine if name == "attachment")
    made = max(until for name, _, until in mine if name == "attachment")
    return {
        "entry point, to the worker": answer[0] - begin,
        "intake": requested[0] - answer[0],
        "ack of the request": requested[1] - requested[0],
        "the request comes back from the ledger": attach[0] - requested[1],
        "resolve": total("plan"),
        "ack of the plan": total("ack AttachPlanned"),
        "IPAM": total("ipam"),
        "interfaces": total("plugin"),
        "around the plugins": made - begun - total("ipam", "plugin"),
        "ack of the outcome": waited - made,
        "reply and the entry point's end": end - answer[1],
        "whole": end - begin,
    }


def longest_step(trace: Trace) -> float:
    """Return the seconds of the longest step that the event loop took between the first request and the last answer."""
    answers = [span for span in trace.spans if span[0] == "answer"]
    first, last = min(since for _, since, _ in answers), max(until for _, _, until in answers)
    return max((seconds for begin, seconds in trace.steps if first <= begin <= last), default=0.0)


def floor(stage: Stage, count: int) -> float:
    """Return the seconds that a program takes which knows what to send, for the messages of the same ADD."""
    seconds: list[float] = []
    with pods(stage, count) as names, Netlink.on_node() as node:
        parent, bridge = (links.find(node, links.by_name(name)) for name in (PARENT, BRIDGE))
        assert parent is not None
        assert bridge is not None
        for number, pod in enumerate(names):
            begin = time.perf_counter()
            with Namespace(f"/run/netns/{pod}", Phase.ADD) as netns, Netlink.within(netns) as container:
                _wire(node, container, netns, number, bridge.index)
                _card(container, netns, number, parent.index)
            seconds.append(time.perf_counter() - begin)
    return quantile(seconds, 0.5)


def _wire(node: Netlink, container: Netlink, netns: Namespace, number: int, bridge: int) -> None:
    outside = f"plfloor{number}"
    container.do(
        links.create("eth0", "veth", data=links.veth_peer(outside, netns_fd=netns.node_fd)),
    )
    inside, port = links.find(container, links.by_name("eth0")), links.find(node, links.by_name(outside))
    assert inside is not None
    assert port is not None
    node.do(links.change(port.index, up=True, master=bridge))
    address = ipaddress.ip_interface(f"10.88.{number // 250}.{number % 250 + 2}/16")
    container.do(addresses.add(inside.index, address), links.change(inside.index, up=True))


def _card(container: Netlink, netns: Namespace, number: int, parent: int) -> None:
    container.do(
        links.create(
            "net1",
            "macvlan",
            data={"IFLA_MACVLAN_MODE": "bridge"},
            parent=parent,
            parent_netnsid=links.ensure_netnsid(container, netns.node_fd),
        )
    )
    link = links.find(container, links.by_name("net1"))
    assert link is not None
    address = ipaddress.ip_interface(f"10.87.{number // 250}.{number % 250 + 2}/16")
    container.do(addresses.add(link.index, address), links.change(link.index, up=True))


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.breakdown", description=__doc__)
    parser.add_argument("--pods", type=int, default=60)
    options = parser.parse_args(arguments)
    times: list[tuple[float, float]] = []
    with Stage(("-m", "bench.traced_worker")) as stage:
        with pods(stage, options.pods + _WARM) as names:
            for pod in names:
                begin = time.perf_counter()
                stage.plumbline("ADD", pod)
                times.append((begin, time.perf_counter()))
                stage.plumbline("DEL", pod)
            lowest = floor(stage, options.pods)
        throughput(stage, 60, 16, 1, 1)
        stage.stop_worker()
        trace = msgspec.json.decode(stage.settings.with_suffix(".trace").read_bytes(), type=Trace)
    parts = [breakdown(trace.spans, *each) for each in times[_WARM:]]
    for name in parts[0]:
        report(f"ADD, {name} p50", quantile([each[name] for each in parts], 0.5) * 1e3, "ms")
    whole = quantile([each["whole"] for each in parts], 0.5)
    report("the messages to the kernel by themselves p50", lowest * 1e3, "ms")
    report("ADD, of the messages to the kernel by themselves p50", whole / lowest, "ratio")
    report("longest step of the event loop, at concurrency 16", longest_step(trace) * 1e3, "ms", 5.0)


if __name__ == "__main__":
    main()
