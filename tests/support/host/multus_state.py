"""What Multus, libcni in it and libcni in the runtime leave on a node, written the way they write it.

Multus: ``pkg/multus`` (scratch file) and ``pkg/types`` (its fields). libcni: ``libcni/api.go`` (cache, configuration of
each plugin). Either with results that a test makes up, or by running the plugins.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

PLUGINS = Path("/usr/lib/cni")

MULTUS = {
    "cniVersion": "0.3.1",
    "name": "multus-cni-network",
    "type": "multus",
    "capabilities": {"portMappings": True},
    "binDir": "/usr/lib/cni",
    "kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig",
    "clusterNetwork": "/etc/cni/net.d/10-default.conflist",
}


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network that Multus attaches a pod to."""

    config: Mapping[str, Any]
    """The delegate's configuration, single or list, with what Multus puts in."""
    name: str = ""
    """``namespace/name``; empty: of the configuration itself."""
    ifname: str = ""
    mac: str = ""
    ips: tuple[str, ...] = ()
    device: str = ""
    resource: str = ""
    default_route: tuple[str, ...] | None = None
    port_mappings: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] = {}

    @property
    def cni_name(self) -> str:
        return self.config["name"]

    @property
    def plugins(self) -> list[dict[str, Any]]:
        return [dict(self.config)] if "type" in self.config else [dict(each) for each in self.config["plugins"]]


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's sandbox, the default network first."""

    container_id: str
    pod: str
    networks: tuple[Network, ...]
    netns: str = ""
    ifname: str = "eth0"
    capability_args: Mapping[str, Any] = {}
    """The runtime's."""

    @property
    def args(self) -> list[tuple[str, str]]:
        return [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", "default"),
            ("K8S_POD_NAME", self.pod),
            ("K8S_POD_INFRA_CONTAINER_ID", self.container_id),
            ("K8S_POD_UID", f"uid-of-{self.pod}"),
        ]

    def ifname_of(self, index: int) -> str:
        return self.networks[index].ifname or (f"net{index}" if index else self.ifname)

    def args_of(self, index: int) -> list[tuple[str, str]]:
        """Return CNI_ARGS of one delegate: in Multus' order, then what is requested for the interface."""
        network = self.networks[index]
        args = [("IgnoreUnknown", "true"), *self.args[1:]]
        args += [("MAC", network.mac)] if network.mac else []
        return args + ([("IP", ",".join(network.ips))] if network.ips else [])

    def capability_args_of(self, index: int) -> dict[str, Any]:
        network = self.networks[index]
        offered = dict(self.capability_args)
        if index:
            requested = {
                "ips": list(network.ips),
                "mac": network.mac,
                "deviceID": network.device,
                "portMappings": list(network.port_mappings),
            }
            offered |= {key: value for key, value in requested.items() if value}
        if offered.get("deviceID"):
            name = f"{network.name or network.cni_name}-{self.container_id}_{self.ifname_of(index)}".replace("/", "-")
            offered["CNIDeviceInfoFile"] = f"/var/run/k8s.cni.cncf.io/devinfo/cni/{name}"
        return offered

    def stdin_of(self, index: int) -> list[dict[str, Any]]:
        """Return what libcni hands to each plugin of one delegate, but for ``prevResult``."""
        network = self.networks[index]
        version = network.config.get("cniVersion", "")
        offered = self.capability_args_of(index)
        handed: list[dict[str, Any]] = []
        for plugin in network.plugins:
            declared = [name for name, wanted in plugin.get("capabilities", {}).items() if wanted]
            runtime = {name: offered[name] for name in declared if name in offered}
            handed.append(
                {
                    **plugin,
                    "name": network.cni_name,
                    "cniVersion": version,
                    **({"runtimeConfig": runtime} if runtime else {}),
                }
            )
        return handed


class MultusNode:
    """The folders of one node's Multus and runtime."""

    def __init__(self, root: Path) -> None:
        self.cni_dir = root / "multus"
        self.cache_dir = root / "cni"
        self.host_local_dir = root / "networks"

    # --- what is on disk ---

    def scratch(self, sandbox: Sandbox) -> Path:
        return self.cni_dir / sandbox.container_id

    def entry(self, sandbox: Sandbox, index: int) -> Path:
        name = f"{sandbox.networks[index].cni_name}-{sandbox.container_id}-{sandbox.ifname_of(index)}"
        return self.cni_dir / "results" / name

    def request(self, sandbox: Sandbox) -> Path:
        return self.cache_dir / "results" / f"{MULTUS['name']}-{sandbox.container_id}-{sandbox.ifname}"

    # --- the writers ---

    def write(self, sandbox: Sandbox) -> None:
        """Write all that an ADD leaves, with the results that the networks have."""
        self.write_scratch(sandbox)
        for index in range(len(sandbox.networks)):
            self.write_entry(sandbox, index)
        self.write_request(sandbox)

    def write_scratch(self, sandbox: Sandbox) -> None:
        _write(self.scratch(sandbox), json.dumps([_delegate(network) for network in sandbox.networks]))

    def write_entry(self, sandbox: Sandbox, index: int, *, netns: bool = True) -> None:
        network = sandbox.networks[index]
        cached = {
            "kind": "cniCacheV1",
            "containerId": sandbox.container_id,
            "config": _base64(network.config),
            "ifName": sandbox.ifname_of(index),
            "networkName": network.cni_name,
            **({"netns": sandbox.netns} if netns and sandbox.netns else {}),
            "cniArgs": sandbox.args_of(index),
            "capabilityArgs": sandbox.capability_args_of(index),
            "result": network.result,
        }
        _write(self.entry(sandbox, index), json.dumps(cached))

    def write_request(self, sandbox: Sandbox, plugin: Mapping[str, Any] = MULTUS) -> None:
        config = {"name": plugin["name"], "cniVersion": plugin["cniVersion"], "plugins": [plugin]}
        cached = {
            "kind": "cniCacheV1",
            "containerId": sandbox.container_id,
            "config": _base64(config),
            "ifName": sandbox.ifname,
            "networkName": plugin["name"],
            **({"netns": sandbox.netns} if sandbox.netns else {}),
            "cniArgs": sandbox.args,
            "capabilityArgs": dict(sandbox.capability_args),
            "result": sandbox.networks[0].result,
        }
        _write(self.request(sandbox), json.dumps(cached))

    def attach(self, sandbox: Sandbox) -> Sandbox:
        """Run the plugins as Multus does, write what it leaves, and return *sandbox* with the results."""
        networks = tuple(
            msgspec.structs.replace(network, result=self._add(sandbox, index))
            for index, network in enumerate(sandbox.networks)
        )
        attached = msgspec.structs.replace(sandbox, networks=networks)
        self.write(attached)
        return attached

    def _add(self, sandbox: Sandbox, index: int) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        for stdin in sandbox.stdin_of(index):
            given = stdin if result is None else {**stdin, "prevResult": result}
            result = run("ADD", sandbox, sandbox.ifname_of(index), given, sandbox.args_of(index))
        assert result is not None
        return result


@pytest.fixture
def multus(tmp_path: Path) -> MultusNode:
    """A node's folders, empty."""
    return MultusNode(tmp_path)


def run(
    command: str, sandbox: Sandbox, ifname: str, stdin: Mapping[str, Any], args: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Execute a plugin; return what it prints."""
    env = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container_id,
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args),
        "CNI_PATH": str(PLUGINS),
    }
    done = subprocess.run(
        [PLUGINS / stdin["type"]], input=json.dumps(stdin), env=env, check=False, capture_output=True, text=True
    )
    assert not done.returncode, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else {}


def _delegate(network: Network) -> dict[str, Any]:
    single = "type" in network.config
    typed = {key: network.config[key] for key in ("cniVersion", "name", "type") if key in network.config}
    plugins = [{"type": each["type"], "ipam": {}, "dns": {}} for each in network.plugins]
    optional = {
        "ifnameRequest": network.ifname,
        "macRequest": network.mac,
        "ipRequest": list(network.ips),
        "deviceID": network.device,
        "resourceName": network.resource,
    }
    return {
        "Conf": {**typed, "ipam": {}, "dns": {}} if single else {"ipam": {}, "dns": {}},
        "ConfList": {} if single else {**typed, "plugins": plugins},
        "Name": network.name or network.cni_name,
        **{key: value for key, value in optional.items() if value},
        **({"default-route": list(network.default_route)} if network.default_route is not None else {}),
        "IsFilterV4Gateway": False,
        "IsFilterV6Gateway": False,
        "Bytes": _base64(network.config),
    }


def _base64(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
