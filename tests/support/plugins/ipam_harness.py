"""One call to a plugin, executed as Debian ships it and natively, and the files that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from nodeworker.plugins.native.api import BLOCKED_TIMEOUT, Call, IpamPlugin, NativeError
from nodeworker.plugins.native.ipam import host_local, static
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.cni_args import parse_args

PLUGINS = "/usr/lib/cni"
NATIVE = {"host-local": cast("IpamPlugin", host_local), "static": cast("IpamPlugin", static)}

needs_plugins = pytest.mark.skipif(
    not os.path.isdir(PLUGINS), reason=f"{PLUGINS} is missing: install Debian's containernetworking-plugins"
)


class Outcome(msgspec.Struct, frozen=True):
    """The runtime's view: a result, nothing, or an error code."""

    result: Any = None
    code: int = 0
    message: str = msgspec.field(default="")

    @property
    def seen(self) -> tuple[Any, int]:
        """All but the error's text, which differs."""
        return self.result, self.code


def network(data_dir: Path | str, ipam: dict[str, Any], version: str = "1.0.0", **others: Any) -> dict[str, Any]:
    """Return a main plugin's configuration with host-local."""
    section = {"type": "host-local", "dataDir": str(data_dir), **ipam}
    return {"cniVersion": version, "name": "net", "type": "macvlan", "ipam": section, **others}


def executed(verb: str, config: dict[str, Any], container: str = "c1", ifname: str = "net1", args: str = "") -> Outcome:
    """Return what the reference plugin does."""
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": "/run/netns/none",
        "CNI_IFNAME": ifname,
        "CNI_ARGS": args,
        "CNI_PATH": PLUGINS,
    }
    binary = f"{PLUGINS}/{config['ipam']['type']}"
    run = subprocess.run([binary], input=json.dumps(config).encode(), env=env, capture_output=True, check=False)
    said: Any = json.loads(run.stdout) if run.stdout else None
    if run.returncode:
        return Outcome(code=said["code"], message=said["msg"])
    return Outcome(result=_plain(said) if said else None)


def native(
    verb: str,
    config: dict[str, Any],
    container: str = "c1",
    ifname: str = "net1",
    args: str = "",
    lock_timeout: float = BLOCKED_TIMEOUT,
) -> Outcome:
    """Return what the native plugin does."""
    plugin = NATIVE[config["ipam"]["type"]]
    previous = config.get("prevResult")
    call = Call(
        container_id=container,
        netns="/run/netns/none",
        ifname=ifname,
        config={key: value for key, value in config.items() if key != "prevResult"},
        args=parse_args(args),
        prev_result=results.decode(json.dumps(previous), config["cniVersion"]) if previous else None,
        lock_timeout=lock_timeout,
    )
    try:
        match verb:
            case "ADD":
                return Outcome(result=_plain(json.loads(results.encode(plugin.add(call), config["cniVersion"]))))
            case "CHECK":
                plugin.check(call)
            case "DEL":
                plugin.delete(call)
            case _:
                raise AssertionError(verb)
    except NativeError as error:
        return Outcome(code=error.code, message=str(error))
    except results.ResultError as error:  # the runner's code for it
        return Outcome(code=999, message=str(error))
    return Outcome()


WAYS = {"executed": executed, "native": native}


def on_disk(data_dir: Path) -> dict[str, bytes | None]:
    """Return every file in the network's folder with its text; None for a folder."""
    folder = data_dir / "net"
    if not folder.is_dir():
        return {}
    return {each.name: each.read_bytes() if each.is_file() else None for each in folder.iterdir()}


def reserved(data_dir: Path) -> dict[str, bytes | None]:
    """Return the files of reservations."""
    own = ("lock", "last_reserved_ip.")
    return {name: content for name, content in on_disk(data_dir).items() if not name.startswith(own)}


def _plain(result: Any) -> Any:
    """Leave out what one side prints and the other does not though it means the same: an empty ``dns``."""
    return {key: value for key, value in result.items() if (key, value) != ("dns", {})}
