"""The device of an attachment in the form of ``network-status`` (Device Information 1.1.0).

The order of the fields is the order in the text, as Go prints its struct. Fields unknown to that struct are omitted.
"""

from __future__ import annotations

import msgspec


class _Part(msgspec.Struct, frozen=True, omit_defaults=True, rename="kebab"):
    pass


class Pci(_Part, frozen=True):
    """A PCI device, such as a virtual function of a network card."""

    pci_address: str = ""
    vhost_net: str = ""
    rdma_device: str = ""
    pf_pci_address: str = ""
    representor_device: str = ""


class Vdpa(_Part, frozen=True):
    """A virtio data path acceleration device."""

    parent_device: str = ""
    driver: str = ""
    path: str = ""
    pci_address: str = ""
    pf_pci_address: str = ""
    representor_device: str = ""


class VhostUser(_Part, frozen=True):
    """A socket of vhost-user."""

    mode: str = ""
    path: str = ""


class Memif(_Part, frozen=True):
    """A shared memory interface."""

    role: str = ""
    path: str = ""
    mode: str = ""


class DeviceInfo(_Part, frozen=True):
    """The device of one attachment."""

    type: str = ""
    version: str = ""
    pci: Pci | None = None
    vdpa: Vdpa | None = None
    vhost_user: VhostUser | None = None
    memif: Memif | None = None


_DECODER = msgspec.json.Decoder(DeviceInfo)


def read(text: str) -> DeviceInfo | None:
    """Return the device in *text*; None if there is none or it is invalid: the status is valid without it."""
    try:
        return _DECODER.decode(text) if text else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
