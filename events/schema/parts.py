"""The parts of events: names, closed lists, pods, plans, failures, drift and leaks."""

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
"""``<kind of resource>/<its name on the node>``: each observation of one resource has the same ID."""

NO_SANDBOX = ContainerId("")
"""The sandbox of an event of the node, or of a request without a usable container ID."""

NO_NODE = NodeName("")
"""The node of the reconciler's events, because only a node's worker writes events of that node."""

NO_CAUSE = EventId("")
"""The cause of an event without a cause in the ledger."""


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
    """A value of a newer Plumbline. Its event stays readable."""

    @classmethod
    def _missing_(cls, value: object) -> ErrorClass:
        return cls.UNKNOWN


class Phase(enum.StrEnum):
    """The phase of a request in which something failed."""

    INTAKE = "intake"
    RESOLVE = "resolve"
    RECORD = "record"
    """The ledger did not acknowledge a plan, an effect or an outcome."""
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
    """How a node differs from what the ledger says of a sandbox. A closed list: it is also the label of a metric."""

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
    """The node's end of the veth is not a port of its bridge any more."""
    VLANS_CHANGED = "vlans_changed"
    """The port has not the VLANs that its network names."""
    MASQUERADE_MISSING = "masquerade_missing"
    """The node does not masquerade the container's traffic any more (``ipMasq``)."""
    FILTER_MISSING = "filter_missing"
    """The node does not filter forged MAC addresses of the container any more (``macspoofchk``)."""
    RESERVATION_MISSING = "reservation_missing"
    """host-local's file of an address is missing, or names no owner."""
    RESERVATION_FOREIGN = "reservation_foreign"
    """host-local's file of an address names another owner."""
    DEVICE_INFO_CHANGED = "device_info_changed"
    """The file with device information was edited or removed."""
    STATUS_CHANGED = "status_changed"
    """The pod's network-status was edited or removed. The reconciler observes and repairs this."""
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> DriftKind:
        return cls.UNKNOWN


class LeakKind(enum.StrEnum):
    """Why a resource is a leak. A closed list: it is also the label of a metric."""

    SANDBOX_GONE = "sandbox_gone"
    """The runtime does not know the sandbox, and its namespace is gone: its DEL never came."""
    REBOOTED = "rebooted"
    """The sandbox is from an earlier boot of the node."""
    DETACH_UNFINISHED = "detach_unfinished"
    """A plugin refuses the DEL, and the namespace is gone."""
    ADDRESS_UNOWNED = "address_unowned"
    """A file of host-local names a container that neither the ledger nor the runtime knows."""
    ADDRESS_TORN = "address_torn"
    """A file of host-local names no container."""
    LINK_UNOWNED = "link_unowned"
    DEVICE_INFO_STALE = "device_info_stale"
    RESULT_STALE = "result_stale"
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> LeakKind:
        return cls.UNKNOWN


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One failure: a sentence for people, and the fields that tools group by."""

    error_class: ErrorClass
    phase: Phase
    message: str
    """One sentence, which begins with the subject."""
    code: int
    """CNI error code of the answer to the runtime (CNI specification 1.1, section 2, "Error")."""
    network: str = ""
    ifname: str = ""
    plugin_type: str = ""
    """Of the plugin that failed."""
    details: str = ""
    subject: str = ""
    """What the request was for: ``pod default/web``, ``sandbox 0a1b2c3d4e5f``; empty: neither is known."""


class WarningKind(enum.StrEnum):
    """What is unusual about an attachment that was made. A closed list: tools group by it."""

    DEVICE_MISSING = "device_missing"
    """A plugin uses devices, and the pod has none of the network's resource."""
    DEFAULT_ROUTE_TAKEN = "default_route_taken"
    """A network brought a default route that no ``default-route`` requests, and the pod uses it."""
    DEFAULT_ROUTE_ABSENT = "default_route_absent"
    """``default-route`` is empty, and the network's plugins created no default route."""
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> WarningKind:
        return cls.UNKNOWN


class AttachWarning(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator should know about an attachment that was made."""

    kind: WarningKind
    network: NetworkName
    ifname: IfName
    message: str
    """A sentence that names pod and network, and says what to do."""


class Pod(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pod of a sandbox, as the runtime named it in CNI_ARGS."""

    namespace: str = ""
    name: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else "-"


class PluginRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of a plugin, executed or native."""

    type: str
    command: str
    seconds: float
    exit_code: int
    """Negative: the signal that ended it."""
    stdout: str = ""
    """Empty for the plugin whose output is the event's result."""
    stderr: str = ""
    """``stdout`` and ``stderr`` are truncated: see ``nodeworker.plugins.exec``."""
    mtu: int = 0
    """MTU of the container's interface after a native ADD, or after an executed one that was the last of its chain.
    0: unknown."""


class PlannedAttachment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment of a plan, with everything that ADD, CHECK and DEL of its delegate need."""

    network: NetworkName
    """``namespace/name`` of the NetworkAttachmentDefinition, else the ``name`` of the CNI configuration."""
    ifname: IfName
    cni_name: str
    """``name`` of the CNI configuration: the network's name for plugins."""
    cni_version: str
    plugins: tuple[str, ...]
    """The plugins' configurations in chain order, as the plugins get them, but without ``prevResult``."""
    cni_args: str = ""
    """CNI_ARGS for the plugins."""
    default: bool = False
    """True for the pod's default network: its result is the answer to the runtime."""
    disable_check: bool = False
    disable_gc: bool = False
    native: tuple[bool, ...] = ()
    """For each of ``plugins``, whether it runs natively; empty: none does."""
    default_route: tuple[str, ...] | None = None
    """If set, the pod's default routes use this attachment: the gateways; empty: those of its plugins."""
    resource: str = ""
    """Resource of a device plugin, or of DRA, that ``device`` belongs to."""
    device: str = ""
    """ID of the device that the attachment uses."""
    device_info: str = ""
    """Path of the device's information file, which plugins read and may write (Device Information 1.1.0)."""


class Drift(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One difference between an attachment and the ledger."""

    kind: DriftKind
    network: NetworkName
    ifname: IfName
    expected: str = ""
    """The ledger's value: an address with prefix length, a route as ``destination via gateway``, a MAC, …"""
    found: str = ""
    """The node's value; empty: it has none."""


class Leak(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One resource without a live attachment."""

    id: LeakId
    kind: LeakKind
    what: str
    """The address, link, or file."""
    holder: ContainerId = NO_SANDBOX
    ifname: IfName = IfName("")
    """For a sandbox: the interface name that the runtime gave with the ADD."""
    network: str = ""
    path: str = ""
    """Its file or folder, if it has one."""

    @property
    def sandbox(self) -> ContainerId:
        """The sandbox of its events; empty if they belong to the node."""
        return self.holder if self.kind in _LEAKED_SANDBOXES else NO_SANDBOX


_LEAKED_SANDBOXES = frozenset({LeakKind.SANDBOX_GONE, LeakKind.REBOOTED, LeakKind.DETACH_UNFINISHED})
