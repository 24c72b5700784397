"""The decision: what exactly will be attached, under which names, with which bytes.

All that can be known to be wrong is said here, where nothing has been done yet; what comes out goes into the ledger and
is from then on the only truth for ADD, CHECK and DEL.
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
from nodeworker.planning.resolve.default_route import claimed
from nodeworker.planning.resolve.netconf import NetConf
from nodeworker.planning.resolve.networks import Wanted, wanted
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.plugins.spec import conflist
from nodeworker.plugins.spec.cni_args import delegate_args, parse_args
from nodeworker.plugins.spec.conflist import ConfigError, NetworkConfig
from nodeworker.plugins.spec.names import ifname_problem, shown

_NO_DEVICES: Mapping[str, tuple[str, ...]] = {}
_DEVICE_INFO = "CNIDeviceInfoFile"
_LARGEST = 7 * 1024 * 1024
"""Bytes of a plan. It has to fit, with its envelope, into one message of the ledger, which takes 8 MiB."""
_parsed = functools.lru_cache(32)(conflist.parse)
"""Most pods of a node have the same few networks."""
_ALSO_IN_CNI_ARGS = frozenset({"ips", "mac"})
"""Requests that reach a plugin which declares no capability too: old static IPAM and macvlan NADs live on that."""


def plan(
    request: AttachRequested,
    container_id: str,
    conf: NetConf,
    pod: PodObject | None,
    networks: Mapping[NetworkRef, Nad],
    devices: Mapping[str, tuple[str, ...]] = _NO_DEVICES,
    info_folder: str = device_assignment.INFO_FOLDER,
) -> AttachPlanned:
    """Return what has to be done for *request*, in order.

    *networks* holds what was found of all that ``wanted`` refers to, *devices* what the pod has of each resource;
    files that tell of devices are below *info_folder*. ``runtimeConfig`` of the runtime goes to the default network
    only (NPWG specification 1.3, section 6); what an annotation requests goes to the network it selects.

    Raises RequestFailedError: INVALID_REQUEST, INVALID_CONFIG, INVALID_ANNOTATION, NETWORK_NOT_FOUND,
    NETWORK_FORBIDDEN, POD_CHANGED, DEVICE_UNAVAILABLE.
    """
    given_args = parse_args(request.args)
    _check_same_pod(request.pod, pod)
    wants = [want for want in wanted(conf, pod) if not want.auxiliary or want.ref in networks]
    who = f"pod {request.pod}" if request.pod.name else f"sandbox {container_id[:12]}"
    ifnames = _ifnames(request.ifname, wants, who)
    default_routes = claimed(wants, who)
    drawn = device_assignment.drawn(wants, networks, devices, who)
    attachments: list[PlannedAttachment] = []
    for index, (ifname, want) in enumerate(zip(ifnames, wants, strict=True)):
        default = index == 0
        network, config = definition(want, networks, who)
        requests = _requests(network, config, want.selection, who)
        device = drawn[index].device or requests.get("deviceID", "")
        device_info = ""
        if device or not conflist.unsupported_capabilities(config, [_DEVICE_INFO]):
            device_info = device_assignment.info_path(info_folder, network, container_id, ifname)
        offered = {**conf.runtime_config, **requests} if default else requests
        with _config_errors(who, network):
            plugins = conflist.render(
                config,
                capability_args=offered | _of_device(drawn[index].device, device_info),
                device=drawn[index].device,
                cni_args=want.selection.cni_args if want.selection else {},
            )
        attachments.append(
            PlannedAttachment(
                network=network,
                ifname=ifname,
                cni_name=config.name,
                cni_version=config.cni_version,
                plugins=plugins,
                cni_args=delegate_args(
                    given_args, container_id, mac=requests.get("mac", ""), ips=requests.get("ips", ()), default=default
                ),
                default=default,
                disable_check=config.disable_check,
                disable_gc=config.disable_gc,
                default_route=default_routes[index],
                resource=drawn[index].resource,
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
    _check_size(planned, who)
    return planned


def _check_same_pod(asked: Pod, found: PodObject | None) -> None:
    """Raise POD_CHANGED where the sandbox is of an earlier pod of the name: the annotations are not its own."""
    if found is None or found.static or not asked.uid or not found.uid or asked.uid == found.uid:
        return
    raise failed(
        ErrorClass.POD_CHANGED,
        Phase.RESOLVE,
        f"pod {found} was replaced: the sandbox is for UID {shown(asked.uid)} and the cluster has {shown(found.uid)}; "
        f"the kubelet will make a new sandbox for the new pod",
    )


def _check_size(planned: AttachPlanned, who: str) -> None:
    """Raise INVALID_CONFIG where the ledger could not take the plan, however often the runtime tries."""
    size = len(msgspec.json.encode(planned))
    if size > _LARGEST:
        raise failed(
            ErrorClass.INVALID_CONFIG,
            Phase.RESOLVE,
            f"{who}: the plan of its {len(planned.attachments)} attachments has {size} bytes, and the ledger takes "
            f"{_LARGEST}: select fewer networks, or make their configurations smaller",
        )


def _ifnames(runtime_name: str, wants: Sequence[Wanted], who: str) -> list[IfName]:
    """Return the interface names of *wants*: as requested, else the runtime's for the default and ``net<n>``."""
    if problem := ifname_problem(runtime_name):
        raise failed(
            ErrorClass.INVALID_REQUEST,
            Phase.RESOLVE,
            f"{who}: the runtime's CNI_IFNAME {shown(runtime_name)} {problem}; the runtime has to correct it",
        )
    names: dict[str, int] = {}
    for index, want in enumerate(wants):
        requested = want.selection.ifname if want.selection else ""
        name = requested or (runtime_name if index == 0 else f"net{index}")
        if name in names:
            first = names[name]
            if want.selection or wants[first].selection:
                error_class, remedy = ErrorClass.INVALID_ANNOTATION, "request another name in the pod's annotation"
            else:
                error_class, remedy = ErrorClass.INVALID_CONFIG, "let the runtime name its interface otherwise"
            raise failed(
                error_class,
                Phase.RESOLVE,
                f"{who}: attachments {first} ({_label(wants[first])}) and {index} ({_label(want)}) would both be named "
                f"{name}; {remedy}",
                network=_label(want),
                ifname=name,
            )
        names[name] = index
    return [IfName(name) for name in names]


def _label(want: Wanted) -> str:
    """Return what to call a network that has not been looked at."""
    if want.selection:
        return str(want.selection)
    return want.ref.name if want.ref else str((want.delegate or {}).get("name", ""))


def definition(want: Wanted, networks: Mapping[NetworkRef, Nad], who: str) -> tuple[NetworkName, NetworkConfig]:
    """Return the network's display name and its configuration.

    Raises RequestFailedError: NETWORK_NOT_FOUND, INVALID_CONFIG.
    """
    if want.ref is None:
        with _config_errors(who, _label(want)):
            config = conflist.parse(want.delegate or {})
        return NetworkName(config.name), config
    nad = networks.get(want.ref)
    if nad is None or not nad.config:
        missing = f"{want.ref.namespace}/{want.ref.name}"
        raise failed(
            ErrorClass.NETWORK_NOT_FOUND,
            Phase.RESOLVE,
            f"{who}: network {missing} {'has no configuration' if nad else 'does not exist'}; create it, or correct "
            f"the annotation or configuration that names it",
            network=missing,
        )
    display = f"{nad.namespace}/{nad.name}" if nad.namespace else nad.name
    with _config_errors(who, display):
        config = _parsed(nad.config, default_name=nad.name if nad.namespace else "")
    return NetworkName(display if nad.namespace else config.name), config


@contextmanager
def _config_errors(who: str, network: str) -> Generator[None]:
    """Turn what is wrong with the configuration of *network* into the failure of the request."""
    try:
        yield
    except ConfigError as error:
        raise failed(
            ErrorClass.INVALID_CONFIG,
            Phase.RESOLVE,
            f"{who}: network {shown(network)} can't be used: {error}",
            network=network,
        ) from error


def _requests(network: NetworkName, config: NetworkConfig, selection: Selection | None, who: str) -> dict[str, Any]:
    """Return what *selection* requests, by capability (CNI conventions, "well-known capabilities").

    Raises for what would be dropped without a word (NPWG specification 1.3, section 4).
    """
    if selection is None:
        return {}
    all_requests: dict[str, Any] = {
        "ips": selection.ips,
        "mac": selection.mac,
        "infinibandGUID": selection.infiniband_guid,
        "portMappings": [_port_mapping(mapping) for mapping in selection.port_mappings],
        "bandwidth": msgspec.to_builtins(selection.bandwidth) if selection.bandwidth else None,
        "deviceID": selection.device_id,
    }
    requests = {capability: value for capability, value in all_requests.items() if value}
    missing = conflist.unsupported_capabilities(config, [name for name in requests if name not in _ALSO_IN_CNI_ARGS])
    if missing:
        raise failed(
            ErrorClass.INVALID_ANNOTATION,
            Phase.RESOLVE,
            f"{who}: network {network}: no plugin of the network declares the capability {', '.join(missing)} that the "
            f"annotation makes use of; declare it in the network's configuration or remove the request",
            network=network,
        )
    return requests


def _of_device(device: str, device_info: str) -> dict[str, str]:
    """Return what is offered to plugins of an attachment's device, by capability. It wins over what anybody asked."""
    offered = {"deviceID": device, _DEVICE_INFO: device_info}
    return {capability: value for capability, value in offered.items() if value}


def _port_mapping(mapping: PortMapping) -> dict[str, Any]:
    """Return *mapping* as plugins know it from the runtimes: the protocol always there, in lower case."""
    return {**msgspec.to_builtins(mapping), "protocol": mapping.protocol.lower()}
