"""List the networks of a pod, in the order of attachment, before their definitions are fetched.

The order is a contract: an attachment at position *n* without a requested name is called ``net<n>``. So the order must
not depend on the definitions.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from nodeworker.planning.resolve.netconf import RuntimeNetConf
from nodeworker.planning.resolve.objects import NetworkRef, PodObject


class NetworkEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One network of the list: with its configuration, or with a reference to fetch it."""

    delegate: dict[str, msgspec.Raw] | None = None
    """The configuration, if it is part of the node's configuration."""
    ref: NetworkRef | None = None
    """The reference, if it is not."""
    selection: Selection | None = None
    """The pod's own request, if the network comes from its annotation."""
    auxiliary: bool = False
    """Whether it is the auxiliary chain, which is left out if its folder is empty. It is last, so no name shifts."""


def networks_of(conf: RuntimeNetConf, pod: PodObject | None) -> tuple[NetworkEntry, ...]:
    """Return the networks of *pod* in the order of attachment, the default network first.

    Without *pod* (a runtime that knows no pods) they are the node's. Raises RequestFailedError: INVALID_ANNOTATION;
    NETWORK_FORBIDDEN if ``namespaceIsolation`` forbids a network in the pod's annotations.
    """
    default, *further = _of_node(conf, pod)
    last = (_auxiliary(conf),) if conf.auxiliary_chain else ()
    if pod is None:
        return (default, *further, *last)
    override = pod.annotations.get(DEFAULT_NETWORK, "")
    if override.strip():
        selection = parse_default_network(override, conf.multus_namespace)
        # The default namespace of this annotation is where the administrator defines networks for this purpose.
        _check_isolation(conf, pod, selection, conf.shared_namespaces | {conf.multus_namespace}, DEFAULT_NETWORK)
        default = _selected(selection)
    selections = parse_networks(pod.annotations.get(NETWORKS, ""), pod.namespace)
    for selection in selections:
        _check_isolation(conf, pod, selection, conf.shared_namespaces, NETWORKS)
    return (default, *further, *map(_selected, selections), *last)


def default_network(conf: RuntimeNetConf) -> NetworkEntry:
    """Return the node's default network, without a pod's override."""
    return next(_of_node(conf, None))


def _auxiliary(conf: RuntimeNetConf) -> NetworkEntry:
    return NetworkEntry(ref=NetworkRef("", conf.auxiliary_chain, on_disk=True), auxiliary=True)


def _of_node(conf: RuntimeNetConf, pod: PodObject | None) -> Iterator[NetworkEntry]:
    """Yield the networks that the node's configuration gives every pod.

    ``defaultNetworks`` need ``clusterNetwork``: beside ``delegates`` they are ignored, as in Multus.
    """
    if not conf.cluster_network:
        yield from (NetworkEntry(delegate=delegate) for delegate in conf.delegates)
        return
    names = [conf.cluster_network]
    if pod is None or pod.namespace not in conf.system_namespaces:
        names += conf.default_networks
    yield from (NetworkEntry(ref=NetworkRef(conf.multus_namespace, name, on_disk=True)) for name in names)


def _selected(selection: Selection) -> NetworkEntry:
    return NetworkEntry(ref=NetworkRef(selection.namespace, selection.name), selection=selection)


def _check_isolation(
    conf: RuntimeNetConf, pod: PodObject, selection: Selection, shared: frozenset[str], annotation: str
) -> None:
    if not conf.namespace_isolation or selection.namespace == pod.namespace or selection.namespace in shared:
        return
    raise failed(
        ErrorClass.NETWORK_FORBIDDEN,
        Phase.RESOLVE,
        f"the pod may not use network {selection}, which annotation {annotation} selects: with namespaceIsolation, "
        f"pods of namespace {pod.namespace} may not use namespace {selection.namespace}; list it in globalNamespaces "
        f"or move the network",
        network=str(selection),
    )
