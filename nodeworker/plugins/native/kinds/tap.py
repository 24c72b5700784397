"""The tap plugin: an interface whose other end is a file descriptor, for a virtual machine in the container.

The kernel creates a tap device for a process that opens ``/dev/net/tun``, not through netlink. The plugin sets its
owner and makes it persistent before it closes that file: after an interrupted ADD the device is complete or gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Mapping
from typing import Any

from nodeworker.kernel.layouts import ifinfmsg, tuntap
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import add_link, check_of, remove_link
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, find_link, name_taken
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options, requested_mac
from nodeworker.plugins.spec.results import Result

TYPE = "tap"

_DEVICE: str = tuntap.TUNDEV
_KIND = "tun"
_IFREQ = struct.Struct("16sH22x")

_ABSENT = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""Errors of the open call on a kernel without tap devices."""


class Tap(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a network of tap devices."""

    multi_queue: bool = False
    mtu: U32 = 0
    """0: the kernel chooses."""
    mac: str = ""
    owner: U32 | None = None
    """The user ID that may open it; None: any process with CAP_NET_ADMIN."""
    group: U32 | None = None
    selinux_context: str = ""
    bridge: str = ""
    """A bridge in the container; the interface becomes its port."""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text.

    A device gets the SELinux context of the process that creates it, and the worker does not change its own context.
    """
    options = decode_options(config, Tap)
    if isinstance(options, str):
        return options
    return "selinuxContext" if options.selinux_context else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the interface and return the result. Raises NativeError."""
    config = decode_config(call, Tap)
    mac = requested_mac(call, config, {"mac": config.mac})
    return add_link(
        call,
        lambda ends: _create(ends, call, config, mac),
        ipam_result,
        version=config.cni_version,
        dns=config.dns,
        arp_notify=True,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config = decode_config(call, Tap)
    with check_of(call) as check:
        link = check.link(_KIND)
        if not _ours(link, config):
            raise NativeError(f"interface {call.ifname} is no longer the tap device of the ADD: recreate the pod")
        port_of = _bridge(check.ends, config)
        if port_of and link.master != port_of:
            raise NativeError(f"interface {call.ifname} is no longer a port of {config.bridge}: recreate the pod")
        check.addresses(link)


def delete(call: Call) -> None:
    """Delete the interface; it, or its namespace, may be gone. Raises NativeError."""
    remove_link(call)


def _bridge(ends: Endpoints, config: Tap) -> int | None:
    """Return the index of the configured bridge, None if none is configured."""
    if not config.bridge:
        return None
    link = find_link(ends.container, config.bridge)
    if link is None or link.kind != "bridge":
        state = "missing" if link is None else "not a bridge"
        raise NativeError(f"{config.bridge} is {state} in the container: an earlier network must create it")
    return link.index


def _create(ends: Endpoints, call: Call, config: Tap, mac: str) -> Link:
    port_of = _bridge(ends, config)
    link = _device(ends, call, config)
    if mac or config.mtu or port_of:
        with error_context(f"set the MAC address, MTU and bridge of {call.ifname}"):
            ends.container.do(links.change(link.index, mac=mac, mtu=config.mtu, master=port_of))
        link = find_link(ends.container, call.ifname) or link
    return link


def _device(ends: Endpoints, call: Call, config: Tap) -> Link:
    """Return the interface, new or from an interrupted ADD."""
    link = find_link(ends.container, call.ifname)
    if link is None:
        ends.netns.run_inside(lambda: _make(call.ifname, config))
        link = find_link(ends.container, call.ifname)
    if link is None or not _ours(link, config):
        raise name_taken(call)
    return link


def _make(name: str, config: Tap) -> None:
    """Create the device in the calling thread's namespace. Raises NativeError."""
    flags = (
        ifinfmsg.IFT_TAP
        | ifinfmsg.IFT_NO_PI
        | ifinfmsg.IFT_TUN_EXCL
        | (ifinfmsg.IFT_MULTI_QUEUE if config.multi_queue else 0)
    )
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise NativeError(f"can't create {name}: {_DEVICE}: {error.strerror}") from error
        words = f"this node's kernel does not support tap devices ({_DEVICE}: {error.strerror}): load its module tun"
        raise NativeError(f"can't create {name}: {words}") from error
    try:
        with error_context(f"create {name} as a tap device"):
            fcntl.ioctl(device, tuntap.TUNSETIFF, _IFREQ.pack(name.encode(), flags))
            for request, number in ((tuntap.TUNSETOWNER, config.owner), (tuntap.TUNSETGROUP, config.group)):
                if number is not None:
                    fcntl.ioctl(device, request, _signed(number))
            fcntl.ioctl(device, tuntap.TUNSETPERSIST, 1)
    finally:
        os.close(device)


def _signed(number: int) -> int:
    return struct.unpack("=i", struct.pack("=I", number))[0]


def _ours(link: Link, config: Tap) -> bool:
    if link.kind != _KIND:
        return False
    is_tap = link.data.get("IFLA_TUN_TYPE") == ifinfmsg.IFT_TAP
    users = (link.data.get("IFLA_TUN_OWNER"), link.data.get("IFLA_TUN_GROUP"))
    has_queues = bool(link.data.get("IFLA_TUN_MULTI_QUEUE"))
    return (is_tap, *users, has_queues) == (True, config.owner, config.group, config.multi_queue)
