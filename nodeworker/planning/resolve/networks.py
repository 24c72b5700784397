"""Which networks a pod is to be attached to, in order, before anybody has looked at them.

The order is the contract: position *n* of the complete list is what an attachment without a name of its own is called
after (``net<n>``), so it must not depend on what the networks turn out to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from events.schema import ErrorClass, Phase
from nodeworker.errors import failed
from nodeworker.planning.resolve.annotation import (
    DEFAULT_NETWORK,
    NETWORKS,
    Selection,
    parse_default_network,
    parse_networks,
)
from nodeworker.planning.resolve.netconf import NetConf
from nodeworker.planning.resolve.objects import NetworkRef, PodObject


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One network of the list: given in place, or to be fetched."""

    delegate: dict[str, Any] | None = None
    """The configuration itself, where the node's configuration holds it."""
    ref: NetworkRef | None = None
    """What to fetch, where it does not."""
    selection: Selection | None = None
    """The pod's own request, where it is the pod that asks."""
    auxiliary: bool = False
    """True for the chain that there is only if its folder has files. It is the last: nobody's position hangs on it."""


def wanted(conf: NetConf, pod: PodObject | None) -> tuple[Wanted, ...]:
    """Return the networks of *pod* in the order of attachment, the default network first.

    Without *pod* (a runtime that knows no pods) these are the node's. Raises RequestFailedError: INVALID_ANNOTATION;
    NETWORK_FORBIDDEN where ``namespaceIsolation`` keeps the pod from what its annotations select.
    """
    default, *further = _of_node(conf, pod)
    last = (_auxiliary(conf),) if conf.auxiliary_chain else ()
    if pod is None:
        return (default, *further, *last)
    override = pod.annotations.get(DEFAULT_NETWORK, "")
    if override.strip():
        selection = parse_default_network(override, conf.multus_namespace, pod=str(pod))
        # This annotation's default namespace is where the administrator keeps networks for this very use.
        _check_isolation(conf, pod, selection, conf.shared_namespaces | {conf.multus_namespace}, DEFAULT_NETWORK)
        default = _selected(selection)
    selections = parse_networks(pod.annotations.get(NETWORKS, ""), pod.namespace, pod=str(pod))
    for selection in selections:
        _check_isolation(conf, pod, selection, conf.shared_namespaces, NETWORKS)
    return (default, *further, *map(_selected, selections), *last)


def default_network(conf: NetConf) -> Wanted:
    """Return the node's default network, whatever a pod may have in its place."""
    return next(_of_node(conf, None))


def _auxiliary(conf: NetConf) -> Wanted:
    return Wanted(ref=NetworkRef("", conf.auxiliary_chain, on_disk=True), auxiliary=True)


def _of_node(conf: NetConf, pod: PodObject | None) -> Iterator[Wanted]:
    """Yield what the node's configuration gives every pod.

    ``defaultNetworks`` go with ``clusterNetwork``: beside ``delegates`` they mean nothing, as in Multus.
    """
    if not conf.cluster_network:
        yield from (Wanted(delegate=delegate) for delegate in conf.delegates)
        return
    names = [conf.cluster_network]
    if pod is None or pod.namespace not in conf.system_namespaces:
        names += conf.default_networks
    yield from (Wanted(ref=NetworkRef(conf.multus_namespace, name, on_disk=True)) for name in names)


def _selected(selection: Selection) -> Wanted:
    return Wanted(ref=NetworkRef(selection.namespace, selection.name), selection=selection)


def _check_isolation(
    conf: NetConf, pod: PodObject, selection: Selection, shared: frozenset[str], annotation: str
) -> None:
    if not conf.namespace_isolation or selection.namespace == pod.namespace or selection.namespace in shared:
        return
    raise failed(
        ErrorClass.NETWORK_FORBIDDEN,
        Phase.RESOLVE,
        f"pod {pod} may not use network {selection}, which annotation {annotation} selects: with namespaceIsolation, "
        f"pods of namespace {pod.namespace} are kept from namespace {selection.namespace}; list it in globalNamespaces "
        f"or move the network",
        network=str(selection),
    )
