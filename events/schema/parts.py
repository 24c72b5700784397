"""What the events are made of: names, kinds and classes, pods, plans, failures, drift and leaks."""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

EventId = NewType("EventId", str)
NodeName = NewType("NodeName", str)
ContainerId = NewType("ContainerId", str)
IfName = NewType("IfName", str)
NetworkName = NewType("NetworkName", str)
RequestId = NewType("RequestId", str)
LeakId = NewType("LeakId", str)
"""``<kind of thing>/<what it is called on the node>``: the same thing has the same, however often it is seen."""

NO_SANDBOX = ContainerId("")
"""The sandbox of an event that belongs to the node, or to a request that names no usable container ID."""

NO_NODE = NodeName("")
"""The node of the reconciler's events: it writes for many, and a node's own events have one writer, its worker."""

NO_CAUSE = EventId("")
"""The cause of an event that nothing in the ledger led to."""


class ErrorClass(enum.StrEnum):
    """Why something failed. A closed list: it is also the ``error_class`` label of the failure metrics."""

    UNSUPPORTED_VERSION = "unsupported_version"
    INVALID_REQUEST = "invalid_request"
    INVALID_CONFIG = "invalid_config"
    INVALID_ANNOTATION = "invalid_annotation"
    NETWORK_NOT_FOUND = "network_not_found"
    NETWORK_FORBIDDEN = "network_forbidden"
    POD_NOT_FOUND = "pod_not_found"
    POD_CHANGED = "pod_changed"
    SOURCE_UNAVAILABLE = "source_unavailable"
    NAMESPACE_INVALID = "namespace_invalid"
    INTERFACE_EXISTS = "interface_exists"
    PLUGIN_MISSING = "plugin_missing"
    PLUGIN_FAILED = "plugin_failed"
    PLUGIN_TIMEOUT = "plugin_timeout"
    PLUGIN_OUTPUT = "plugin_output"
    ROUTE_FAILED = "route_failed"
    DEVICE_UNAVAILABLE = "device_unavailable"
    NODE_NOT_READY = "node_not_ready"
    API_REFUSED = "api_refused"
    NOT_REPAIRABLE = "not_repairable"
    EVIDENCE_CHANGED = "evidence_changed"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    LEDGER_FULL = "ledger_full"
    ABANDONED = "abandoned"
    OVERTAKEN = "overtaken"
    INTERNAL = "internal"
    UNKNOWN = "unknown"
    """What a newer Plumbline wrote: its event must not be lost for a word that this one does not know."""

    @classmethod
    def _missing_(cls, value: object) -> ErrorClass:
        return cls.UNKNOWN


class Phase(enum.StrEnum):
    """Where in the life of a request something failed."""

    INTAKE = "intake"
    RESOLVE = "resolve"
    ADD = "add"
    ROLLBACK = "rollback"
    DEL = "del"
    CHECK = "check"
    GC = "gc"
    STATUS = "status"
    PUBLISH = "publish"
    REPAIR = "repair"
    RECLAIM = "reclaim"
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> Phase:
        return cls.UNKNOWN


class DriftKind(enum.StrEnum):
    """How a node differs from what the ledger says of a sandbox. A closed list: it is also a metric's label."""

    LINK_MISSING = "link_missing"
    LINK_DOWN = "link_down"
    MAC_CHANGED = "mac_changed"
    MTU_CHANGED = "mtu_changed"
    ADDRESS_MISSING = "address_missing"
    ADDRESS_FOREIGN = "address_foreign"
    ROUTE_MISSING = "route_missing"
    PARENT_MISSING = "parent_missing"
    PARENT_DOWN = "parent_down"
    PORT_DETACHED = "port_detached"
    """The node's end of a veth is no longer a port of its bridge."""
    VLANS_CHANGED = "vlans_changed"
    """That port is not in the bridge's VLANs that its network names."""
    MASQUERADE_MISSING = "masquerade_missing"
    """The node no longer gives what the container sends its own address (``ipMasq``)."""
    FILTER_MISSING = "filter_missing"
    """The node no longer filters who the container says that it is (``macspoofchk``)."""
    STATUS_CHANGED = "status_changed"
    """The pod's network-status was edited or removed; seen and put right by the reconciler."""
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> DriftKind:
        return cls.UNKNOWN


class LeakKind(enum.StrEnum):
    """Why nobody owns what is held. A closed list: it is also a metric's label."""

    SANDBOX_GONE = "sandbox_gone"
    """The runtime does not know the sandbox and its namespace is gone: its DEL never came."""
    REBOOTED = "rebooted"
    """The sandbox is of an earlier boot of the node."""
    DETACH_UNFINISHED = "detach_unfinished"
    """A plugin refuses the DEL, and the namespace is gone."""
    ADDRESS_UNOWNED = "address_unowned"
    """A file of host-local names a holder that neither ledger nor runtime knows."""
    ADDRESS_TORN = "address_torn"
    """A file of host-local names nobody."""
    LINK_UNOWNED = "link_unowned"
    DEVICE_INFO_STALE = "device_info_stale"
    RESULT_STALE = "result_stale"
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> LeakKind:
        return cls.UNKNOWN


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One failure: a sentence for people, and the parts that tools group by."""

    error_class: ErrorClass
    phase: Phase
    message: str
    code: int
    """CNI error code that the runtime is given (CNI specification 1.1, section 2, "Error")."""
    network: str = ""
    ifname: str = ""
    delegate: str = ""
    """``type`` of the plugin that failed."""
    details: str = ""


class Pod(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pod of a sandbox as the runtime named it in CNI_ARGS."""

    namespace: str = ""
    name: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else "-"


class PluginRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One execution of a plugin, as a binary or natively."""

    type: str
    command: str
    seconds: float
    exit_code: int
    """Negative: the signal that ended it."""
    stdout: str = ""
    """Empty for the plugin whose output is the result that the event records."""
    stderr: str = ""
    """Both are bounded: see ``nodeworker.plugins.exec``."""
    mtu: int = 0
    """Of the container's interface, as a native ADD left it, or an executed one that was the last of its chain; 0: not
    known."""


class PlannedAttachment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment of a plan, with all that ADD, CHECK and DEL of its delegate need."""

    network: NetworkName
    """``namespace/name`` of the NetworkAttachmentDefinition, else the ``name`` of the CNI configuration."""
    ifname: IfName
    cni_name: str
    """``name`` of the CNI configuration: what plugins know the network by."""
    cni_version: str
    plugins: tuple[str, ...]
    """The plugins' configurations in chain order, as handed to them but for ``prevResult``."""
    cni_args: str = ""
    """CNI_ARGS for the plugins."""
    default: bool = False
    """True for the pod's default network: its result is the runtime's."""
    disable_check: bool = False
    disable_gc: bool = False
    native: tuple[bool, ...] = ()
    """For each of ``plugins``, whether the worker does its work itself instead of executing it; empty: for none."""
    default_route: tuple[str, ...] | None = None
    """The pod's default routes go over this attachment: gateways, none for those that its plugins bring."""
    resource: str = ""
    """Device plugin resource, or DRA's, that ``device`` was drawn from."""
    device: str = ""
    """ID of the device that the attachment uses."""
    device_info: str = ""
    """Path of the file in which the plugins find, and may say, what the device is (Device Information 1.1.0)."""


class Drift(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way in which an attachment is not what the ledger says."""

    kind: DriftKind
    network: NetworkName
    ifname: IfName
    expected: str = ""
    """What the ledger says: an address with its prefix length, a route as ``destination via gateway``, a MAC, …"""
    found: str = ""
    """What the node has instead; empty: nothing."""


class Leak(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is held without a live attachment."""

    id: LeakId
    kind: LeakKind
    what: str
    """The address, link, or file."""
    holder: ContainerId = NO_SANDBOX
    ifname: IfName = IfName("")
    """Of a sandbox: the name that its runtime gave with the ADD."""
    network: str = ""
    path: str = ""
    """File or folder that it is in, where it is in one."""

    @property
    def sandbox(self) -> ContainerId:
        """The sandbox that its events belong to: what nobody owns belongs to the node."""
        return self.holder if self.kind in _LEAKED_SANDBOXES else NO_SANDBOX


_LEAKED_SANDBOXES = frozenset({LeakKind.SANDBOX_GONE, LeakKind.REBOOTED, LeakKind.DETACH_UNFINISHED})
