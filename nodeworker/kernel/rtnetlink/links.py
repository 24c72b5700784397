"""Requests that make, change and find interfaces, and what the kernel says about one.

Layouts: RFC 3549, section 2.3.3.1, and the kernel's ``include/uapi/linux/if_link.h``.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping

import msgspec

from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import Answer, Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWNSID = 88
RTM_GETNSID = 90

IFF_UP = 0x1
IFF_NOARP = 0x80
IFF_PROMISC = 0x100
IFF_ALLMULTI = 0x200
IFF_LOWER_UP = 0x10000

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_TXQLEN = 13
IFLA_OPERSTATE = 16
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_LINK_NETNSID = 37
IFLA_PROP_LIST = 52
IFLA_ALT_IFNAME = 53

IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2

IFLA_BR_VLAN_FILTERING = 7
IFLA_BR_VLAN_DEFAULT_PVID = 39

IFLA_BRIDGE_FLAGS = 0
IFLA_BRIDGE_VLAN_INFO = 2
BRIDGE_FLAGS_MASTER = 1
BRIDGE_VLAN_INFO_PVID = 0x2
BRIDGE_VLAN_INFO_UNTAGGED = 0x4
BRIDGE_VLAN_INFO_RANGE_BEGIN = 0x8
BRIDGE_VLAN_INFO_RANGE_END = 0x10

IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33

VETH_INFO_PEER = 1

NETNSA_NSID = 1
NETNSA_FD = 3

_IFLA_INET_CONF = 1
_IPV4_DEVCONF_ARP_NOTIFY = 22

AF_BRIDGE = 7
OPERSTATE_DOWN = 2
OPERSTATE_LOWER_LAYER_DOWN = 3
OPERSTATE_UP = 6

RTEXT_FILTER_BRVLAN_COMPRESSED = 0x4
RTEXT_FILTER_SKIP_STATS = 0x8

_HEADER = struct.Struct("=BxHiII")
"""Family, device type, index, flags, mask of flags to change."""
_VLAN = struct.Struct("=HH")
"""Flags, VLAN ID."""
_ABSENT = frozenset({errno.ENODEV})
_LONGEST_NAME = 15
"""Bytes; alternative names may have 127."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An interface as the kernel describes it."""

    index: int
    name: str
    kind: str
    """``bridge``, ``veth``, ``macvlan``, ...; empty for what is none of the kernel's own kinds."""
    mac: str
    mtu: int
    flags: int
    master: int
    """Index of the bridge, bond or VRF that it is a port of, 0 for none."""
    parent: int
    """Index of what it rests on, or of a veth's other end, which may be an index in another namespace; 0 for none."""
    parent_netnsid: int | None
    """The namespace of ``parent`` as this one numbers it; None: this one."""
    operstate: int
    """RFC 2863 state; ``OPERSTATE_UP`` carries traffic."""
    queue_length: int
    """Of its transmission queue, in packets."""
    data: bytes
    """Attributes of its kind."""
    alias: str = ""
    altnames: tuple[str, ...] = ()
    """Other names that it is found by."""

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)

    @property
    def promiscuous(self) -> bool:
        """Whether it was told to take in every frame."""
        return bool(self.flags & IFF_PROMISC)


def create(
    name: str,
    kind: str,
    *,
    data: bytes = b"",
    parent: int = 0,
    parent_netnsid: int | None = None,
    mtu: int = 0,
    mac: str = "",
    queue_length: int | None = None,
) -> Request:
    """Return the request for a new interface; 0 and empty leave the choice to the kernel.

    It fails with EEXIST if the name is taken, and with EOPNOTSUPP if the kernel has no such kind.
    """
    attributes = [message.text(IFLA_IFNAME, name)]
    if parent:
        attributes.append(message.u32(IFLA_LINK, parent))
    if parent_netnsid is not None:
        attributes.append(message.u32(IFLA_LINK_NETNSID, parent_netnsid))
    attributes += _common(mtu, mac, queue_length)
    info = [message.text(IFLA_INFO_KIND, kind)]
    if data:
        info.append(message.attribute(IFLA_INFO_DATA | message.NESTED, data))
    attributes.append(message.nested(IFLA_LINKINFO, *info))
    return Request(
        RTM_NEWLINK, message.NLM_F_CREATE | message.NLM_F_EXCL, _HEADER.pack(0, 0, 0, 0, 0) + b"".join(attributes)
    )


def peer(name: str, *, netns_fd: int | None = None, mtu: int = 0, queue_length: int | None = None) -> bytes:
    """Return the ``data`` of a veth whose other end is *name*, made in the namespace *netns_fd*, or here, at once."""
    attributes = [message.text(IFLA_IFNAME, name), *_common(mtu, "", queue_length)]
    if netns_fd is not None:
        attributes.append(message.u32(IFLA_NET_NS_FD, netns_fd))
    return message.attribute(VETH_INFO_PEER, _HEADER.pack(0, 0, 0, 0, 0) + b"".join(attributes))


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
    """Return the request that changes the interface *index*; None, 0 and empty leave a thing as it is.

    *master* 0 takes it out of its bridge, bond or VRF. In the namespace *netns_fd* it arrives with *name*, down.
    """
    flags = mask = 0
    for wanted, flag in ((up, IFF_UP), (promiscuous, IFF_PROMISC), (allmulti, IFF_ALLMULTI)):
        if wanted is not None:
            mask |= flag
            flags |= flag if wanted else 0
    attributes = _common(mtu, mac, queue_length)
    if master is not None:
        attributes.append(message.u32(IFLA_MASTER, master))
    if name:
        attributes.append(message.text(IFLA_IFNAME, name))
    if netns_fd is not None:
        attributes.append(message.u32(IFLA_NET_NS_FD, netns_fd))
    if alias is not None:
        attributes.append(message.attribute(IFLA_IFALIAS, alias.encode()))
    if group is not None:
        attributes.append(message.u32(IFLA_GROUP, group))
    return Request(RTM_SETLINK, 0, _HEADER.pack(0, 0, index, flags, mask) + b"".join(attributes))


def notifying(index: int) -> Request:
    """Return the request that lets the interface *index* tell its neighbours when it comes up (``arp_notify``).

    The parameter is set where the kernel lets it be, and in a fraction of the time that its file takes.
    """
    parameter = message.u32(_IPV4_DEVCONF_ARP_NOTIFY, 1)
    family = message.nested(socket.AF_INET, message.nested(_IFLA_INET_CONF, parameter))
    return Request(
        RTM_SETLINK,
        0,
        _HEADER.pack(0, 0, index, 0, 0) + message.nested(IFLA_AF_SPEC, family),
        fine=frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPERM}),
    )


def port(index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> Request:
    """Return the request that changes how its bridge treats the port *index*; None leaves a thing as it is."""
    attributes = [
        message.u8(kind, wanted)
        for kind, wanted in ((IFLA_BRPORT_MODE, hairpin), (IFLA_BRPORT_ISOLATED, isolated))
        if wanted is not None
    ]
    return Request(RTM_SETLINK, 0, _HEADER.pack(AF_BRIDGE, 0, index, 0, 0) + message.nested(IFLA_PROTINFO, *attributes))


def vlan_filtering() -> bytes:
    """Return the ``data`` of a bridge whose ports belong to VLANs."""
    return message.u8(IFLA_BR_VLAN_FILTERING, 1)


def default_vlan(bridge: Link) -> int:
    """Return the VLAN that every new port of *bridge* belongs to, 0 for none."""
    return message.as_int(message.attributes(bridge.data).get(IFLA_BR_VLAN_DEFAULT_PVID))


def into_vlan(index: int, vlan: int) -> Request:
    """Return the request that makes the port *index* one of *vlan*, which is known by no tag on that port."""
    return Request(RTM_SETLINK, 0, _port_vlans(index, (BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED, vlan)))


def into_tagged_vlans(index: int, ranges: Iterable[tuple[int, int]]) -> Request:
    """Return the request that makes the port *index* one of the VLANs in *ranges* (first, last), by their tags."""
    limits = (
        ((BRIDGE_VLAN_INFO_RANGE_BEGIN, first), (BRIDGE_VLAN_INFO_RANGE_END, last)) if first < last else ((0, first),)
        for first, last in ranges
    )
    return Request(RTM_SETLINK, 0, _port_vlans(index, *(each for limit in limits for each in limit)))


def out_of_vlan(index: int, vlan: int) -> Request:
    """Return the request that takes the port *index* out of *vlan*; it may be out."""
    return Request(RTM_DELLINK, 0, _port_vlans(index, (0, vlan)), frozenset({errno.ENOENT}))


def port_vlans() -> Request:
    """Return the request for a dump of all ports of bridges, each with the VLANs that it belongs to."""
    mask = message.u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN_COMPRESSED | RTEXT_FILTER_SKIP_STATS)
    return Request(RTM_GETLINK, 0, _HEADER.pack(AF_BRIDGE, 0, 0, 0, 0) + mask)


def vlans_of(index: int, answers: Iterable[Answer]) -> dict[int, int]:
    """Return the VLANs of the port *index*, each with its flags, from the *answers* to ``port_vlans``."""
    found: dict[int, int] = {}
    for answer in answers:
        family, _, described_index, _, _ = _HEADER.unpack_from(answer.body)
        if answer.type != RTM_NEWLINK or (family, described_index) != (AF_BRIDGE, index):
            continue
        spec = message.attributes(answer.body, _HEADER.size).get(IFLA_AF_SPEC, b"")
        first = 0
        for kind, value in message.each_attribute(spec):
            if kind != IFLA_BRIDGE_VLAN_INFO or len(value) < _VLAN.size:
                continue
            flags, vlan = _VLAN.unpack_from(value)
            if flags & BRIDGE_VLAN_INFO_RANGE_BEGIN:
                first = vlan
                continue
            begin = first if flags & BRIDGE_VLAN_INFO_RANGE_END and first else vlan
            kept = flags & (BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED)
            for number in range(begin, vlan + 1):
                found[number] = kept
            first = 0
    return found


def delete(index: int) -> Request:
    """Return the request that takes the interface *index* away, and the other end of a veth with it."""
    return Request(RTM_DELLINK, 0, _HEADER.pack(0, 0, index, 0, 0), _ABSENT)


def delete_group(group: int) -> Request:
    """Return the request that takes away all interfaces of *group*, which takes little longer than one."""
    return Request(RTM_DELLINK, 0, _HEADER.pack(0, 0, 0, 0, 0) + message.u32(IFLA_GROUP, group), _ABSENT)


def named(name: str) -> Request:
    """Return the request for the interface *name*, which may be one of its alternative names."""
    return _get(0, message.text(IFLA_IFNAME if len(name.encode()) <= _LONGEST_NAME else IFLA_ALT_IFNAME, name))


def numbered(index: int) -> Request:
    """Return the request for the interface *index*."""
    return _get(index, b"")


def find(netlink: Netlink, wanted: Request) -> Link | None:
    """Return the interface that *wanted* (``named`` or ``numbered``) asks for, None if there is none."""
    try:
        return described(netlink.ask(wanted))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def find_each(netlink: Netlink, names: Iterable[str]) -> list[Link]:
    """Return those of the interfaces *names* that are there."""
    return [described(answer) for answer in netlink.look(*map(named, names)) if answer is not None]


def every(netlink: Netlink) -> list[Link]:
    """Return all interfaces."""
    return [described(answer) for answer in netlink.dump(_get(0, b"")) if answer.type == RTM_NEWLINK]


def described(answer: Answer) -> Link:
    """Return the interface that *answer* describes."""
    _, _, index, flags, _ = _HEADER.unpack_from(answer.body)
    found = message.attributes(answer.body, _HEADER.size)
    info = message.attributes(found.get(IFLA_LINKINFO, b""))
    netnsid = found.get(IFLA_LINK_NETNSID)
    return Link(
        index=index,
        name=message.as_text(found.get(IFLA_IFNAME)),
        kind=message.as_text(info.get(IFLA_INFO_KIND)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=message.as_int(found.get(IFLA_MTU)),
        flags=flags,
        master=message.as_int(found.get(IFLA_MASTER)),
        parent=message.as_int(found.get(IFLA_LINK)),
        parent_netnsid=None if netnsid is None else message.as_int(netnsid),
        operstate=message.as_int(found.get(IFLA_OPERSTATE)),
        queue_length=message.as_int(found.get(IFLA_TXQLEN)),
        data=info.get(IFLA_INFO_DATA, b""),
        alias=message.as_text(found.get(IFLA_IFALIAS)),
        altnames=altnames(found),
    )


def altnames(found: Mapping[int, bytes]) -> tuple[str, ...]:
    """Return the alternative names among the attributes *found* of an interface."""
    listed = message.each_attribute(found.get(IFLA_PROP_LIST, b""))
    return tuple(message.as_text(each) for kind, each in listed if kind == IFLA_ALT_IFNAME)


def index_gone(notice: bytes) -> int:
    """Return the index of the interface that RTM_DELLINK tells of; 0 where it has but left its bridge."""
    family, _, index, _, _ = _HEADER.unpack_from(notice)
    return 0 if family == AF_BRIDGE else index


def netnsid(netlink: Netlink, netns_fd: int) -> int:
    """Return the number of the namespace *netns_fd* in the socket's own, which gives it one if it has none.

    Raises NetlinkError.
    """
    family = b"\0\0\0\0"
    wanted = family + message.u32(NETNSA_FD, netns_fd)
    give = Request(RTM_NEWNSID, 0, wanted + message.u32(NETNSA_NSID, 0xFFFFFFFF))
    refused, answer = netlink.make(give, Request(RTM_GETNSID, 0, wanted))
    if refused is not None and refused.errno != errno.EEXIST:
        raise refused
    number = message.attributes(answer.body, len(family)).get(NETNSA_NSID) if answer else None
    if number is None:
        raise NetlinkError(errno.ENODATA, "the kernel gave the namespace no number")
    return message.as_int(number)


def _port_vlans(index: int, *infos: tuple[int, int]) -> bytes:
    which = message.u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_MASTER)
    vlans = (message.attribute(IFLA_BRIDGE_VLAN_INFO, _VLAN.pack(*each)) for each in infos)
    return _HEADER.pack(AF_BRIDGE, 0, index, 0, 0) + message.nested(IFLA_AF_SPEC, which, *vlans)


def _get(index: int, attributes: bytes) -> Request:
    mask = message.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Request(RTM_GETLINK, 0, _HEADER.pack(0, 0, index, 0, 0) + attributes + mask)


def _common(mtu: int, mac: str, queue_length: int | None) -> list[bytes]:
    attributes: list[bytes] = []
    if mtu:
        attributes.append(message.u32(IFLA_MTU, mtu))
    if mac:
        attributes.append(message.attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))))
    if queue_length is not None:
        attributes.append(message.u32(IFLA_TXQLEN, queue_length))
    return attributes
