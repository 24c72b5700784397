"""Decide for each sandbox whether the evidence suffices, and build its ``SandboxAdopted``.

Pure. Evidence counts in this order: libcni's entry of an attachment, with the arguments and the result of its ADD;
Multus' scratch file, with the planned attachments in order; the runtime's own request, with the pod, the interface and
the result; host-local, with the reserved addresses. Nothing is guessed: without evidence the sandbox is refused, with a
sentence for the administrator.

A sandbox whose namespace is gone is adopted too: its resources stay reserved until a DEL, which only Plumbline can run
from now on. The remains of a DEL are ignored: no address is reserved for the sandbox, and Multus has removed its
scratch file or the file is older than the last adoption.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from events.schema import AttachPlanned, ContainerId, NetworkName, PlannedAttachment, Pod, SandboxAdopted
from nodeworker.host.adopt import evidence
from nodeworker.host.adopt.read import SandboxFiles, multus_plugin
from nodeworker.host.adopt.records import Delegate, RecordError, Scratch
from nodeworker.host.adopt.sources import Source, sources
from nodeworker.plugins.spec import conflist
from nodeworker.plugins.spec.addresses import address
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.plugins.spec.conflist import ConfigError
from nodeworker.plugins.spec.versions import UNSTATED

SOURCE = "multus"

_BIN_DIR = "/opt/cni/bin"


class FoundNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """The current network namespace of a sandbox."""

    netns: str = ""
    """Its path, also if it is gone; empty: not known."""
    links: frozenset[str] | None = None
    """Names of the interfaces in it; None: it is gone."""
    inode: int = 0
    """Distinguishes it from a later namespace at the same path; 0: not known."""


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that can be adopted."""

    container_id: ContainerId
    data: SandboxAdopted
    notes: tuple[str, ...] = ()
    """Sentences for people."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that can't be adopted, and why."""

    container_id: ContainerId
    pod: Pod = Pod()
    problem: str
    """A sentence: the file, the problem, the remedy."""


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that is gone and holds nothing."""

    container_id: ContainerId


Verdict: TypeAlias = Adoption | Refusal | Leftover


class _Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime's call of Multus; empty fields if its own file is missing."""

    args: Mapping[str, str]
    cni_version: str = ""
    config: str = ""
    runtime_config: Mapping[str, Any] = {}
    bin_dir: str = ""
    result: str = ""


def judge(
    files: SandboxFiles,
    namespace: FoundNamespace,
    *,
    bin_dir: str = _BIN_DIR,
    system_namespaces: Collection[str] = (),
    adopted_until: int = 0,
) -> Verdict:
    """Return the verdict on the sandbox of *files*, whose namespace is *namespace*.

    *bin_dir* is searched for plugins after Multus' own ``binDir``. Pods in *system_namespaces* get no network-status.
    *adopted_until* is the time of the last complete adoption, in nanoseconds since 1970; 0: never.
    """
    if namespace.links is None and not _may_hold_something(files, adopted_until):
        return Leftover(container_id=files.container_id)
    pod = pod_of(_joined(_pod_args(files)))
    try:
        adoption = _adoption(files, namespace, pod, bin_dir)
    except RecordError as error:
        subject = f"sandbox {files.container_id[:12]}" + (f" of pod {pod}" if pod.name else "")
        remedy = (
            "delete the pod while Multus still serves the node, or free its addresses and devices by hand"
            if namespace.links is not None
            else "its namespace is gone: free its addresses by hand, then remove its files"
        )
        problem = f"{subject} can't be adopted: {error}; {remedy}"
        return Refusal(container_id=files.container_id, pod=pod, problem=problem)
    if not pod.name or pod.namespace in system_namespaces or namespace.links is None:
        return adoption
    return _published(adoption)


def _published(adoption: Adoption) -> Adoption:
    """Return *adoption* with a plan that publishes the pod's network-status, if its results tell all of that."""
    plan = adoption.data.plan
    unknown = [
        each.network
        for each, result in zip(plan.attachments, adoption.data.results, strict=True)
        if not result or each.device_info
    ]
    if unknown:
        note = f"its network-status stays as Multus wrote it: not everything is known of {', '.join(unknown)}"
        return replace(adoption, notes=(*adoption.notes, note))
    return replace(adoption, data=replace(adoption.data, plan=replace(plan, publish=True)))


def _may_hold_something(files: SandboxFiles, adopted_until: int) -> bool:
    if files.reserved:
        return True
    return files.scratch is not None and files.written > adopted_until


def _adoption(files: SandboxFiles, namespace: FoundNamespace, pod: Pod, bin_dir: str) -> Adoption:
    notes: list[str] = []
    runtime = _runtime(files)
    if not runtime.args:
        raise RecordError("no file has its CNI_ARGS, which name the pod")
    found = sources(files, namespace.links, notes)
    made = [_attachment(files, source, runtime, notes, default=index == 0) for index, source in enumerate(found)]
    attachments, results = [each[0] for each in made], [each[1] for each in made]
    ifname = files.request.ifname if files.request else attachments[0].ifname
    folders = dict.fromkeys(folder for folder in (runtime.bin_dir or _BIN_DIR, bin_dir) if folder)
    plan = AttachPlanned(
        ifname=ifname,
        netns=namespace.netns,
        path=":".join(folders),
        cni_version=runtime.cni_version or attachments[0].cni_version,
        attachments=tuple(attachments),
        pod=pod,
        netns_inode=namespace.inode,
    )
    data = SandboxAdopted(
        ifname=ifname,
        source=SOURCE,
        plan=plan,
        results=tuple(results),
        result=runtime.result or results[0],
        config=runtime.config,
        args=_joined(files.request.args if files.request else ()),
        evidence=_evidence(files, found),
    )
    return Adoption(container_id=files.container_id, data=data, notes=tuple(notes))


def _attachment(
    files: SandboxFiles, source: Source, runtime: _Runtime, notes: list[str], *, default: bool
) -> tuple[PlannedAttachment, str]:
    entry, delegate = source.entry, source.delegate
    config = evidence.configuration(entry, delegate, default=default)
    if entry is not None:
        arguments = evidence.recorded_arguments(entry)
        result = evidence.result_of(entry, config.cni_version)
        if not result:
            notes.append(f"{entry.path} has no usable result: DEL does not need it, CHECK does")
    else:
        assert delegate is not None
        arguments = evidence.rebuilt_arguments(
            delegate, files.container_id, source.ifname, runtime.args, runtime.runtime_config, default=default
        )
        result = runtime.result if default else ""  # Multus returns the default network's result unchanged
    try:
        plugins = conflist.render(config, capability_args=arguments.capability_args)
    except ConfigError as error:
        raise RecordError(f"network {config.name} can't be used: {error}") from error
    return (
        PlannedAttachment(
            network=NetworkName((delegate.name if delegate else "") or config.name),
            ifname=source.ifname,
            cni_name=config.name,
            cni_version=config.cni_version,
            plugins=plugins,
            cni_args=arguments.cni_args,
            default=default,
            disable_check=config.disable_check,
            disable_gc=config.disable_gc,
            default_route=_gateways(delegate),
            resource=delegate.resource if delegate else "",
            device=_text(arguments.capability_args.get("deviceID")) or (delegate.device if delegate else ""),
            device_info=_text(arguments.capability_args.get(evidence.DEVICE_INFO_FILE)),
        ),
        result,
    )


def _runtime(files: SandboxFiles) -> _Runtime:
    args = dict(_pod_args(files))
    request = files.request
    plugin = multus_plugin(request.config) if request else None
    if request is None or plugin is None:
        return _Runtime(args=args)
    try:
        config = conflist.parse(
            {**plugin, "cniVersion": _version(request.config, plugin)}, default_name=request.network
        )
        (stdin,) = conflist.render(config, capability_args=request.capability_args)
    except ConfigError as error:
        raise RecordError(f"{request.path} holds a configuration that can't be used: {error}") from error
    runtime_config: Any = msgspec.json.decode(stdin).get("runtimeConfig")
    return _Runtime(
        args=args,
        cni_version=config.cni_version,
        config=stdin,
        runtime_config=runtime_config if isinstance(runtime_config, dict) else {},
        bin_dir=_text(plugin.get("binDir")),
        result=evidence.result_of(request, config.cni_version),
    )


def _version(config: str, plugin: Mapping[str, Any]) -> str:
    """Return the CNI version in which the runtime called Multus: its list's, else the plugin's own."""
    try:
        return conflist.parse(config).cni_version
    except ConfigError:
        return _text(plugin.get("cniVersion")) or UNSTATED


def _pod_args(files: SandboxFiles) -> Sequence[tuple[str, str]]:
    """Return the runtime's CNI_ARGS, without the arguments that Multus added for one interface."""
    if files.request is not None:
        return files.request.args
    first = next((entry.args for entry in files.entries if entry.args), ())
    return [(key, value) for key, value in first if key not in {"MAC", "IP"}]


def _gateways(delegate: Delegate | None) -> tuple[str, ...] | None:
    if delegate is None or delegate.default_route is None:
        return None
    try:
        found = [address(text) for text in delegate.default_route]
    except ValueError as error:
        raise RecordError(f"default-route of network {delegate.name} is not a list of addresses: {error}") from error
    return tuple(map(str, found))


def _evidence(files: SandboxFiles, found: Sequence[Source]) -> tuple[str, ...]:
    paths = [files.scratch.path] if isinstance(files.scratch, Scratch) else []
    paths += [source.entry.path for source in found if source.entry is not None]
    paths += [files.request.path] if files.request else []
    return (*paths, *(files.reserved[name] for name in sorted(files.reserved)))


def _joined(args: Sequence[tuple[str, str]]) -> str:
    return ";".join(f"{key}={value}" for key, value in args)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
