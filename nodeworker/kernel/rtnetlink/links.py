"""Requests that create, change, find and delete interfaces, and the kernel's descriptions of interfaces."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from nodeworker.kernel import codec
from nodeworker.kernel.codec import Attributes, Values
from nodeworker.kernel.layouts import AF_BRIDGE, LinkMessage, ifinfmsg, nl, nsidmsg, rtnl
from nodeworker.kernel.rtnetlink.message import Answer, Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError

OPERSTATE_UP: Final = ifinfmsg.state_by_name["UP"]
"""The state (RFC 2863) of an interface that carries traffic."""
OPERSTATE_DOWN: Final = ifinfmsg.state_by_name["DOWN"]
OPERSTATE_LOWER_LAYER_DOWN: Final = ifinfmsg.state_by_name["LOWERLAYERDOWN"]

BONDS: Final = frozenset({"bond", "team"})
"""Kinds of interface that share one MAC address and MTU with their members."""

EXT_MASK_NO_STATISTICS: Final = 0x8
"""``RTEXT_FILTER_SKIP_STATS``. (pyroute2 has no name for it.)"""
LAYOUT = codec.layout(LinkMessage)
_NAMESPACE_ID = codec.layout(nsidmsg.nsidmsg)
_NO_NAMESPACE_ID: Final = 0xFFFFFFFF
_ABSENT = frozenset({errno.ENODEV})


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An interface as the kernel describes it."""

    index: int
    name: str
    kind: str
    """``bridge``, ``veth``, ``macvlan``, ...; empty for a device that the kernel has no kind for."""
    mac: str
    mtu: int
    flags: int
    master: int
    """Index of the bridge, bond or VRF that it is a port of, 0 for none."""
    parent: int
    """Index of its lower interface, or of a veth's other end, which may be in another namespace; 0 for none."""
    parent_netnsid: int | None
    """The number of the parent's namespace in this one; None: the parent is in this one."""
    operstate: int
    """RFC 2863 state; ``OPERSTATE_UP`` carries traffic."""
    queue_length: int
    """Of its transmission queue, in packets."""
    data: Values
    """The attributes of its kind."""
    alias: str = ""
    altnames: tuple[str, ...] = ()
    """Alternative names."""

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & ifinfmsg.IFF_UP)

    @property
    def promiscuous(self) -> bool:
        """Whether it is set to receive every frame."""
        return bool(self.flags & ifinfmsg.IFF_PROMISC)


def create(
    name: str,
    kind: str,
    *,
    data: Values | None = None,
    parent: int = 0,
    parent_netnsid: int | None = None,
    mtu: int = 0,
    mac: str = "",
    queue_length: int | None = None,
) -> Request:
    """Return the request for a new interface; the kernel chooses what is 0, empty or None.

    It fails with EEXIST if the name is taken, and with EOPNOTSUPP if the kernel has no such kind.
    """
    body = LAYOUT.encode(
        {
            "IFLA_IFNAME": name,
            "IFLA_LINK": parent or None,
            "IFLA_LINK_NETNSID": parent_netnsid,
            "IFLA_MTU": mtu or None,
            "IFLA_ADDRESS": mac or None,
            "IFLA_TXQLEN": queue_length,
            "IFLA_LINKINFO": {"IFLA_INFO_KIND": kind, "IFLA_INFO_DATA": data or None},
        }
    )
    return Request(rtnl.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


def veth_peer(name: str, *, netns_fd: int | None = None, mtu: int = 0, queue_length: int | None = None) -> Values:
    """Return the ``data`` of a veth whose other end is *name*, created in the namespace *netns_fd*, or in this one."""
    peer = {
        "IFLA_IFNAME": name,
        "IFLA_MTU": mtu or None,
        "IFLA_TXQLEN": queue_length,
        "IFLA_NET_NS_FD": netns_fd,
    }
    return {"VETH_INFO_PEER": peer}


def change(
    index: int,
    *,
    up: bool | None = None,
    promiscuous: bool | None = None,
    allmulti: bool | None = None,
    mtu: int = 0,
    mac: str = "",
    master: int | None = None,
    alias: str | None = None,
    group: int | None = None,
    queue_length: int | None = None,
    name: str = "",
    netns_fd: int | None = None,
) -> Request:
    """Return the request that changes the interface *index*; None, 0 or an empty value leaves a property unchanged.

    *master* 0 removes it from its bridge, bond or VRF. With *netns_fd* it moves to that namespace, as *name*, down.
    """
    switches = ((up, ifinfmsg.IFF_UP), (promiscuous, ifinfmsg.IFF_PROMISC), (allmulti, ifinfmsg.IFF_ALLMULTI))
    return _set(
        {
            "index": index,
            "flags": sum(flag for switch, flag in switches if switch),
            "change": sum(flag for switch, flag in switches if switch is not None),
            "IFLA_MTU": mtu or None,
            "IFLA_ADDRESS": mac or None,
            "IFLA_TXQLEN": queue_length,
            "IFLA_MASTER": master,
            "IFLA_IFNAME": name or None,
            "IFLA_NET_NS_FD": netns_fd,
            # An alias of the greatest length leaves no room for a zero byte, and no byte deletes the alias.
            "IFLA_IFALIAS": None if alias is None else alias.encode(),
            "IFLA_GROUP": group,
        }
    )


def enable_arp_notify(index: int) -> Request:
    """Return the request after which the interface *index* tells its neighbours when it comes up (``arp_notify``).

    A kernel that does not permit it is no error. The request takes a fraction of the time of the parameter's file.
    """
    spec = {"AF_INET": {"IFLA_INET_CONF": {"IPV4_DEVCONF_ARP_NOTIFY": 1}}}
    ignored = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPERM})
    return _set({"index": index, "IFLA_AF_SPEC": spec}, ignored)


def delete(index: int) -> Request:
    """Return the request that deletes the interface *index*, and the other end of a veth; none is no error."""
    return Request(rtnl.RTM_DELLINK, 0, LAYOUT.encode({"index": index}), _ABSENT)


def delete_group(group: int) -> Request:
    """Return the request that deletes all interfaces of *group*, which takes little longer than one."""
    return Request(rtnl.RTM_DELLINK, 0, LAYOUT.encode({"IFLA_GROUP": group}), _ABSENT)


def by_name(name: str) -> Request:
    """Return the request for the interface *name*, which may be one of its alternative names."""
    is_long = len(name.encode()) >= rtnl.IFNAMSIZ
    return _get({"IFLA_ALT_IFNAME" if is_long else "IFLA_IFNAME": name})


def by_index(index: int) -> Request:
    """Return the request for the interface *index*."""
    return _get({"index": index})


def find(netlink: Netlink, request: Request) -> Link | None:
    """Return the interface that *request* (``by_name`` or ``by_index``) asks for, None if there is none.

    Raises NetlinkError.
    """
    try:
        return decode(netlink.ask(request))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def find_each(netlink: Netlink, names: Iterable[str]) -> list[Link]:
    """Return the existing interfaces among *names*. Raises NetlinkError."""
    return [decode(answer) for answer in netlink.ask_each(*map(by_name, names)) if answer is not None]


def list_all(netlink: Netlink) -> list[Link]:
    """Return all interfaces. Raises NetlinkError."""
    return [decode(answer) for answer in netlink.dump(_get({})) if answer.type == rtnl.RTM_NEWLINK]


def decode(answer: Answer) -> Link:
    """Return the interface that *answer* describes."""
    found = LAYOUT.decode(answer.body)
    info: Values = found.get("IFLA_LINKINFO") or {}
    return Link(
        index=found["index"],
        name=found.get("IFLA_IFNAME", ""),
        kind=info.get("IFLA_INFO_KIND", ""),
        mac=found.get("IFLA_ADDRESS", ""),
        mtu=found.get("IFLA_MTU", 0),
        flags=found["flags"],
        master=found.get("IFLA_MASTER", 0),
        parent=found.get("IFLA_LINK", 0),
        parent_netnsid=found.get("IFLA_LINK_NETNSID"),
        operstate=found.get("IFLA_OPERSTATE", 0),
        queue_length=found.get("IFLA_TXQLEN", 0),
        data=_data(info),
        alias=found.get("IFLA_IFALIAS", ""),
        altnames=_altnames(found),
    )


class LinkNotice(msgspec.Struct, frozen=True):
    """An interface in a message that the kernel sends to subscribers."""

    family: int
    """``AF_BRIDGE`` where a bridge describes its port, else ``AF_UNSPEC``."""
    index: int
    names: tuple[str, ...]
    """The name, and the alternative ones."""
    up: bool
    master: int
    mtu: int


def decode_notice(body: bytes) -> LinkNotice:
    """Return the interface that the notice *body* describes, in less time than ``decode`` takes."""
    found = LAYOUT.decode(body)
    return LinkNotice(
        family=found["family"],
        index=found["index"],
        names=(found.get("IFLA_IFNAME", ""), *_altnames(found)),
        up=bool(found["flags"] & ifinfmsg.IFF_UP),
        master=found.get("IFLA_MASTER", 0),
        mtu=found.get("IFLA_MTU", 0),
    )


def deleted_index(body: bytes) -> int:
    """Return the index of the interface whose deletion RTM_DELLINK announces; 0 where it only left its bridge."""
    found = LAYOUT.decode(body)
    return 0 if found["family"] == AF_BRIDGE else found["index"]


def ensure_netnsid(netlink: Netlink, netns_fd: int) -> int:
    """Return the number of the namespace *netns_fd* in the socket's own; assign one (RTM_NEWNSID) if there is none.

    Raises NetlinkError.
    """
    namespace = {"NETNSA_FD": netns_fd}
    give = Request(rtnl.RTM_NEWNSID, 0, _NAMESPACE_ID.encode({**namespace, "NETNSA_NSID": _NO_NAMESPACE_ID}))
    refused, answer = netlink.do_and_ask(give, Request(rtnl.RTM_GETNSID, 0, _NAMESPACE_ID.encode(namespace)))
    if refused is not None and refused.errno != errno.EEXIST:
        raise refused
    number = decode_netnsid(answer.body) if answer else None
    if number is None:
        raise NetlinkError(errno.ENODATA, "the kernel gave the namespace no number")
    return number


def decode_netnsid(body: bytes) -> int | None:
    """Return the number of the namespace that *body* is about, None if it states none."""
    return _NAMESPACE_ID.decode(body).get("NETNSA_NSID")


def _set(values: Values, ignored: frozenset[int] = frozenset()) -> Request:
    return Request(rtnl.RTM_SETLINK, 0, LAYOUT.encode(values), ignored)


def _get(values: dict[str, Any]) -> Request:
    return Request(rtnl.RTM_GETLINK, 0, LAYOUT.encode({**values, "IFLA_EXT_MASK": EXT_MASK_NO_STATISTICS}))


def _data(info: Values) -> Values:
    """Return the attributes of a link's kind; none where pyroute2 does not know that kind."""
    data = info.get("IFLA_INFO_DATA")
    return data if isinstance(data, Attributes) else {}


def _altnames(found: Attributes) -> tuple[str, ...]:
    names: Attributes | None = found.get("IFLA_PROP_LIST")
    return tuple(names.repeated("IFLA_ALT_IFNAME")) if names else ()
