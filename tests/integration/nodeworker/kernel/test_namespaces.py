"""The look into a namespace: right where there is one, and refused where there is none."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError
from nodeworker.kernel.namespaces import interfaces_present, is_namespace, mtu_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"plumbline-test-{os.urandom(4).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "add", "net1", "type", "veth", "peer", "name", "net2"], check=True)
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def own() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_interfaces_present_lists_existing_interfaces(netns: str) -> None:
    assert interfaces_present(netns, ["net1", "net2", "net3", "lo", "x" * 15], Phase.RESOLVE) == {"net1", "net2", "lo"}
    assert interfaces_present(netns, [], Phase.RESOLVE) == set()


def test_mtu_of_an_existing_interface_is_returned(netns: str) -> None:
    subprocess.run(["ip", "-n", Path(netns).name, "link", "set", "net1", "mtu", "1412"], check=True)
    assert [mtu_of(netns, name, Phase.ADD) for name in ("net1", "net2", "net3")] == [1412, 1500, 0]
    with pytest.raises(RequestFailedError):
        mtu_of(f"{netns}-not", "net1", Phase.ADD)


def test_it_leaves_every_thread_where_it_was(netns: str) -> None:
    here = own()
    threads: set[int] = set()

    def look(_: int) -> int:
        threads.add(threading.get_ident())
        assert interfaces_present(netns, ["net1"], Phase.RESOLVE) == {"net1"}
        return own()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(look, range(200))) == {here}
    assert threads


def test_a_path_without_a_network_namespace_is_refused_unopened(netns: str, tmp_path: Path) -> None:
    fifo, regular = tmp_path / "fifo", tmp_path / "regular"
    os.mkfifo(fifo)
    regular.touch()
    before = os.listdir("/proc/self/fd")
    for path, words in (
        (str(fifo), "not a namespace file"),
        (str(regular), "not a namespace file"),
        (str(tmp_path), "not a namespace file"),
        (str(tmp_path / "missing"), "No such file"),
        ("", "No such file"),
        ("/dev/null", "not a namespace file"),
        ("/proc/self/ns/mnt", "another kind"),
        ("/proc/self/ns/net", "the node's own"),
    ):
        with pytest.raises(RequestFailedError, match=words) as caught:
            interfaces_present(path, ["net1"], Phase.CHECK)
        assert (caught.value.failure.error_class, caught.value.failure.code) == (ErrorClass.NAMESPACE_INVALID, 4)
        assert is_namespace(path) is (words == "the node's own")
    assert is_namespace(netns)
    assert os.listdir("/proc/self/fd") == before
