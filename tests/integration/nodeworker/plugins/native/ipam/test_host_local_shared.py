"""One folder, many hands: executed and native plugins, threads and processes, and an ADD that comes twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nodeworker.plugins.native.ipam import reservations
from tests.support.plugins.ipam_harness import WAYS, native, needs_plugins, network, on_disk, reserved

REALTIME_COARSE = 5
"""A clock of the kernel's that Python has no name for (clock_gettime(2))."""
TRY_AGAIN = 11
SUBNET = {"subnet": "10.1.0.0/24"}
DUAL = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}

needs_both = pytest.mark.parametrize("ways", [("native", "executed"), ("executed", "native")])


def assigned(outcome: Any) -> list[str]:
    assert outcome.code == 0, outcome.message
    return [each["address"].split("/")[0] for each in outcome.result["ips"]]


@needs_plugins
@needs_both
def test_each_plugin_continues_and_frees_the_others_assignments(tmp_path: Path, ways: tuple[str, str]) -> None:
    config = network(tmp_path, DUAL)
    found = [assigned(WAYS[ways[number % 2]]("ADD", config, f"c{number}")) for number in range(6)]
    assert found == [[f"10.1.0.{n}", f"fd00::{n}"] for n in range(2, 8)]
    for number in range(6):
        other = WAYS[ways[1 - number % 2]]
        assert other("CHECK", config, f"c{number}").code == 0
        assert other("DEL", config, f"c{number}").code == 0
    assert reserved(tmp_path) == {}


def test_a_foreign_change_within_a_clock_tick_is_detected(tmp_path: Path) -> None:
    """The kernel's clock for files may not advance for milliseconds, so correctness must not depend on it."""
    config = network(tmp_path, SUBNET)
    folder = tmp_path / "net"
    for number in range(100):
        native("ADD", config, f"a{number}")
        # As fast as possible, like another process with the lock and the format, on a kernel with a coarse clock.
        (folder / f"10.1.0.{number + 2}").unlink()
        (folder / "10.1.0.200").write_text(f"b{number}\r\nnet1")
        now = time.clock_gettime_ns(REALTIME_COARSE)
        os.utime(folder, ns=(now, now))
        assert native("CHECK", config, f"b{number}").code == 0
        assert native("CHECK", config, f"a{number}").code == 999
        assert native("DEL", config, f"b{number}").code == 0
        assert reserved(tmp_path) == {}


def test_a_file_system_that_keeps_whole_seconds_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.utime

    def coarse(path: Any, *, ns: tuple[int, int]) -> None:
        honest(path, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9))

    monkeypatch.setattr(reservations.os, "utime", coarse)
    config = network(tmp_path, SUBNET)
    folder = tmp_path / "net"
    native("ADD", config)
    before = folder.stat().st_mtime_ns
    (folder / "10.1.0.2").rename(folder / "10.1.0.7")
    honest(folder, ns=(before, before))
    assert native("DEL", config).code == 0
    assert reserved(tmp_path) == {}


@pytest.mark.parametrize("ipam", [SUBNET, DUAL])
def test_a_repeated_add_gets_the_same_addresses(tmp_path: Path, ipam: dict[str, Any]) -> None:
    config = network(tmp_path, ipam)
    first = native("ADD", config)
    before = on_disk(tmp_path)
    native("ADD", config, "other")
    assert native("ADD", config) == first
    native("DEL", config, "other")
    assert reserved(tmp_path) == {name: content for name, content in before.items() if ":" in name or "10.1" in name}


def test_a_repeated_add_completes_an_interrupted_one(tmp_path: Path) -> None:
    config = network(tmp_path, DUAL)
    first = native("ADD", config)
    (tmp_path / "net" / "fd00::2").unlink()
    assert assigned(native("ADD", config)) == ["10.1.0.2", "fd00::3"]
    assert native("DEL", config).code == first.code == 0
    assert reserved(tmp_path) == {}


def test_a_repeated_add_with_another_request_frees_the_old_address(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    native("ADD", config, "other")
    native("ADD", config)
    assert assigned(native("ADD", config, args="IP=10.1.0.9")) == ["10.1.0.9"]
    assert assigned(native("ADD", config, args="IP=10.1.0.9")) == ["10.1.0.9"]
    assert reserved(tmp_path) == {"10.1.0.2": b"other\r\nnet1", "10.1.0.9": b"c1\r\nnet1"}


def test_a_requested_address_of_somebody_else_is_not_given_and_nothing_is_left(tmp_path: Path) -> None:
    config = network(tmp_path, DUAL)
    native("ADD", config, "other")
    before = reserved(tmp_path)
    refused = native("ADD", config, args="IP=fd00::2")
    assert refused.code == 999
    assert "fd00::2 is taken" in refused.message
    assert reserved(tmp_path) == before


def test_interfaces_of_one_container_are_apart(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    assert assigned(native("ADD", config, ifname="net1")) != assigned(native("ADD", config, ifname="net2"))
    native("DEL", config, ifname="net1")
    assert list(reserved(tmp_path).values()) == [b"c1\r\nnet2"]


def test_networks_of_one_name_in_other_folders_are_apart(tmp_path: Path) -> None:
    for base in ("a", "b"):
        assert assigned(native("ADD", network(tmp_path / base, SUBNET))) == ["10.1.0.2"]


def _live(data_dir: str, seed: int, ways: list[str]) -> list[tuple[str, list[str]]]:
    """Attach and detach for a while, by some threads; return what was assigned and kept."""
    config = network(data_dir, {"ranges": [[{"subnet": "10.1.0.0/25"}], [{"subnet": "fd00::/120"}]]})

    def call(way: str, verb: str, name: str) -> Any:
        """Call as often as the plugin asks for it: processes that block in the lock come before ours, which don't."""
        outcome = WAYS[way](verb, config, name)
        for _ in range(4):
            if outcome.code == TRY_AGAIN:
                outcome = WAYS[way](verb, config, name)
        assert outcome.code == 0, f"{way} {verb} of {name}: {outcome.message}"
        return outcome

    def one(thread: int) -> list[tuple[str, list[str]]]:
        choose = random.Random(seed * 100 + thread)
        kept: list[tuple[str, list[str]]] = []
        for number in range(12):
            name = f"c{seed}-{thread}-{number}"
            kept.append((name, assigned(call(choose.choice(ways), "ADD", name))))
            if choose.random() < 0.6:
                gone, _ = kept.pop(choose.randrange(len(kept)))
                call(choose.choice(ways), "DEL", gone)
        return kept

    with ThreadPoolExecutor(2) as threads:
        return [each for kept in threads.map(one, range(2)) for each in kept]


@pytest.mark.parametrize("ways", [["native"], pytest.param(["native", "executed"], marks=needs_plugins)])
def test_no_address_is_assigned_twice_by_either_plugin(tmp_path: Path, ways: list[str]) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        lives = [processes.submit(_live, str(tmp_path), seed, ways) for seed in range(4)]
        kept = [each for life in lives for each in life.result()]
    addresses = [address for _, both in kept for address in both]
    assert len(addresses) == len(set(addresses))
    owners = {address: f"{name}\r\nnet1".encode() for name, both in kept for address in both}
    assert reserved(tmp_path) == owners
    config = network(tmp_path, SUBNET)
    for name, _ in kept:
        assert native("DEL", config, name).code == 0
    assert reserved(tmp_path) == {}


def test_the_cache_of_folders_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "_MAX_CACHED_FILES", 10)
    memory = reservations._ContentsCache()
    monkeypatch.setattr(reservations, "_cache", memory)
    for base in range(6):
        for number in range(3):
            assert native("ADD", network(tmp_path / str(base), SUBNET), f"c{number}").code == 0
    kept = list(memory._folders.values())
    assert kept
    assert sum(len(each.contents) for each in kept) <= 10
    for base in range(6):
        assert assigned(native("ADD", network(tmp_path / str(base), SUBNET), "c9")) == ["10.1.0.5"]


def test_only_new_files_of_a_changed_folder_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []
    read: list[str] = []
    scan, read_one = os.scandir, reservations._read
    config = network(tmp_path, SUBNET)
    native("ADD", config, "c0")

    def note(folder: object) -> None:
        if isinstance(folder, int):  # pathlib lists folders, too, by their paths
            listed.append(folder)

    monkeypatch.setattr(reservations.os, "scandir", lambda folder: (note(folder), scan(folder))[1])
    for number in range(5):
        native("ADD", config, f"c{number}")
        native("CHECK", config, f"c{number}")
    assert listed == []
    before = set(reserved(tmp_path))
    (tmp_path / "net" / "10.1.0.99").write_text("somebody")
    monkeypatch.setattr(reservations, "_read", lambda folder, name: (read.append(name), read_one(folder, name))[1])
    native("CHECK", config, "absent")
    assert len(listed) == 1
    assert "10.1.0.99" in read
    assert not before & set(read)


def test_another_file_under_a_name_that_is_remembered_is_read(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    (address,) = assigned(native("ADD", config, "c0"))
    file = tmp_path / "net" / address
    theirs = file.with_name("draft")
    theirs.write_text("c1\r\nnet1")
    theirs.rename(file)
    assert native("CHECK", config, "c1").code == 0
    assert native("CHECK", config, "c0").code != 0
    assert native("DEL", config, "c0").code == 0
    assert file.exists()


def test_results_do_not_depend_on_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls with a cache, and with a cache that evicts at once."""

    def life(base: Path) -> str:
        config = network(base, {"subnet": "10.1.0.0/28"})
        choose = random.Random(7)
        seen: list[Any] = []
        for _ in range(60):
            name = f"c{choose.randrange(16)}"
            outcome = native(choose.choice(["ADD", "ADD", "DEL", "CHECK"]), config, name)
            seen.append((outcome.seen, sorted(reserved(base))))
        return json.dumps(seen)

    with_memory = life(tmp_path / "a")
    monkeypatch.setattr(reservations, "_MAX_CACHED_FILES", 0)
    assert life(tmp_path / "b") == with_memory
