"""The verdict on a sandbox, from its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from events.schema import Pod, SandboxAdopted
from nodeworker.host.adopt.plan import Adoption, FoundNamespace, Leftover, Refusal, Verdict, judge
from nodeworker.host.adopt.read import DiskState, read_state
from tests.support.host.multus_pods import BOX, DEFAULT, LINKS, MACVLAN, NETNS, POD, SRIOV, result
from tests.support.host.multus_state import MULTUS, MultusNode, Network, Sandbox, run

ALIVE = FoundNamespace(netns=NETNS, links=LINKS)
GONE = FoundNamespace(netns=NETNS)


def state(multus: MultusNode) -> DiskState:
    return read_state(multus.cni_dir, [multus.cache_dir], multus.host_local_dir)


def verdict(multus: MultusNode, place: FoundNamespace = ALIVE, adopted_until: int = 0) -> Verdict:
    (files,) = state(multus).sandboxes
    return judge(files, place, adopted_until=adopted_until)


def adopted(multus: MultusNode, place: FoundNamespace = ALIVE) -> SandboxAdopted:
    found = verdict(multus, place)
    assert isinstance(found, Adoption), found
    return found.data


def refused(multus: MultusNode, place: FoundNamespace = ALIVE) -> str:
    found = verdict(multus, place)
    assert isinstance(found, Refusal), found
    return found.problem


def notes(multus: MultusNode, place: FoundNamespace = ALIVE) -> str:
    found = verdict(multus, place)
    assert isinstance(found, Adoption), found
    return "; ".join(found.notes)


def test_plan_records_the_inode_of_the_namespace(multus: MultusNode) -> None:
    multus.write(POD)
    assert adopted(multus, replace(ALIVE, inode=4026532001)).plan.netns_inode == 4026532001


def handed(data: SandboxAdopted) -> list[list[dict[str, Any]]]:
    """Return the plugins' arguments, as values."""
    return [[json.loads(plugin) for plugin in each.plugins] for each in data.plan.attachments]


def expected(sandbox: Sandbox = POD) -> list[list[dict[str, Any]]]:
    return [sandbox.stdin_of(index) for index in range(len(sandbox.networks))]


def args(sandbox: Sandbox, index: int) -> str:
    return ";".join(f"{key}={value}" for key, value in sandbox.args_of(index))


# --- network-status ---

WITHOUT_DEVICE = replace(POD, networks=(DEFAULT, MACVLAN))


def test_status_of_an_adopted_pod_is_published_as_any_other(multus: MultusNode) -> None:
    multus.write(WITHOUT_DEVICE)
    assert adopted(multus, replace(ALIVE, links=frozenset({"eth0", "net1"}))).plan.publish
    assert "network-status" not in notes(multus, replace(ALIVE, links=frozenset({"eth0", "net1"})))


def test_status_of_a_system_pod_or_a_gone_one_is_not_published(multus: MultusNode) -> None:
    multus.write(WITHOUT_DEVICE)
    (files,) = state(multus).sandboxes
    for namespace, system in ((replace(ALIVE, links=frozenset({"eth0", "net1"})), ["default"]), (GONE, [])):
        found = judge(files, namespace, system_namespaces=system)
        assert isinstance(found, Adoption)
        assert not found.data.plan.publish


def test_status_that_is_not_known_in_full_stays_as_multus_wrote_it(multus: MultusNode) -> None:
    multus.write(POD)
    assert not adopted(multus).plan.publish
    assert "its network-status stays as Multus wrote it: not everything is known of sriov/vf" in notes(multus)
    multus.entry(POD, 1).unlink()
    assert "not everything is known of default/macvlan-conf, sriov/vf" in notes(multus)


# --- complete files ---


def test_plugins_get_the_arguments_of_libcni(multus: MultusNode) -> None:
    multus.write(POD)
    data = adopted(multus)
    assert handed(data) == expected()
    assert [each.cni_args for each in data.plan.attachments] == [args(POD, index) for index in range(3)]
    assert handed(data)[0][1]["runtimeConfig"] == {"portMappings": POD.capability_args["portMappings"]}


def test_plan_uses_the_names_of_multus(multus: MultusNode) -> None:
    multus.write(POD)
    data = adopted(multus)
    names = [(each.network, each.cni_name, each.ifname, each.default) for each in data.plan.attachments]
    assert names == [
        ("cbr0", "cbr0", "eth0", True),
        ("default/macvlan-conf", "macvlan-conf", "net1", False),
        ("sriov/vf", "vf", "net2", False),
    ]
    assert data.plan.pod == Pod("default", "web", "uid-of-web")
    assert (data.ifname, data.plan.netns, data.plan.path) == ("eth0", NETNS, "/usr/lib/cni:/opt/cni/bin")


def test_results_are_recorded_unchanged(multus: MultusNode) -> None:
    multus.write(POD)
    data = adopted(multus)
    assert [json.loads(text) for text in data.results] == [network.result for network in POD.networks]
    assert json.loads(data.result) == DEFAULT.result
    assert json.loads(data.config)["runtimeConfig"] == POD.capability_args
    assert data.args == ";".join(f"{key}={value}" for key, value in POD.args)


def test_device_id_resource_and_file_are_recorded(multus: MultusNode) -> None:
    multus.write(POD)
    vf = adopted(multus).plan.attachments[2]
    assert (vf.device, vf.resource) == (SRIOV.device, SRIOV.resource)
    assert vf.device_info == f"/var/run/k8s.cni.cncf.io/devinfo/cni/sriov-vf-{BOX}_net2"


def test_evidence_lists_every_file(multus: MultusNode) -> None:
    multus.write(POD)
    files = {path for folder in (multus.cni_dir, multus.cache_dir) for path in folder.rglob("*") if path.is_file()}
    assert {Path(path) for path in adopted(multus).evidence} == files


def test_requested_interface_names_are_used(multus: MultusNode) -> None:
    named = replace(POD, networks=(replace(DEFAULT, ifname="uplink"), replace(MACVLAN, ifname="left"), SRIOV))
    multus.write(named)
    data = adopted(multus, FoundNamespace(netns=NETNS, links=frozenset({"uplink", "left", "net2"})))
    assert [each.ifname for each in data.plan.attachments] == ["uplink", "left", "net2"]
    assert data.ifname == "eth0"  # the interface in the runtime's DEL
    assert handed(data) == expected(named)


def test_default_route_claim_is_recorded(multus: MultusNode) -> None:
    multus.write(replace(POD, networks=(DEFAULT, replace(MACVLAN, default_route=("10.1.1.1",)))))
    assert [each.default_route for each in adopted(multus).plan.attachments] == [None, ("10.1.1.1",)]


def test_request_to_plumbline_is_ignored(multus: MultusNode) -> None:
    multus.write_request(POD, {**MULTUS, "type": "plumbline"})
    assert state(multus).sandboxes == ()


# --- the two files have different plugin lists ---


def chained(multus: MultusNode, last: dict[str, Any], first: dict[str, Any] | None = None) -> None:
    """Give the scratch file one more plugin than libcni's entry has, and change the *first* one."""
    plugins = [first or DEFAULT.plugins[0], DEFAULT.plugins[1], last]
    longer = replace(DEFAULT, config={**DEFAULT.config, "plugins": plugins})
    multus.write(replace(POD, networks=(DEFAULT,)))
    multus.write_scratch(replace(POD, networks=(longer,)))


def test_plugins_from_a_folder_come_from_the_scratch_file(multus: MultusNode) -> None:
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
    chained(multus, tuning)
    assert [each["type"] for each in handed(adopted(multus))[0]] == ["bridge", "portmap", "tuning"]
    assert handed(adopted(multus))[0][2]["sysctl"] == tuning["sysctl"]


def test_plugins_from_a_folder_that_lost_their_keys_are_refused(multus: MultusNode) -> None:
    chained(multus, {"type": "tuning"}, first={"type": "bridge", "ipam": {"type": "host-local"}})
    assert "may have lost their own keys" in refused(multus)


def test_stripped_scratch_file_with_an_entry_is_accepted(multus: MultusNode) -> None:
    stripped = [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]
    multus.write(POD)
    lossy = replace(DEFAULT, config={**DEFAULT.config, "plugins": stripped})
    multus.write_scratch(replace(POD, networks=(lossy, MACVLAN, SRIOV)))
    assert handed(adopted(multus)) == expected()


def test_a_stripped_scratch_file_alone_is_refused(multus: MultusNode) -> None:
    stripped = [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]
    multus.write(replace(POD, networks=(replace(DEFAULT, config={**DEFAULT.config, "plugins": stripped}),)))
    multus.entry(POD, 0).unlink()
    problem = refused(multus)
    assert "may lack the plugins' own keys" in problem
    assert problem.endswith("while Multus still serves the node, or free its addresses and devices by hand")


def test_files_that_contradict_each_other_are_refused(multus: MultusNode) -> None:
    multus.write(POD)
    other = replace(MACVLAN, config={**MACVLAN.config, "type": "ipvlan"})
    multus.write_scratch(replace(POD, networks=(DEFAULT, other, SRIOV)))
    assert "macvlan-conf (ipvlan) where" in refused(multus)


def test_an_interface_on_another_network_is_refused(multus: MultusNode) -> None:
    multus.write(POD)
    multus.write_scratch(replace(POD, networks=(DEFAULT, SRIOV, MACVLAN)))
    assert "has net1 on vf" in refused(multus)


# --- torn and missing files ---


@pytest.mark.parametrize("entries", [True, False], ids=["with libcni's entries", "alone"])
def test_torn_scratch_file_never_makes_a_wrong_plan(multus: MultusNode, entries: bool) -> None:
    multus.write(POD)
    if not entries:
        shutil.rmtree(multus.cni_dir / "results")
    whole = multus.scratch(POD).read_bytes()
    for length in range(len(whole)):
        multus.scratch(POD).write_bytes(whole[:length])
        match verdict(multus):
            case Adoption(data=data):
                assert entries
                assert handed(data) == expected()
                assert [each.ifname for each in data.plan.attachments] == ["eth0", "net1", "net2"]
                assert data.plan.attachments[1].network == "macvlan-conf"
            case Refusal(problem=problem):
                assert not entries
                assert str(multus.scratch(POD)) in problem
            case Leftover():
                pytest.fail(f"torn after {length} bytes: taken for a leftover")


@pytest.mark.parametrize("index", [0, 1])
def test_torn_entry_loses_only_the_result(multus: MultusNode, index: int) -> None:
    multus.write(POD)
    whole = multus.entry(POD, index).read_bytes()
    for length in range(len(whole)):
        multus.entry(POD, index).write_bytes(whole[:length])
        data = adopted(multus)
        assert handed(data) == expected()
        assert data.plan.attachments[index].cni_args == args(POD, index)
        # Multus returns the default network's result unchanged, so the runtime has it too.
        assert (json.loads(data.results[0]), bool(data.results[1])) == (DEFAULT.result, index == 0)


@given(cut=st.integers(min_value=0, max_value=4000), byte=st.integers(min_value=0, max_value=255))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_changed_byte_never_aborts_the_run(multus: MultusNode, cut: int, byte: int) -> None:
    multus.write(POD)
    for path in (multus.scratch(POD), multus.entry(POD, 1), multus.request(POD)):
        whole = path.read_bytes()
        place = cut % len(whole)
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        for files in state(multus).sandboxes:
            judge(files, ALIVE)
        path.write_bytes(whole)


def test_interfaces_without_scratch_file_are_sorted_by_number(multus: MultusNode) -> None:
    more = tuple(
        Network(config={**MACVLAN.config, "name": f"n{index}"}, result=result(f"net{index}", "10.3.0.9/24", ""))
        for index in range(1, 12)
    )
    multus.write(replace(POD, networks=(DEFAULT, *more)))
    multus.scratch(POD).unlink()
    names = [each.ifname for each in adopted(multus).plan.attachments]
    assert names == ["eth0", *(f"net{index}" for index in range(1, 12))]


def test_add_in_progress_is_refused(multus: MultusNode) -> None:
    multus.write_scratch(POD)
    multus.write_entry(POD, 0)
    assert "may be in progress" in refused(multus, FoundNamespace(netns=NETNS, links=frozenset({"lo", "eth0"})))


def test_an_interface_that_neither_libcni_nor_the_kernel_has_is_refused(multus: MultusNode) -> None:
    multus.write(POD)
    multus.entry(POD, 1).unlink()
    assert "net1, so its ADD may" in refused(
        multus, FoundNamespace(netns=NETNS, links=frozenset({"lo", "eth0", "net2"}))
    )


def test_lost_entries_are_rebuilt_from_the_scratch_file(multus: MultusNode) -> None:
    multus.write(POD)
    shutil.rmtree(multus.cni_dir / "results")
    data = adopted(multus)
    assert handed(data) == expected()
    assert [each.cni_args for each in data.plan.attachments] == [args(POD, index) for index in range(3)]
    assert data.results[1:] == ("", "")
    assert "the result of its ADD is lost" in notes(multus)


def test_missing_request_uses_the_default_result(multus: MultusNode) -> None:
    multus.write(POD)
    multus.request(POD).unlink()
    data = adopted(multus)
    assert handed(data) == expected()
    assert (data.ifname, json.loads(data.result)) == ("eth0", DEFAULT.result)


def test_unknown_default_network_is_refused(multus: MultusNode) -> None:
    multus.write(POD)
    multus.request(POD).unlink()
    multus.scratch(POD).unlink()
    assert "names the default network" in refused(multus)


def test_a_torn_entry_that_no_other_file_replaces_is_refused(multus: MultusNode) -> None:
    multus.write(POD)
    torn = multus.cni_dir / "results" / f"plugged-{BOX}-net7"
    torn.write_text('{"kind":')
    assert "no other file describes that attachment" in refused(multus)
    multus.scratch(POD).unlink()
    assert str(torn) in refused(multus)


def test_torn_entry_of_no_sandbox_is_an_orphan(multus: MultusNode) -> None:
    multus.write(POD)
    torn = multus.cni_dir / "results" / "cbr0-feedbeef-eth0"
    torn.touch()
    assert [str(each) for each in state(multus).orphans] == [f"{torn} is empty"]


def test_entry_under_another_name_is_rejected(multus: MultusNode) -> None:
    multus.write(POD)
    multus.entry(POD, 2).write_bytes(multus.entry(POD, 1).read_bytes())
    data = adopted(multus)
    assert handed(data) == expected()
    assert data.results[2] == ""


# --- interfaces added or removed after the ADD ---


def plugged(multus: MultusNode) -> None:
    """Add an attachment that is not in the scratch file, as the controller for running pods does."""
    multus.write(POD)
    later = Network(config={**MACVLAN.config, "name": "later"}, ifname="net9", result=result("net9", "10.9.0.9/24", ""))
    multus.write_entry(replace(POD, networks=(later,)), 0)


def test_interface_added_to_a_running_pod_is_adopted(multus: MultusNode) -> None:
    plugged(multus)
    data = adopted(multus, FoundNamespace(netns=NETNS, links=LINKS | {"net9"}))
    assert [each.ifname for each in data.plan.attachments] == ["eth0", "net1", "net2", "net9"]
    assert not data.plan.attachments[3].default


def test_removed_interface_is_left_out(multus: MultusNode) -> None:
    plugged(multus)
    assert [each.ifname for each in adopted(multus).plan.attachments] == ["eth0", "net1", "net2"]
    assert "left out" in notes(multus)


# --- removed sandboxes ---


def test_removed_sandbox_is_adopted_for_its_del(multus: MultusNode) -> None:
    multus.write(POD)
    assert handed(adopted(multus, GONE)) == expected()


def test_remains_of_a_del_are_leftovers(multus: MultusNode) -> None:
    multus.write(POD)
    multus.scratch(POD).unlink()
    assert verdict(multus, GONE) == Leftover(container_id=POD.container_id)  # type: ignore[arg-type]


def test_removed_sandbox_with_an_address_is_adopted(multus: MultusNode) -> None:
    ipam = {"type": "host-local", "dataDir": str(multus.host_local_dir), "ranges": [[{"subnet": "10.5.0.0/24"}]]}
    stdin = {"cniVersion": "0.4.0", "name": "cbr0", "type": "host-local", "ipam": ipam}
    address = run("ADD", POD, "eth0", stdin, [])["ips"][0]["address"].split("/")[0]
    multus.write(POD)
    multus.scratch(POD).unlink()
    assert str(multus.host_local_dir / "cbr0" / address) in adopted(multus, GONE).evidence
    run("DEL", POD, "eth0", stdin, [])
    assert isinstance(verdict(multus, GONE), Leftover)


def test_old_files_of_a_removed_sandbox_are_leftovers(multus: MultusNode) -> None:
    multus.write(POD)
    (files,) = state(multus).sandboxes
    assert isinstance(verdict(multus, GONE, files.written - 1), Adoption)
    assert isinstance(verdict(multus, GONE, files.written), Leftover)
    assert isinstance(verdict(multus, ALIVE, files.written), Adoption)
