"""The sbr plugin, source based routing: packets with a source address of the interface leave through it.

Each address gets a routing table with the interface's routes, and a rule that selects the table; the main table is for
the other interfaces. A repeated ADD finds its table through the rule.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from events.schema import Phase
from nodeworker.kernel import namespaces
from nodeworker.kernel.rtnetlink import addresses, links, policy_rules, routes
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.policy_rules import Rule
from nodeworker.kernel.rtnetlink.routes import Gateway, Route
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.addressing import Assignment
from nodeworker.plugins.native.kit.chain_input import find_chained_link, own_addresses, require_prev_result
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, open_endpoints
from nodeworker.plugins.native.kit.plugin_config import PluginConfig, decode_config, decode_options
from nodeworker.plugins.spec.results import Result

TYPE = "sbr"

FIRST_TABLE = 100


class _Routing(msgspec.Struct, frozen=True):
    """The rules and the routes of the container."""

    rules: list[Rule]
    routes: list[Route]

    def rules_for(self, sources: Collection[Gateway], index: int) -> Iterator[Rule]:
        """Yield the rules for *sources* that sbr added for the interface *index*: no other one uses their tables."""
        hosts = {ipaddress.ip_network(source) for source in sources}
        foreign = {route.table for route in self.routes if route.index != index}
        for rule in self.rules:
            if rule.source in hosts and rule.table >= FIRST_TABLE and rule.table not in foreign:
                yield rule

    def has_default(self, table: int, version: int) -> bool:
        """Return whether *table* has a default route of IP *version*."""
        return any(
            route.is_default and route.table == table and route.destination.version == version for route in self.routes
        )


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, PluginConfig)
    if isinstance(options, str):
        return options
    return "ipam" if options.has_ipam else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Move the interface's routes to tables of its addresses and return the previous result; *ipam_result* is None.

    Raises NativeError.
    """
    decode_config(call, PluginConfig)
    result = require_prev_result(call)
    if not result.ips:
        raise NativeError(
            f"earlier plugins assigned {call.ifname} no address, which sbr needs: put a plugin with ipam before it"
        )
    assigned = own_addresses(call, result)
    with open_endpoints(call, Phase.ADD) as ends:
        link = find_chained_link(ends, call)
        routing = _routing(ends, call)
        main = [route for route in routing.routes if (route.index, route.table) == (link.index, routes.MAIN)]
        with error_context(f"route the packets of {call.ifname} by their source"):
            ends.container.do(*_tables(routing, link.index, main, assigned))
            # Delete last: until the tables are complete, the kernel resolves gateways through the main table.
            ends.container.do(*map(routes.delete, main))
    return result


def check(call: Call) -> None:
    """Raise NativeError unless each address has its rule, and the rule's table a route to the gateway."""
    result = require_prev_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        link = find_chained_link(ends, call)
        routing = _routing(ends, call)
        for each in own_addresses(call, result):
            source = each.address.ip
            rule = next(routing.rules_for([source], link.index), None)
            if rule is None:
                raise NativeError(f"the routing rule of {call.ifname} for source {source} is gone: recreate the pod")
            if each.gateway and not routing.has_default(rule.table, each.gateway.version):
                raise NativeError(
                    f"table {rule.table} of {call.ifname} has lost its route via {each.gateway}: recreate the pod"
                )


def delete(call: Call) -> None:
    """Delete the rules; the tables go with the interface. Missing rules are no error. Raises NativeError."""
    if not call.netns or not namespaces.is_namespace(call.netns):
        return
    sources = {each.address.ip for each in own_addresses(call, call.prev_result)} if call.prev_result else set()
    with open_endpoints(call, Phase.DEL) as ends:
        routing = _routing(ends, call)
        with error_context(f"delete the routing rules of {call.ifname}"):
            link = links.find(ends.container, links.by_name(call.ifname))
            if link is not None:
                sources |= {each.address.ip for each in addresses.list_of(ends.container, link.index)}
            ends.container.do(*map(policy_rules.delete, routing.rules_for(sources, link.index if link else 0)))


def _routing(ends: Endpoints, call: Call) -> _Routing:
    with error_context(f"list the routes and routing rules of {call.ifname}"):
        families = (socket.AF_INET, socket.AF_INET6)
        found = [route for family in families for route in routes.list_all(ends.container, family)]
        return _Routing(policy_rules.list_all(ends.container), found)


def _tables(routing: _Routing, index: int, main: list[Route], assigned: list[Assignment]) -> Iterator[Request]:
    """Yield the requests that add the rules and fill the tables with the default routes and those of *main*."""
    taken = {rule.table for rule in routing.rules} | {route.table for route in routing.routes}
    for each in assigned:
        source = each.address.ip
        rule = next(routing.rules_for([source], index), None)
        if rule is None:
            free = next(table for table in itertools.count(FIRST_TABLE) if table not in taken)
            taken.add(free)
            rule = Rule(source=ipaddress.ip_network(source), table=free)
            yield policy_rules.add(rule)
        if each.gateway and not routing.has_default(rule.table, each.gateway.version):
            default = routes.DEFAULT_V4 if each.gateway.version == 4 else routes.DEFAULT_V6
            yield routes.add(Route(destination=default, index=index, gateway=each.gateway, table=rule.table))
        for route in main:
            if _serves(route, each):
                yield routes.replace(msgspec.structs.replace(route, table=rule.table))


def _serves(route: Route, assignment: Assignment) -> bool:
    """Return whether *route* is for packets from an address: its gateway and source are in the network, or absent."""
    named = [each for each in (route.source, route.gateway) if each is not None]
    return not named or any(each in assignment.address.network for each in named)
