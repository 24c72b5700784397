"""The worker loads pyroute2's descriptions of messages, and other processes the whole library."""

from __future__ import annotations

import subprocess
import sys

import pytest

WHOLE = ("pyroute2.iproute", "pyroute2.ndb", "pyroute2.ipdb", "pyroute2.nslink", "pyroute2.netlink.rtnl.iprsocket")


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_the_worker_with_all_plugins_does_not_load_the_whole_package() -> None:
    loaded = run(
        "import sys, nodeworker.__main__\n"
        "from nodeworker.plugins.native import registry\n"
        "[registry.interface_plugin(each) or registry.ipam_plugin(each) for each in registry.TYPES]\n"
        "print(*(each for each in sys.modules if each.startswith('pyroute2')))"
    ).split()
    assert "pyroute2.netlink.rtnl.ifinfmsg" in loaded
    assert "pyroute2.netlink.nfnetlink.nftsocket" in loaded
    assert not [each for each in loaded if each.startswith(WHOLE)]


@pytest.mark.parametrize(
    "use",
    [
        "from pyroute2 import IPRoute, NetNS",
        "import pyroute2; pyroute2.IPRoute",
        "import pyroute2; pyroute2.netns.listnetns",
        "from pyroute2.iproute import IPRoute",
    ],
)
def test_the_whole_package_is_usable_after_and_before_its_layouts(use: str) -> None:
    layouts = "import nodeworker.kernel.layouts as ours"
    for script in (f"{layouts}\n{use}", f"{use}\n{layouts}"):
        same = "from pyroute2.netlink.rtnl import ifinfmsg; print(ifinfmsg is ours.ifinfmsg)"
        assert run(f"{script}\n{same}").strip() == "True"


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    run(
        "import nodeworker.kernel.layouts, pyroute2\n"
        "assert not hasattr(pyroute2, '__wrapped__')\n"
        "assert not hasattr(pyroute2, 'no_such_name')\n"
        "assert pyroute2.IPRoute"
    )
