"""The interface of native plugins: the verbs of the CNI specification as functions.

The functions run in a native process and may block. They raise ``NativeError`` where the reference plugin would end
with an error; the DEL that follows removes what they had created until then, as with any plugin (CNI specification 1.1,
section 2, "DEL").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import msgspec

from nodeworker.plugins.spec.results import Result

GENERIC = 999
"""The CNI error code of the reference plugins for errors without another code."""
INVALID_CONFIG = 7
"""The code of a configuration or request that can never work (CNI specification 1.1, section 5, "Error")."""
TRY_AGAIN = 11
"""The code of an operation that is not possible now (CNI specification 1.1, section 5, "Error"); it had no effect."""
BLOCKED_TIMEOUT = 10.0
"""Seconds that a job may be blocked by others before that is an error."""


class NativeError(Exception):
    """A native plugin can't do its verb; ``code`` is the CNI error code of the reference plugin."""

    def __init__(self, message: str, code: int = GENERIC) -> None:
        super().__init__(message)
        self.code = code


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a plugin: what a process would find in its environment and on its standard input."""

    container_id: str
    netns: str
    """Path of the container's network namespace; empty in a DEL after it is gone."""
    ifname: str
    config: dict[str, Any]
    """The plugin's configuration, with ``name``, ``cniVersion`` and ``runtimeConfig``, without ``prevResult``."""
    args: Mapping[str, str] = {}
    """CNI_ARGS."""
    prev_result: Result | None = None
    """Of the plugin before in the chain; in CHECK and DEL, the attachment's."""
    lock_timeout: float = BLOCKED_TIMEOUT
    """Seconds to wait for a lock that another process has; after that, ``TRY_AGAIN``."""

    @property
    def network(self) -> str:
        """``name`` of the network configuration."""
        return str(self.config.get("name", ""))


class InterfacePlugin(Protocol):
    """A main or meta plugin: a module of ``nodeworker.plugins.native.kinds``."""

    TYPE: str
    """``type`` in the configuration, which is the name of the reference plugin's binary."""

    def unsupported(self, config: Mapping[str, Any]) -> str:
        """Return the option of *config* that only the reference plugin supports, or an empty text. Pure."""
        ...

    def add(self, call: Call, ipam_result: Result | None) -> Result:
        """Make the interface and return the result. *ipam_result*: of the IPAM plugin; None: the network has none.

        The result includes the interface's MTU, which is recorded and not printed. A repeated call, after one that was
        interrupted anywhere, gives the same interface. Raises NativeError.
        """
        ...

    def check(self, call: Call) -> None:
        """Raise NativeError unless the interface is as ``call.prev_result`` says."""
        ...

    def delete(self, call: Call) -> None:
        """Remove what ``add`` created; it may be gone already. Raises NativeError."""
        ...


class CollectingPlugin(InterfacePlugin, Protocol):
    """An interface plugin that creates objects that may outlive the interface, such as rules."""

    def collect(self, call: Call, valid: Collection[tuple[str, str]]) -> None:
        """Remove what belongs to the network and to none of the *valid* (container ID, interface name).

        *call* is for no container. Raises NativeError.
        """
        ...


class IpamPlugin(Protocol):
    """An IPAM plugin; a module of ``nodeworker.plugins.native.ipam`` is one. ``config`` of a call is the main
    plugin's."""

    TYPE: str

    def unsupported(self, config: Mapping[str, Any]) -> str:
        """Return the option of *config* that only the reference plugin supports, or an empty text. Pure."""
        ...

    def add(self, call: Call) -> Result:
        """Assign addresses and return them, with routes and dns, without interfaces. Raises NativeError."""
        ...

    def check(self, call: Call) -> None:
        """Raise NativeError unless the addresses are still assigned."""
        ...

    def delete(self, call: Call) -> None:
        """Free the addresses; there may be none. Raises NativeError."""
        ...

    def status(self, call: Call) -> None:
        """Raise NativeError unless an ADD would get its addresses now; *call* is for no container."""
        ...

    def collect(self, call: Call, valid: Collection[tuple[str, str]]) -> None:
        """Free the network's addresses of all but the *valid* (container ID, interface name). Raises NativeError.

        *call* is for no container.
        """
        ...
