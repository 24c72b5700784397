"""Decide what exactly to attach: the networks, their interface names, and the bytes for each plugin.

Every error that can be known before an effect is raised here. The result is recorded in the ledger, and ADD, CHECK and
DEL use only that record from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from events.schema import AttachPlanned, AttachRequested, ErrorClass, IfName, NetworkName, Phase, PlannedAttachment, Pod
from nodeworker.errors import failed
from nodeworker.planning.resolve import device_assignment
from nodeworker.planning.resolve.annotation import PortMapping, Selection
from nodeworker.planning.resolve.device_use import device_use
from nodeworker.planning.resolve.netconf import RuntimeNetConf
from nodeworker.planning.resolve.networks import NetworkEntry, networks_of
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.planning.resolve.route_claims import claimed_gateways
from nodeworker.plugins.spec import conflist
from nodeworker.plugins.spec.cni_args import delegate_args, parse_args
from nodeworker.plugins.spec.conflist import ConfigError, NetworkConfig
from nodeworker.plugins.spec.names import ifname_problem, shown

_NO_DEVICES: Mapping[str, tuple[str, ...]] = {}
_DEVICE_INFO = "CNIDeviceInfoFile"
_LARGEST = 7 * 1024 * 1024
"""Maximum bytes of a plan. With its envelope it must fit into one message of the ledger, which takes 8 MiB."""
_parsed = functools.lru_cache(32)(conflist.parse)
"""Cached, because most pods of a node have the same few networks."""
_ALSO_IN_CNI_ARGS = frozenset({"ips", "mac"})
"""Capabilities whose values also reach plugins that do not declare them.

Old NADs with static IPAM and macvlan depend on it.
"""


def make_plan(
    request: AttachRequested,
    container_id: str,
    conf: RuntimeNetConf,
    pod: PodObject | None,
    networks: Mapping[NetworkRef, Nad],
    devices: Mapping[str, tuple[str, ...]] = _NO_DEVICES,
    info_folder: str = device_assignment.INFO_FOLDER,
) -> AttachPlanned:
    """Return the plan for *request*, with its attachments in order.

    *networks* has the definitions that were found of all references in ``networks_of``; *devices* has the pod's
    devices by resource; device information files are under *info_folder*. The runtime's ``runtimeConfig`` is for the
    default network only (NPWG specification 1.3, section 6); a request in an annotation is for the network it selects.
    Raises RequestFailedError: INVALID_REQUEST, INVALID_CONFIG, INVALID_ANNOTATION, NETWORK_NOT_FOUND,
    NETWORK_FORBIDDEN, POD_CHANGED, DEVICE_UNAVAILABLE.
    """
    given_args = parse_args(request.args)
    _check_same_pod(request.pod, pod)
    entries = [entry for entry in networks_of(conf, pod) if not entry.auxiliary or entry.ref in networks]
    ifnames = _ifnames(request.ifname, entries)
    default_routes = claimed_gateways(entries)
    definitions = [definition(entry, networks) for entry in entries]
    uses = [device_use(config.plugins) for _, config in definitions]
    assigned = device_assignment.assign(entries, networks, devices, uses)
    attachments: list[PlannedAttachment] = []
    for index, (ifname, entry, (network, config)) in enumerate(zip(ifnames, entries, definitions, strict=True)):
        default = index == 0
        values = _capability_values(network, config, entry.selection)
        device = assigned[index].device or values.get("deviceID", "")
        device_info = ""
        if device or not conflist.unsupported_capabilities(config, [_DEVICE_INFO]):
            device_info = device_assignment.info_path(info_folder, network, container_id, ifname)
        offered = {**conf.runtime_config, **values} if default else values
        with _config_errors(network):
            plugins = conflist.render(
                config,
                capability_args=offered | _of_device(assigned[index].device, device_info),
                device=assigned[index].device,
                cni_args=entry.selection.cni_args if entry.selection else {},
            )
        attachments.append(
            PlannedAttachment(
                network=network,
                ifname=ifname,
                cni_name=config.name,
                cni_version=config.cni_version,
                plugins=plugins,
                cni_args=delegate_args(
                    given_args,
                    container_id,
                    mac=values.get("mac", ""),
                    ips=_ips_in_args(config, values.get("ips", ())),
                    default=default,
                ),
                default=default,
                disable_check=config.disable_check,
                disable_gc=config.disable_gc,
                default_route=default_routes[index],
                resource=assigned[index].resource,
                device=device,
                device_info=device_info,
            )
        )
    planned = AttachPlanned(
        ifname=request.ifname,
        netns=request.netns,
        path=":".join(conf.plugin_folders(request.path)),
        cni_version=conf.cni_version,
        attachments=tuple(attachments),
        pod=request.pod if pod is None else Pod(pod.namespace, pod.name, pod.uid or request.pod.uid),
        publish=pod is not None and pod.namespace not in conf.system_namespaces,
    )
    _check_size(planned)
    return planned


def _check_same_pod(asked: Pod, found: PodObject | None) -> None:
    """Raise POD_CHANGED if the sandbox is of an earlier pod of that name: the found annotations are not its own.

    Raise INVALID_REQUEST if the sandbox is of a pod whose name is missing: its networks are unknown.
    """
    if not asked.name and (asked.namespace or asked.uid):
        raise failed(
            ErrorClass.INVALID_REQUEST,
            Phase.RESOLVE,
            "CNI_ARGS has a pod's namespace or UID but no K8S_POD_NAME, so its networks are unknown; correct the "
            "runtime's configuration",
        )
    if found is None or found.static or not asked.uid or not found.uid or asked.uid == found.uid:
        return
    raise failed(
        ErrorClass.POD_CHANGED,
        Phase.RESOLVE,
        f"it was replaced: the sandbox is for UID {shown(asked.uid)} and the cluster has {shown(found.uid)}; "
        f"the kubelet will create a new sandbox for the new pod",
    )


def _check_size(planned: AttachPlanned) -> None:
    """Raise INVALID_CONFIG if the plan is too large for the ledger: a retry of the runtime can't help."""
    size = len(msgspec.json.encode(planned))
    if size > _LARGEST:
        raise failed(
            ErrorClass.INVALID_CONFIG,
            Phase.RESOLVE,
            f"the plan of its {len(planned.attachments)} attachments has {size} bytes, and the ledger takes "
            f"{_LARGEST}: select fewer networks, or make their configurations smaller",
        )


def _ifnames(runtime_name: str, entries: Sequence[NetworkEntry]) -> list[IfName]:
    """Return the interface names of *entries*: as requested; else the runtime's for the first one, or ``net<n>``."""
    if problem := ifname_problem(runtime_name):
        raise failed(
            ErrorClass.INVALID_REQUEST,
            Phase.RESOLVE,
            f"the runtime's CNI_IFNAME {shown(runtime_name)} {problem}; correct the runtime's configuration",
        )
    names: dict[str, int] = {}
    for index, entry in enumerate(entries):
        requested = entry.selection.ifname if entry.selection else ""
        name = requested or (runtime_name if index == 0 else f"net{index}")
        if name in names:
            first = names[name]
            if entry.selection or entries[first].selection:
                error_class, remedy = ErrorClass.INVALID_ANNOTATION, "request another name in the pod's annotation"
            else:
                error_class, remedy = ErrorClass.INVALID_CONFIG, "configure another interface name in the runtime"
            raise failed(
                error_class,
                Phase.RESOLVE,
                f"attachments {first} ({_label(entries[first])}) and {index} ({_label(entry)}) would both "
                f"be named {name}; {remedy}",
                network=_label(entry),
                ifname=name,
            )
        names[name] = index
    return [IfName(name) for name in names]


def _label(entry: NetworkEntry) -> str:
    """Return a name for a network whose definition is not fetched yet."""
    if entry.selection:
        return str(entry.selection)
    if entry.ref:
        return entry.ref.name
    return str(msgspec.json.decode((entry.delegate or {}).get("name", b'""')))


def definition(entry: NetworkEntry, networks: Mapping[NetworkRef, Nad]) -> tuple[NetworkName, NetworkConfig]:
    """Return the network's display name and its configuration.

    Raises RequestFailedError: NETWORK_NOT_FOUND, INVALID_CONFIG.
    """
    if entry.ref is None:
        with _config_errors(_label(entry)):
            config = conflist.parse(entry.delegate or {})
        return NetworkName(config.name), config
    nad = networks.get(entry.ref)
    if nad is None or not (nad.config or nad.problem):
        missing = f"{entry.ref.namespace}/{entry.ref.name}"
        raise failed(
            ErrorClass.NETWORK_NOT_FOUND,
            Phase.RESOLVE,
            f"network {missing} {'has no configuration' if nad else 'does not exist'}; create it, or "
            f"correct the annotation or configuration that names it",
            network=missing,
        )
    display = f"{nad.namespace}/{nad.name}" if nad.namespace else nad.name
    with _config_errors(display):
        if nad.problem:
            raise ConfigError(nad.problem)
        config = _parsed(nad.config, default_name=nad.name if nad.namespace else "")
    return NetworkName(display if nad.namespace else config.name), config


@contextmanager
def _config_errors(network: str) -> Generator[None]:
    """Translate an error in the configuration of *network* into the failure of the request."""
    try:
        yield
    except ConfigError as error:
        raise failed(
            ErrorClass.INVALID_CONFIG,
            Phase.RESOLVE,
            f"network {shown(network)} can't be used: {error}",
            network=network,
        ) from error


def _capability_values(network: NetworkName, config: NetworkConfig, selection: Selection | None) -> dict[str, Any]:
    """Return the values that *selection* requests, by capability (CNI conventions, "well-known capabilities").

    Raises an error for a request that would be ignored silently (NPWG specification 1.3, section 4).
    """
    if selection is None:
        return {}
    possible: dict[str, Any] = {
        "ips": selection.ips,
        "mac": selection.mac,
        "infinibandGUID": selection.infiniband_guid,
        "portMappings": [_port_mapping(mapping) for mapping in selection.port_mappings],
        "bandwidth": msgspec.to_builtins(selection.bandwidth) if selection.bandwidth else None,
        "deviceID": selection.device_id,
    }
    values = {capability: value for capability, value in possible.items() if value}
    missing = conflist.unsupported_capabilities(config, [name for name in values if name not in _ALSO_IN_CNI_ARGS])
    if missing:
        raise failed(
            ErrorClass.INVALID_ANNOTATION,
            Phase.RESOLVE,
            f"network {network}: no plugin of the network declares the capability {', '.join(missing)} "
            f"that the annotation uses; declare it in the network's configuration or remove the request",
            network=network,
        )
    return values


def _ips_in_args(config: NetworkConfig, ips: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of *ips* that go into CNI_ARGS too: host-local refuses several there, but not in ``runtimeConfig``.

    Other IPAM plugins read several there, and some, such as whereabouts, only there.
    """
    refused = len(ips) > 1 and any(
        conflist.ipam_type(plugin) == "host-local" and "ips" in conflist.declared_capabilities(plugin)
        for plugin in config.plugins
    )
    return () if refused else ips


def _of_device(device: str, device_info: str) -> dict[str, str]:
    """Return the capabilities of an attachment's device. They override those of a request."""
    offered = {"deviceID": device, _DEVICE_INFO: device_info}
    return {capability: value for capability, value in offered.items() if value}


def _port_mapping(mapping: PortMapping) -> dict[str, Any]:
    """Return *mapping* as runtimes pass it to plugins: always with the protocol."""
    return {**msgspec.to_builtins(mapping), "protocol": mapping.protocol}
