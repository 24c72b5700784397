"""The tuning plugin: change the interface of earlier plugins, and parameters of its namespace.

It shares its notes with the reference plugin. Intended differences from its version 1.1.1: a repeated ADD keeps the
first note, DEL deletes the note, CHECK replaces ``IFNAME`` and accepts every spelling of a value or a MAC address, and
the administrator's allowlist applies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from events.process.decoding import convert
from events.schema import Phase
from nodeworker.kernel import namespaces
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kinds.tuning import link_properties
from nodeworker.plugins.native.kinds.tuning.link_properties import NOTHING, Properties
from nodeworker.plugins.native.kit.announce import announce_ipv6
from nodeworker.plugins.native.kit.chain_input import find_chained_link, own_addresses, require_prev_result
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, find_link, open_endpoints
from nodeworker.plugins.native.kit.plugin_config import (
    U32,
    PluginConfig,
    check_fits,
    decode_config,
    decode_options,
    parse_mac,
)
from nodeworker.plugins.spec.addresses import length
from nodeworker.plugins.spec.results import Interface, Result

TYPE = "tuning"

DATA_DIR = "/run/cni/tuning"
"""The folder of the notes, if the configuration names none."""
ALLOWLIST = "/etc/cni/tuning/allowlist.conf"
"""Regular expressions, one per line. If the file exists, a parameter must match one of them."""

_ROOT = "/proc/sys"
_NETWORK = f"{_ROOT}/net/"
_ONLY_IN_GO = "[:"
"""Start of a character class that Python's syntax does not have."""

log = structlog.get_logger(__name__)


class Tuning(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of the plugin."""

    data_dir: str = ""
    sysctl: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    mac: str = ""
    promisc: bool = False
    mtu: U32 = 0
    allmulti: bool | None = None
    tx_queue: U32 | None = msgspec.field(default=None, name="txQLen")


class _CniArgs(msgspec.Struct, frozen=True):
    """``args.cni``, which takes precedence over everything else."""

    sysctl: dict[str, str] = {}
    mac: str | None = None
    promisc: bool | None = None
    mtu: U32 | None = None
    allmulti: bool | None = None
    tx_queue: U32 | None = msgspec.field(default=None, name="txQLen")


class _Wanted(msgspec.Struct, frozen=True):
    """The options of all sources, merged."""

    parameters: dict[str, str]
    """Values by parameter name as configured, such as ``net.ipv4.conf.IFNAME.arp_filter``."""
    properties: Properties


_CNI_ARGS = {field.encode_name.casefold(): field.encode_name for field in msgspec.structs.fields(_CniArgs)}


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, Tuning)
    if isinstance(options, str):
        return options
    if options.has_ipam:
        return "ipam"
    if options.data_dir and not os.path.isabs(options.data_dir):
        return "dataDir is not an absolute path"
    try:
        _cni_args(options)
    except NativeError as error:
        return str(error)
    return ", ".join(key for key in _in_args(options) if _CNI_ARGS.get(key.casefold(), key) != key)


def add(call: Call, ipam_result: Result | None) -> Result:
    """Apply the options and return the updated previous result; *ipam_result* is None. Raises NativeError."""
    before, wanted, note = require_prev_result(call), _wanted(call), _note(call)
    files = _files(call, wanted)
    _refuse_unlisted(wanted.parameters)
    with open_endpoints(call, Phase.ADD) as ends:
        if wanted.properties == NOTHING:
            ends.netns.run_inside(lambda: _set(files))
            return before
        link = find_chained_link(ends, call)
        if wanted.properties.mac:
            check_fits("mac", wanted.properties.mac, length(link.mac), call.ifname)
        ends.netns.run_inside(lambda: _set(files))
        with error_context(f"note the state of {call.ifname} in {note}"):
            link_properties.note(note, link_properties.current(link, wanted.properties))
        requests = list(link_properties.changes(link.index, wanted.properties))
        for (words, _), refused in zip(requests, ends.container.attempt(*(each for _, each in requests)), strict=True):
            if refused is not None:
                raise NativeError(f"can't set {words} of {call.ifname}: {refused.strerror}")
        if wanted.properties.mac:
            announce_ipv6(ends, replace(link, mac=wanted.properties.mac), own_addresses(call, before))
    return replace(before, interfaces=tuple(_as_tuned(each, call, wanted.properties) for each in before.interfaces))


def check(call: Call) -> None:
    """Raise NativeError unless all options are in effect; without ``promisc`` the interface must not be promiscuous."""
    require_prev_result(call)
    wanted = _wanted(call)
    files = _files(call, wanted)
    with open_endpoints(call, Phase.CHECK) as ends:
        ends.netns.run_inside(lambda: _compare(files))
        link = find_chained_link(ends, call)
    asked = replace(wanted.properties, promisc=bool(wanted.properties.promisc))
    if different := link_properties.differing(link_properties.current(link, asked), asked):
        raise NativeError(f"interface {call.ifname} has {different}: recreate the pod")


def delete(call: Call) -> None:
    """Restore the interface to its noted state, if it exists. Raises NativeError."""
    note = _note(call)
    with error_context(f"read the noted state of {call.ifname} in {note}"):
        before = link_properties.noted(note)
    if before != NOTHING and call.netns and namespaces.is_namespace(call.netns):
        with open_endpoints(call, Phase.DEL) as ends:
            _restore(ends, call, before)
    with error_context(f"delete {note}"):
        link_properties.forget(note)


def _restore(ends: Endpoints, call: Call, before: Properties) -> None:
    """Restore what the kernel permits: a failure must not stop the DEL of the interface's own plugin, which is next."""
    link = find_link(ends.container, call.ifname)
    if link is None:
        return
    requests = list(link_properties.changes(link.index, before))
    for (words, _), refused in zip(requests, ends.container.attempt(*(each for _, each in requests)), strict=True):
        if refused is not None:
            log.warning(
                "tuning_not_undone",
                network=call.network,
                sandbox=call.container_id[:12],
                ifname=call.ifname,
                wanted=words,
                error=refused.strerror,
            )


def _wanted(call: Call) -> _Wanted:
    config = decode_config(call, Tuning)
    args = _cni_args(config)
    promisc = config.promisc if args.promisc is None else args.promisc
    return _Wanted(
        config.sysctl | args.sysctl,
        Properties(
            mac=_mac(call, config, args),
            promisc=promisc or None,
            mtu=config.mtu if args.mtu is None else args.mtu,
            allmulti=config.allmulti if args.allmulti is None else args.allmulti,
            tx_queue=config.tx_queue if args.tx_queue is None else args.tx_queue,
        ),
    )


def _in_args(config: Tuning) -> dict[str, Any]:
    return config.args.get("cni") or {}


def _cni_args(config: Tuning) -> _CniArgs:
    try:
        return convert(_in_args(config), _CniArgs)
    except msgspec.ValidationError as error:
        raise NativeError(f"args.cni of tuning can't be used: {error}") from None


def _mac(call: Call, config: Tuning, args: _CniArgs) -> str:
    """Return the MAC address: unlike plugins that create interfaces, this one reads an empty ``args.cni`` as none."""
    if args.mac is not None:
        return parse_mac("args.cni.mac", args.mac, call.ifname)
    asked = {"runtimeConfig.mac": config.runtime_config.get("mac"), "MAC in CNI_ARGS": call.args.get("MAC")}
    return parse_mac(*next((each for each in asked.items() if each[1]), ("mac", config.mac)), call.ifname)


def _files(call: Call, wanted: _Wanted) -> dict[str, str]:
    """Return the values by the file of each parameter. Raises NativeError."""
    return {_file(key, call.ifname): value for key, value in wanted.parameters.items()}


def _file(key: str, ifname: str) -> str:
    # The interface name last: a dot in it is no separator.
    path = os.path.normpath(f"{_ROOT}/{key.replace('.', '/').replace('IFNAME', ifname, 1)}")
    if not path.startswith(_NETWORK) or "\0" in path:
        raise NativeError(f"{key!r} is not a network parameter: tuning sets only those that begin with net.")
    return path


def _refuse_unlisted(keys: Collection[str]) -> None:
    """Raise NativeError unless the administrator's file, if there is one, allows *keys*."""
    if not keys:
        return
    try:
        with open(ALLOWLIST, encoding="utf-8") as file:
            patterns = [_pattern(line.strip()) for line in file if line.strip()]
    except FileNotFoundError:
        return
    except (OSError, ValueError, re.error) as error:
        raise NativeError(f"{ALLOWLIST} can't be used, so no parameter can be set: {error}") from None
    for key in keys:
        if not any(pattern.search(key) for pattern in patterns):
            raise NativeError(f"parameter {key} may not be set: add it to {ALLOWLIST}")


def _pattern(line: str) -> re.Pattern[str]:
    if _ONLY_IN_GO in line:
        raise ValueError(f"{_ONLY_IN_GO} in {line} is not supported: list the characters")
    return re.compile(line)


def _set(files: Mapping[str, str]) -> None:
    """Write parameters in the thread's namespace, also equal ones: a written value no longer follows the default."""
    for path, value in files.items():
        with error_context(f"set {path} to {value!r}"), open(path, "wb", buffering=0) as file:
            file.write(value.encode())


def _compare(files: Mapping[str, str]) -> None:
    for path, value in files.items():
        with error_context(f"read {path}"), open(path, "rb", buffering=0) as file:
            found = file.read().decode(errors="replace")
        if found.split() != value.split():
            raise NativeError(f"{path} is {found.strip()!r}, not {value!r}")


def _as_tuned(interface: Interface, call: Call, wanted: Properties) -> Interface:
    if interface.name != call.ifname or not interface.sandbox:
        return interface
    return replace(interface, mac=wanted.mac or interface.mac, mtu=wanted.mtu or interface.mtu)


def _note(call: Call) -> str:
    """Return the path of the note on the interface's earlier state. Raises NativeError."""
    name = f"{call.container_id}_{call.ifname}.json"
    if not call.container_id or not call.ifname or "/" in name or "\0" in name:
        raise NativeError(f"{name!r} is not a file name: the container ID or the interface name is not usable", 4)
    return os.path.join(decode_config(call, Tuning).data_dir or DATA_DIR, name)
