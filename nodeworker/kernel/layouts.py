"""The parts of pyroute2 that describe the kernel's messages, loaded without the rest of the library.

``pyroute2/__init__.py`` imports all sockets and databases of the library, 10 MiB, with any of its modules (upstream
issue 1404). This module therefore registers the package unexecuted before it imports the modules that describe
messages. The first use of a public name such as ``pyroute2.IPRoute`` executes the package, so a process off the attach
path, or a test, uses the library as usual.

``LinkMessage`` adds what pyroute2 leaves out, in pyroute2's own terms.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar


def _register_unexecuted(name: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not installed", name=name)
    package = importlib.util.module_from_spec(spec)
    vars(package)["__getattr__"] = _executing(package)
    sys.modules[name] = package


def _executing(package: ModuleType) -> Callable[[str], object]:
    """Return the ``__getattr__`` (PEP 562) that imports a module of *package*, or executes it for another name."""

    def execute(name: str) -> object:
        spec = package.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{package.__name__}.{name}"):
            return importlib.import_module(f"{package.__name__}.{name}")
        vars(package).pop("__getattr__", None)
        spec.loader.exec_module(package)
        return getattr(package, name)

    return execute


_register_unexecuted("pyroute2")

from pyroute2 import netlink as nl  # noqa: E402 - after the registration, as all of these
from pyroute2.config import AF_BRIDGE  # noqa: E402
from pyroute2.netlink import nfnetlink, nla, nlmsg, rtnl  # noqa: E402
from pyroute2.netlink.nfnetlink import nftsocket  # noqa: E402
from pyroute2.netlink.rtnl import fibmsg, ifaddrmsg, ifinfmsg, nsidmsg, rtmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg.plugins.ipvlan import ipvlan  # noqa: E402

__all__ = [
    "AF_BRIDGE",
    "LinkMessage",
    "fibmsg",
    "ifaddrmsg",
    "ifinfmsg",
    "ipvlan",
    "nfnetlink",
    "nftsocket",
    "nl",
    "nla",
    "nlmsg",
    "nsidmsg",
    "rtmsg",
    "rtnl",
    "tuntap",
]


tuntap = importlib.import_module("pyroute2.netlink.rtnl.ifinfmsg.tuntap")
"""By its full name: ``ifinfmsg.tuntap`` is another module, of a pseudo kind."""


class LinkMessage(ifinfmsg.ifinfmsg):
    """A message about an interface, with the IPv4 parameters that a request sets by number."""

    class af_spec_inet(ifinfmsg.ifinfmsg.af_spec_inet):  # noqa: N801 - pyroute2 finds the class by this name
        """The parameters of each address family.

        pyroute2 reads those of IPv4 as one array, which is the form that the kernel sends and does not take.
        """

        nla_map: ClassVar[Any] = ((socket.AF_INET, "AF_INET", "numbered_inet"),)

        class numbered_inet(nla):  # noqa: N801
            """The parameters of IPv4."""

            nla_map: ClassVar[Any] = ((1, "IFLA_INET_CONF", "conf"),)

            class conf(nla):  # noqa: N801
                """The parameters, numbered as in that array."""

                nla_map: ClassVar[Any] = tuple(
                    (number, f"IPV4_DEVCONF_{name.upper()}", "uint32")
                    for number, name in enumerate(ifinfmsg.ifinfmsg.af_spec_inet.inet.field_names)
                )
