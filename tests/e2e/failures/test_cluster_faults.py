"""Faults of the cluster: a pod gets a correct answer or an error that says what to do, and no effect stays."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.schema import AttachPlanned, ErrorClass, Failure
from nodeworker.planning.resolve.annotation import NETWORKS
from tests.support.kube import fake_api
from tests.support.kube.fake_api import Behaviour, FakeApi, Reply, Request
from tests.support.kube.manifests import nad
from tests.support.kube.server import NOBODY
from tests.support.node.cluster import NETWORK, Cluster
from tests.support.node.node import ADD_EVENTS, DEL_EVENTS, Node, prove_clean
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
MEBIBYTE = 1024 * 1024
_PAUSE = 0.2
"""Seconds between two rounds of attaches, which leave the processors to the API server that starts."""


@pytest.fixture(scope="module")
def module_cluster(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster behind ``cluster``."""
    with Node(tmp_path_factory.mktemp("n"), shim).entered() as node, Cluster.around(node) as cluster:
        yield cluster


@pytest.fixture
def cluster(module_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster of one node whose worker does not run yet, for the tests of the module one after another."""
    cluster = module_cluster
    cluster.node.log.write_bytes(b"")
    try:
        yield cluster
        prove_clean(cluster.node)
    finally:
        cluster.node.kill()
        cluster.accept()
        if not cluster.kube.runs():
            cluster.kube.start_api()
            cluster.kube.await_api()


def failure_of(cluster: Cluster, sandbox: PodSandbox) -> Failure:
    """Return the only failure of *sandbox*, having made sure that there was no more to it than that."""
    assert cluster.node.event_types(sandbox) == ("AttachRequested", "AttachFailed")
    (failure,) = cluster.node.failures(sandbox)
    return failure


def attach(sandbox: PodSandbox) -> None:
    answer = sandbox.add()
    assert not answer.exit_code, answer


def plan_of(cluster: Cluster, sandbox: PodSandbox) -> AttachPlanned:
    (plan,) = [e.data for e in cluster.node.events_of(sandbox) if isinstance(e.data, AttachPlanned)]
    return plan


# --- the API server is down ---


def test_worker_without_an_api_server_says_so_and_serves_once_it_is_up(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    early = cluster.pod("early")
    kube.kill_api()
    cluster.start()
    answer = early.add()
    assert answer.code == 11
    assert (
        f"pod default/early: pods and networks can't be looked up now: the API server {kube.url} can't be reached: "
        in answer.msg
    )
    assert "the runtime will retry" in answer.msg
    failure = failure_of(cluster, early)
    assert (failure.error_class, failure.message) == (ErrorClass.SOURCE_UNAVAILABLE, answer.msg)
    node.assert_detached(early)
    kube.start_api()
    kube.await_api()
    attach(early)
    node.assert_attached(early)


def test_attach_in_progress_needs_no_api_server(cluster: Cluster) -> None:
    node = cluster.node
    gate = node.gate("host-local")
    cluster.nad("gated", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
    cluster.start()
    sandbox = cluster.pod("under-way", "gated")
    add = sandbox.call("ADD")
    gate.reached()
    cluster.kube.kill_api()
    gate.open()
    assert not add.answer().exit_code
    node.assert_attached(sandbox)
    assert sandbox.check() == (0, "", "")
    assert sandbox.delete() == (0, "", "")
    assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS)


def test_cached_pods_come_and_go_while_the_api_server_restarts(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    cluster.start()
    known = [cluster.pod(f"known-{number}") for number in range(3)]
    churn(known)
    cycles, strangers = 1, list[PodSandbox]()
    with concurrent.futures.ThreadPoolExecutor(1) as waiting:
        for round_ in range(3):
            kube.kill_api()
            strangers.append(cluster.sandbox(f"stranger-{round_}", "unheard-of"))
            assert strangers[-1].add().code == 11
            kube.start_api()
            back = waiting.submit(kube.await_api)
            while not back.done():
                churn(known)
                cycles += 1
                concurrent.futures.wait([back], _PAUSE)
            back.result()
            attach(cluster.pod(f"new-{round_}"))
    assert cycles > 9
    for sandbox in known:
        assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS) * cycles
    for stranger in strangers:
        assert failure_of(cluster, stranger).error_class is ErrorClass.SOURCE_UNAVAILABLE


def churn(sandboxes: list[PodSandbox]) -> None:
    """Attach and detach all of *sandboxes*."""
    for command in ("ADD", "DEL"):
        calls = [sandbox.call(command) for sandbox in sandboxes]
        assert [answer for answer in (call.answer() for call in calls) if answer.exit_code] == []


# --- the API server says no ---


def test_expired_token_is_reported_until_it_is_renewed(cluster: Cluster) -> None:
    node = cluster.node
    sandbox = cluster.pod("expired")
    cluster.accept("token-that-expired")
    cluster.start()
    answer = sandbox.add()
    assert answer.code == 11
    assert (
        f"pod default/expired: pods and networks can't be looked up now: the API server {cluster.kube.url} "
        f"rejects the credentials of {cluster.token} (401 Unauthorized): they have expired or were revoked; renew them"
        in answer.msg
    )
    assert failure_of(cluster, sandbox).error_class is ErrorClass.SOURCE_UNAVAILABLE
    node.assert_detached(sandbox)
    cluster.accept()
    attach(sandbox)
    node.assert_attached(sandbox)
    assert "token-that-expired" not in node.log.read_text()


def test_denied_access_says_what_to_grant_and_granting_it_helps(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    sandbox = cluster.pod("denied")
    cluster.accept(NOBODY)
    cluster.start()
    answer = sandbox.add()
    assert answer.code == 11
    assert f"the API server {kube.url} does not let the worker get pods (403 Forbidden: " in answer.msg
    assert "grant it get, list and watch on pods in a ClusterRole" in answer.msg
    assert failure_of(cluster, sandbox).error_class is ErrorClass.SOURCE_UNAVAILABLE
    node.assert_detached(sandbox)
    with granted(cluster, "nobody"):
        eventually(lambda: not sandbox.add().exit_code, "the grant is effective")
        node.assert_attached(sandbox)


@contextlib.contextmanager
def granted(cluster: Cluster, user: str) -> Iterator[None]:
    """Let *user* do what the worker does meanwhile."""
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "worker"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    cluster.kube.ask("POST", BINDINGS, {"metadata": {"name": user}, "roleRef": reference, "subjects": [subject]})
    try:
        yield
    finally:
        cluster.kube.ask("DELETE", f"{BINDINGS}/{user}")


def test_pods_are_attached_while_resource_versions_expire(cluster: Cluster) -> None:
    node = cluster.node
    config = json.dumps(node.macvlan())

    async def expired(_: Request, reply: Reply) -> None:
        status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (2)"}
        await reply.begin()
        await reply.events(fake_api.event("ERROR", status))
        await reply.end()

    async def listed(_: Request, reply: Reply) -> None:
        await reply.json(fake_api.listed(fake_api.network("old", config)))

    async def not_listed(request: Request, reply: Reply) -> None:
        await reply.json(fake_api.network(request.path.rpartition("/")[2], config))

    async def pod(request: Request, reply: Reply) -> None:
        name = request.path.rpartition("/")[2]
        annotations = {NETWORKS: f"{name}@net1"}
        await reply.json({"metadata": {"namespace": "default", "name": name, "uid": name, "annotations": annotations}})

    with faked(on_list=listed, on_watch=expired, on_get=not_listed, on_get_pod=pod) as fake:
        cluster.start(fake.url, pod_wait=0.01)
        eventually(lambda: len(fake.asked("list")) >= 3, "it is listed time and again")
        old, new = cluster.sandbox("old", "old"), cluster.sandbox("new", "new")
        attach(old)
        assert fake.asked("get") == []
        attach(new)
        assert [request.path.rpartition("/")[2] for request in fake.asked("get")] == ["new"]
        for sandbox in (old, new):
            node.assert_attached(sandbox)
            assert sandbox.delete() == (0, "", "")
            assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS)


@contextlib.contextmanager
def faked(**behaviour: Behaviour) -> Iterator[FakeApi]:
    """Run an API server that behaves so meanwhile."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-api")
    thread.start()
    try:
        serving = fake_api.fake_api(**behaviour)
        fake = asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result()
        try:
            yield fake
        finally:
            asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- pods change ---


def test_pod_deleted_during_its_add_is_attached_and_detached(cluster: Cluster) -> None:
    node = cluster.node
    gate = node.gate("host-local")
    cluster.nad("gated-deleted", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
    cluster.start()
    sandbox = cluster.pod("deleted", "gated-deleted")
    add = sandbox.call("ADD")
    gate.reached()
    cluster.kube.delete_pod("default", "deleted")
    cluster.catch_up("after-the-deletion")
    gate.open()
    assert not add.answer().exit_code  # the runtime removes its own sandboxes
    node.assert_attached(sandbox)
    assert sandbox.delete() == (0, "", "")
    node.assert_detached(sandbox)
    assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS)


def test_new_pod_of_an_old_name_gets_its_own_networks(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    gate = node.gate("host-local", "DEL")
    cluster.nad("gated-web", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
    cluster.start(pod_wait=1.0)
    uid = kube.create_pod("default", "web-0", node.name, {NETWORKS: "gated-web"})
    old = cluster.sandbox("web-0", uid)
    attach(old)
    delete = old.call("DEL")
    gate.reached()
    kube.delete_pod("default", "web-0")
    new = cluster.pod("web-0", f"{NETWORK}@net1,{NETWORK}@net2")
    attach(new)
    node.assert_attached(new)
    assert set(new.links()) == {"eth0", "net1", "net2"}

    late = cluster.sandbox("web-0", uid)
    answer = late.add()
    assert answer.code == 11
    assert f'pod default/web-0: it was replaced: the sandbox is for UID "{uid}" and the cluster has ' in answer.msg
    assert failure_of(cluster, late).error_class is ErrorClass.POD_CHANGED

    gate.open()
    assert delete.answer() == (0, "", "")
    node.assert_detached(old, late)
    node.assert_attached(new)
    assert new.check() == (0, "", "")
    assert node.event_types(old)[-4:] == DEL_EVENTS


def test_annotation_is_read_when_the_add_arrives(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    gate = node.gate("host-local")
    cluster.nad("gated-edited", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
    cluster.start()
    sandbox = cluster.pod("edited", f"{NETWORK}@scheduled")
    cluster.catch_up("before-the-edit")
    kube.annotate_pod("default", "edited", {NETWORKS: "gated-edited@edited"})
    cluster.catch_up("after-the-edit")
    add = sandbox.call("ADD")
    gate.reached()
    kube.annotate_pod("default", "edited", {NETWORKS: "no-such-network@later"})
    cluster.catch_up("after-the-second-edit")
    gate.open()
    assert not add.answer().exit_code
    node.assert_attached(sandbox)
    assert [each.ifname for each in plan_of(cluster, sandbox).attachments] == ["eth0", "edited"]
    assert sandbox.check() == (0, "", "")
    assert sandbox.delete() == (0, "", "")
    assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS)


# --- networks change ---


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_network_changed_after_the_add_is_detached_as_recorded(cluster: Cluster, change: str) -> None:
    node, kube = cluster.node, cluster.kube
    network = f"network-{change}"
    cluster.nad(network, node.macvlan())
    cluster.start()
    sandbox, later = cluster.pod(f"pod-{change}", network), cluster.pod(f"later-{change}", network)
    attach(sandbox)
    if change == "edited":
        kube.change_nad("default", network, json.dumps({"cniVersion": "1.0.0", "type": "no-such-plugin"}))
        expected, code = ErrorClass.PLUGIN_MISSING, 101
    else:
        kube.delete_nad("default", network)
        expected, code = ErrorClass.NETWORK_NOT_FOUND, 7
    eventually(lambda: refused(later, code), "the worker knows of the change")
    assert node.failures(later)[-1].error_class is expected
    assert sandbox.check() == (0, "", "")
    assert sandbox.delete() == (0, "", "")
    node.assert_detached(sandbox)
    assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS)


def refused(sandbox: PodSandbox, code: int) -> bool:
    """Return whether an ADD is refused with *code*; where it is not, it is undone."""
    answer = sandbox.add()
    if not answer.exit_code:
        assert sandbox.delete() == (0, "", "")
    return answer.code == code


def test_one_of_ten_thousand_networks_is_attached_and_another_updated(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    config = json.dumps(node.macvlan())
    kube.create_namespace("many")
    kube.etcd.store_nads(nad("many", f"n{number}", config) for number in range(10_000))
    try:
        cluster.start()
        sandbox = cluster.pod("one-of-many", "many/n9999")
        attach(sandbox)
        node.assert_attached(sandbox)
        kube.change_nad("many", "n5000", json.dumps({"cniVersion": "1.0.0", "type": "no-such-plugin"}))
        other = cluster.pod("another-of-many", "many/n5000")
        eventually(lambda: refused(other, 101), "the worker knows of the edit")
        none = cluster.pod("none-of-many", "many/n10000")
        assert none.add().code == 7
        assert failure_of(cluster, none).error_class is ErrorClass.NETWORK_NOT_FOUND
    finally:
        kube.etcd.forget_nads("many")


# --- networks of a mebibyte ---


def large(cluster: Cluster, name: str) -> None:
    """Define a network whose configuration has a mebibyte."""
    config = cluster.node.macvlan(remark="")
    padding = MEBIBYTE - len(json.dumps(config))
    cluster.nad(name, {**config, "remark": "x" * padding})


def test_network_of_a_mebibyte_is_attached_and_detached(cluster: Cluster) -> None:
    node = cluster.node
    large(cluster, "large")
    cluster.start()
    sandbox = cluster.pod("large", "large")
    attach(sandbox)
    node.assert_attached(sandbox)
    assert len(plan_of(cluster, sandbox).attachments[1].plugins[0]) > MEBIBYTE - 100  # without blanks
    node.restart()
    assert sandbox.check() == (0, "", "")
    assert sandbox.delete() == (0, "", "")
    assert node.event_types(sandbox) == (*ADD_EVENTS, *DEL_EVENTS)


def test_plan_too_large_for_the_ledger_is_refused_first(cluster: Cluster) -> None:
    large(cluster, "too-large")
    cluster.start()
    sandbox = cluster.pod("too-large", ",".join(["too-large"] * 9))
    answer = sandbox.add()
    assert answer.code == 7
    assert "pod default/too-large: the plan of its 10 attachments has " in answer.msg
    assert "select fewer networks, or make their configurations smaller" in answer.msg
    assert failure_of(cluster, sandbox).error_class is ErrorClass.INVALID_CONFIG
    cluster.node.assert_detached(sandbox)


@pytest.mark.parametrize(
    ("name", "config"),
    [("no-json", "x" * MEBIBYTE), ("no-end", "[" * MEBIBYTE), ("no-type", json.dumps({"type": "x" * MEBIBYTE}))],
)
def test_invalid_mebibyte_is_refused_in_one_sentence(cluster: Cluster, name: str, config: str) -> None:
    cluster.nad(name, config)
    cluster.start()
    sandbox = cluster.pod(name, name)
    answer = sandbox.add()
    assert answer.code in (6, 7)
    assert f'pod default/{name}: network "default/{name}" can\'t be used: ' in answer.msg
    assert len(answer.msg) < 500
    assert failure_of(cluster, sandbox).error_class is ErrorClass.INVALID_CONFIG
    cluster.node.assert_detached(sandbox)
