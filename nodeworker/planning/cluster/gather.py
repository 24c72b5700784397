"""Fetch the pod and its network definitions, so that planning needs only values."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from events.schema import ErrorClass, Phase, Pod
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.cluster import node_files
from nodeworker.planning.cluster.source import Source, SourceUnavailableError
from nodeworker.planning.resolve.netconf import RuntimeNetConf
from nodeworker.planning.resolve.networks import NetworkEntry, default_network, networks_of
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.plugins.spec.names import shown

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Gathered(NamedTuple):
    """The pod and its networks, as arguments of ``planning.resolve.plan.make_plan``."""

    pod: PodObject | None
    """None: the runtime named no pod."""
    networks: dict[NetworkRef, Nad]
    """A network that does not exist is missing."""


class DefaultNetwork(NamedTuple):
    """The node's default network, with its definition."""

    entry: NetworkEntry
    networks: dict[NetworkRef, Nad]


async def gather(conf: RuntimeNetConf, pod: Pod, source: Source | None) -> Gathered:
    """Return the pod and its networks from *source*, each with its configuration.

    Without *source*, the pod is as the runtime named it, and networks are files of the node.

    Raises RequestFailedError: POD_NOT_FOUND and SOURCE_UNAVAILABLE (both CNI code 11: the runtime tries again),
    NETWORK_NOT_FOUND for a missing file, and the errors of ``networks_of``.
    """
    with _source_errors():
        found = await _pod(pod, source)
        return Gathered(found, await _networks(networks_of(conf, found), conf, source))


async def gather_default(conf: RuntimeNetConf, source: Source | None) -> DefaultNetwork:
    """Return the node's default network, which every pod gets unless its annotation names another one.

    Raises RequestFailedError: SOURCE_UNAVAILABLE, NETWORK_NOT_FOUND.
    """
    entry = default_network(conf)
    with _source_errors():
        return DefaultNetwork(entry, await _networks((entry,), conf, source))


async def with_chains(conf: RuntimeNetConf) -> RuntimeNetConf:
    """Return *conf* with the plugins that are in the folders of its lists now. Raises RequestFailedError."""
    if not conf.chain_dir or conf.cluster_network:
        return conf
    delegates = [await _with_chain(delegate, Path(conf.chain_dir)) for delegate in conf.delegates]
    return replace(conf, delegates=tuple(delegates))


async def _with_chain(delegate: dict[str, msgspec.Raw], chain_dir: Path) -> dict[str, msgspec.Raw]:
    folder = node_files.chain_folder(delegate, chain_dir)
    if folder is None:
        return delegate
    found = await asyncio.to_thread(node_files.continued, delegate, chain_dir)
    if found.config is None:
        raise failed(
            ErrorClass.NETWORK_NOT_FOUND,
            Phase.RESOLVE,
            f"network {folder.name} continues in {folder}, which can't be read: {'; '.join(found.skipped)}; correct or "
            f"remove it",
            network=folder.name,
        )
    return _members.decode(found.config)


@contextmanager
def _source_errors() -> Generator[None]:
    """Translate an unavailable source into the failure of the request."""
    try:
        yield
    except SourceUnavailableError as error:
        raise failed(
            ErrorClass.SOURCE_UNAVAILABLE,
            Phase.RESOLVE,
            f"pods and networks can't be looked up now: {error}; the runtime will retry",
        ) from error


async def _networks(
    entries: Iterable[NetworkEntry], conf: RuntimeNetConf, source: Source | None
) -> dict[NetworkRef, Nad]:
    networks: dict[NetworkRef, Nad] = {}
    for entry in entries:
        if entry.ref is None or entry.ref in networks:
            continue
        nad = await (_auxiliary(conf) if entry.auxiliary else _network(entry.ref, conf, source))
        if nad is not None:
            networks[entry.ref] = nad
    return networks


async def _pod(pod: Pod, source: Source | None) -> PodObject | None:
    if not pod.name:
        return None
    if source is None:
        return PodObject(namespace=pod.namespace, name=pod.name, uid=pod.uid)
    found = await source.pod(pod.namespace, pod.name, pod.uid)
    if found is None:
        raise failed(
            ErrorClass.POD_NOT_FOUND,
            Phase.RESOLVE,
            "the pod is not known yet, so its networks are unknown; the runtime will retry",
        )
    return found


async def _network(ref: NetworkRef, conf: RuntimeNetConf, source: Source | None) -> Nad | None:
    """Return the network with its configuration, from the cluster or else from a file; None: it does not exist."""
    is_path = "/" in ref.name
    nad = None if source is None or is_path else await source.nad(ref.namespace, ref.name)
    if nad is None and not ref.on_disk:
        return None
    if nad is not None and (nad.problem or nad.config.strip()):
        return nad
    conf_dir = Path(conf.conf_dir)
    if is_path:
        found = await asyncio.to_thread(node_files.read_config, Path(ref.name))
    else:
        found = await asyncio.to_thread(node_files.find_config, conf_dir, ref.name)
    if found.config is None:
        raise _not_on_disk(ref, nad, conf_dir, found.skipped)
    return Nad(
        namespace=nad.namespace if nad else "",
        name=ref.name,
        config=found.config,
        annotations=nad.annotations if nad else {},
    )


async def _auxiliary(conf: RuntimeNetConf) -> Nad | None:
    """Return the auxiliary chain; None: its folder has no plugin."""
    name = conf.auxiliary_chain
    found = await asyncio.to_thread(node_files.auxiliary_chain, Path(conf.chain_base), name, conf.cni_version)
    if found.skipped:
        raise failed(
            ErrorClass.NETWORK_NOT_FOUND,
            Phase.RESOLVE,
            f"the auxiliary chain {name} can't be read: {'; '.join(found.skipped)}; correct or remove it",
            network=name,
        )
    return Nad(namespace="", name=name, config=found.config) if found.config else None


def _not_on_disk(ref: NetworkRef, nad: Nad | None, conf_dir: Path, skipped: tuple[str, ...]) -> RequestFailedError:
    if nad is not None:
        problem = (
            f"NetworkAttachmentDefinition {ref.namespace}/{ref.name} has no spec.config, and no file in {conf_dir} "
            f"holds a configuration of that name; provide one of the two"
        )
    elif "/" in ref.name:
        reason = "; ".join(skipped) or "the folder has no configuration"
        problem = f"network {shown(ref.name)} of the node's configuration can't be read: {reason}; correct the path"
    else:
        problem = (
            f"network {shown(ref.name)} of the node's configuration is neither a NetworkAttachmentDefinition in "
            f"namespace {ref.namespace} nor a configuration in {conf_dir}; create one of the two"
        )
    details = f"skipped: {'; '.join(skipped)}" if skipped and "/" not in ref.name else ""
    return failed(
        ErrorClass.NETWORK_NOT_FOUND,
        Phase.RESOLVE,
        problem,
        network=ref.name if nad is None else f"{ref.namespace}/{ref.name}",
        details=details,
    )
