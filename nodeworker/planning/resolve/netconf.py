"""Parse the network configuration from the runtime; the worker's own configuration supplies the missing keys.

The keys and defaults are those of Multus, so that a node changes ``type`` and keeps the rest of its file. Keys without
an effect are in ``planning.resolve.config_keys``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.resolve.config_keys import given_keys, names_of, unknown_keys
from nodeworker.plugins.spec import conflist, results
from nodeworker.plugins.spec.names import decode_json, is_network_name, raw_members, respelled, shown
from nodeworker.plugins.spec.versions import SUPPORTED, UNSTATED, ConfigError, at_least

_DEFAULT_NETWORK = frozenset({"clusterNetwork", "delegates"})


class LogOptions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """When the log file is rotated, and how long rotated files are stored."""

    max_size: int = 100
    """Megabytes at which the file is rotated."""
    max_age: int = 5
    """Days; 0: no limit."""
    max_backups: int = 5


class NodeDefaults(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The defaults for every pod of a node; the runtime's configuration overrides them."""

    delegates: tuple[dict[str, msgspec.Raw], ...] = ()
    """CNI configurations, single or list; the first is the default network. Ignored if ``cluster_network`` is set."""
    cluster_network: str = ""
    """Default network: a NAD in ``multus_namespace``, the name of a configuration in ``conf_dir``, or a path."""
    default_networks: tuple[str, ...] = ()
    """Additional networks of every pod outside the system namespaces; ignored without ``cluster_network``."""
    auxiliary_chain: str = msgspec.field(default="", name="auxiliaryCNIChainName")
    """Folder beside ``cluster_network``, or in ``chain_dir``: its plugins are the last network of every pod, a chain of
    this name."""
    chain_dir: str = ""
    """Folder in which the lists among ``delegates`` continue, each in the folder of its name; empty: nowhere."""
    conf_dir: str = "/etc/cni/multus/net.d"
    bin_dir: str = "/opt/cni/bin"
    namespace_isolation: bool = False
    """Pods may use NADs of their own namespace and of the global ones only."""
    global_namespaces: str = "default"
    """Comma-separated."""
    system_namespaces: tuple[str, ...] = ("kube-system",)
    multus_namespace: str = "kube-system"
    readiness_file: str = msgspec.field(default="", name="readinessindicatorfile")
    """Nothing is attached before this file exists: the default network creates it when it works."""
    log_file: str = ""
    """A second log file for requests of this configuration, beside the worker's own log."""
    log_level: str = ""
    """``panic``, ``error``, ``verbose`` or ``debug``, for ``log_file``; any other value means ``verbose``."""
    log_options: LogOptions = LogOptions()

    @property
    def chain_base(self) -> str:
        """The folder of the auxiliary chain's folder, or a file beside it; empty: unknown."""
        return self.cluster_network if "/" in self.cluster_network else self.chain_dir


class RuntimeNetConf(NodeDefaults, frozen=True, kw_only=True, rename="camel"):
    """The configuration of one request."""

    name: str
    cni_version: str = UNSTATED
    runtime_config: dict[str, msgspec.Raw] = {}
    """The runtime's values for plugins with a capability, by capability."""
    prev_result: dict[str, Any] | None = None
    """The result of an earlier plugin in the runtime's chain. It must be valid; it has no effect."""

    @property
    def shared_namespaces(self) -> frozenset[str]:
        """The namespaces whose NADs all pods may use."""
        return frozenset(name.strip() for name in self.global_namespaces.split(",")) - {""}

    def plugin_folders(self, path: str) -> tuple[str, ...]:
        """Return the plugin folders: those of CNI_PATH, which is *path*, after ``bin_dir`` unless it is among them."""
        folders = tuple(folder for folder in path.split(":") if folder)
        return folders if self.bin_dir in folders else (self.bin_dir, *folders)


KEYS = names_of(RuntimeNetConf)
"""The keys of a runtime's configuration that have an effect."""

_ATTRIBUTES = {field.encode_name: field.name for field in msgspec.structs.fields(NodeDefaults)}
"""Names of attributes by JSON key. To compute them takes half a millisecond."""

_runtime_conf = msgspec.json.Decoder(RuntimeNetConf)
_defaults = msgspec.json.Decoder(NodeDefaults)


def parse_netconf(config: str, defaults: NodeDefaults) -> RuntimeNetConf:
    """Return the runtime's *config*, with *defaults* for keys that are null, empty or missing.

    If *config* has one of ``clusterNetwork`` and ``delegates``, the default of the other is ignored.

    Raises RequestFailedError: INVALID_CONFIG (CNI code 6 if it is no JSON object, else 7), UNSUPPORTED_VERSION (1).
    """
    given = {key: value for key, value in _read(config).items() if value or key not in _DEFAULT_NETWORK}
    version = given.get("cniVersion", UNSTATED)
    if version not in SUPPORTED:
        raise failed(
            ErrorClass.UNSUPPORTED_VERSION,
            Phase.RESOLVE,
            f"the network configuration asks for cniVersion {shown(str(version))}; use one of {', '.join(SUPPORTED)}",
        )
    own = _members(defaults)
    if given.keys() & _DEFAULT_NETWORK:
        own = {key: value for key, value in own.items() if key not in _DEFAULT_NETWORK}
    try:
        conf = _runtime_conf.decode(msgspec.json.encode({**own, **_written(config, given)}))
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    if problem := _problem(conf):
        raise _invalid(problem)
    return conf


def parse_defaults(keys: Mapping[str, Any]) -> NodeDefaults:
    """Return the worker's own *keys*, parsed like a runtime's. Raises ValueError."""
    try:
        defaults = _defaults.decode(msgspec.json.encode(given_keys(keys, KEYS)))
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    for index, delegate in enumerate(() if defaults.cluster_network else defaults.delegates, 1):
        try:
            conflist.parse(delegate)
        except ConfigError as error:
            raise ValueError(f"element {index} of delegates: {error}") from error
    if problem := _chain_problem(defaults) if defaults.cluster_network else "":
        raise ValueError(problem)
    return defaults


def logging_of(config: str, defaults: NodeDefaults) -> NodeDefaults:
    """Return *defaults* with the log settings of *config*, which may be invalid otherwise."""
    try:
        given = {key: value for key, value in _read(config).items() if key in {"logFile", "logLevel", "logOptions"}}
        return _defaults.decode(msgspec.json.encode({**_members(defaults), **given}))
    except (RequestFailedError, msgspec.ValidationError):
        return defaults


def unknown_netconf_keys(config: str) -> tuple[str, ...]:
    """Return the unknown keys of *config*, in order; none if it is not a JSON object."""
    try:
        return unknown_keys(_read(config), KEYS)
    except RequestFailedError:
        return ()


def requested_version(config: str) -> str:
    """Return the CNI version for error reports: the one in *config*, or our newest if it has no supported one."""
    try:
        version = _read(config).get("cniVersion", UNSTATED)
    except RequestFailedError:
        return SUPPORTED[-1]
    return version if version in SUPPORTED else SUPPORTED[-1]


def _problem(conf: RuntimeNetConf) -> str:
    """Return what is wrong with keys that are valid alone, or an empty text."""
    if not conf.cluster_network and not conf.delegates:
        return "it names no default network; set clusterNetwork or delegates"
    if problem := _chain_problem(conf):
        return problem
    return _prev_result_problem(conf.prev_result, conf.cni_version) if conf.prev_result is not None else ""


def _chain_problem(conf: NodeDefaults) -> str:
    """Return why the auxiliary chain can't be looked up, or an empty text."""
    if conf.auxiliary_chain and not is_network_name(conf.auxiliary_chain):
        return (
            f"auxiliaryCNIChainName is {shown(conf.auxiliary_chain)}; "
            "start it with a letter or digit and go on with letters, digits, '_', '.' and '-'"
        )
    if conf.auxiliary_chain and not conf.chain_base:
        return (
            "auxiliaryCNIChainName names a folder beside clusterNetwork, which is not a path: make it one, or set "
            "chainDir to the folder that the chain's folder is in"
        )
    return ""


def _prev_result_problem(prev_result: Mapping[str, Any], version: str) -> str:
    """Return why *prev_result* is not a result for *version*, or an empty text. The version's shape must match."""
    try:
        stated = str(prev_result.get("cniVersion") or version)
        if _shape(stated) != _shape(version):
            return f"prevResult is in cniVersion {shown(stated)}, which is not a result for {version}"
        results.decode(msgspec.json.encode(prev_result).decode(), version)
    except ValueError as error:
        return f"prevResult can't be used: {error}"
    return ""


def _shape(version: str) -> tuple[bool, bool]:
    """Return a key that distinguishes the three shapes of results. Raises ValueError."""
    return at_least(version, "0.3.0"), at_least(version, "1.0.0")


def _members(defaults: NodeDefaults) -> dict[str, Any]:
    return {key: getattr(defaults, attribute) for key, attribute in _ATTRIBUTES.items()}


def _written(config: str, keys: Iterable[str]) -> dict[str, msgspec.Raw]:
    """Return the *keys* of *config* as written: only plugins know what is in ``delegates`` and ``runtimeConfig``."""
    written = respelled(raw_members(config), KEYS)
    return {key: written[key] for key in keys}


def _read(config: str) -> dict[str, Any]:
    try:
        value = decode_json(config)
    except ValueError as error:
        raise _invalid(f"it is not JSON: {error}", code=6) from error
    if not isinstance(value, dict):
        raise _invalid("it is not a JSON object", code=6)
    return given_keys(cast("dict[str, Any]", value), KEYS)


def _invalid(problem: str, code: int | None = None) -> Exception:
    return failed(
        ErrorClass.INVALID_CONFIG,
        Phase.RESOLVE,
        f"the runtime's network configuration can't be used: {problem}",
        code=code,
    )
