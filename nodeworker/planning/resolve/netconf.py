"""The network configuration a runtime gives us, laid over what the worker itself was configured with.

The keys are those of Multus, with its defaults, so that a node changes ``type`` and keeps the rest of its file; those
that have no effect here are in ``nodeworker.planning.resolve.config_keys``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.resolve.config_keys import given_keys, names_of, unknown_keys
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.names import decode_json, is_network_name, shown
from nodeworker.plugins.spec.versions import SUPPORTED, UNSTATED, at_least

_DEFAULT_NETWORK = frozenset({"clusterNetwork", "delegates"})


class LogOptions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """When the log file is set aside for a new one, and how long what was set aside is kept."""

    max_size: int = 100
    """Megabytes that the file may grow to."""
    max_age: int = 5
    """Days; 0: any."""
    max_backups: int = 5


class NodeDefaults(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What holds for every pod of a node unless the runtime's configuration says otherwise."""

    delegates: tuple[dict[str, Any], ...] = ()
    """CNI configurations, single or list; the first is the default network. Unused where ``cluster_network`` is set."""
    cluster_network: str = ""
    """Default network: a NAD in ``multus_namespace``, the name of a configuration in ``conf_dir``, or a path."""
    default_networks: tuple[str, ...] = ()
    """Further networks of every pod outside the system namespaces; they go with ``cluster_network``."""
    auxiliary_chain: str = msgspec.field(default="", name="auxiliaryCNIChainName")
    """Folder beside ``cluster_network``: the plugins in it are every pod's last network, a chain of this name."""
    conf_dir: str = "/etc/cni/multus/net.d"
    bin_dir: str = "/opt/cni/bin"
    namespace_isolation: bool = False
    """Pods use NADs of their own namespace and of the global ones only."""
    global_namespaces: str = "default"
    """Comma-separated."""
    system_namespaces: tuple[str, ...] = ("kube-system",)
    multus_namespace: str = "kube-system"
    readiness_file: str = msgspec.field(default="", name="readinessindicatorfile")
    """Nothing is attached before it is there: the default network makes it once it works."""
    log_file: str = ""
    """Where the requests of this configuration are told too, beside the worker's own log."""
    log_level: str = ""
    """``panic``, ``error``, ``verbose`` or ``debug``, of ``log_file``; anything else is ``verbose``."""
    log_options: LogOptions = LogOptions()


class NetConf(NodeDefaults, frozen=True, kw_only=True, rename="camel"):
    """The configuration of one request."""

    name: str
    cni_version: str = UNSTATED
    runtime_config: dict[str, Any] = {}
    """What the runtime offers to plugins with the capability, by capability."""
    prev_result: dict[str, Any] | None = None
    """Of a plugin before us in the runtime's chain. It has to be a result; nothing is made of it."""

    @property
    def shared_namespaces(self) -> frozenset[str]:
        """The namespaces whose NADs everybody may use."""
        return frozenset(name.strip() for name in self.global_namespaces.split(",")) - {""}

    def plugin_folders(self, path: str) -> tuple[str, ...]:
        """Return where plugins are searched: CNI_PATH, which *path* is, after ``bin_dir`` unless it is in there."""
        folders = tuple(folder for folder in path.split(":") if folder)
        return folders if self.bin_dir in folders else (self.bin_dir, *folders)


KEYS = names_of(NetConf)
"""The keys of a runtime's configuration that are honoured."""


def parse_netconf(config: str, defaults: NodeDefaults) -> NetConf:
    """Return the runtime's *config* laid over *defaults*; a key that is null or empty is not given.

    Whoever names the default network, as ``clusterNetwork`` or as ``delegates``, decides between the two.

    Raises RequestFailedError: INVALID_CONFIG (CNI code 6 for what is no JSON object, else 7), UNSUPPORTED_VERSION (1).
    """
    given = {key: value for key, value in _read(config).items() if value or key not in _DEFAULT_NETWORK}
    version = given.get("cniVersion", UNSTATED)
    if version not in SUPPORTED:
        raise failed(
            ErrorClass.UNSUPPORTED_VERSION,
            Phase.RESOLVE,
            f"the network configuration asks for cniVersion {shown(str(version))}; use one of {', '.join(SUPPORTED)}",
        )
    own: dict[str, Any] = msgspec.to_builtins(defaults)
    if given.keys() & _DEFAULT_NETWORK:
        own = {key: value for key, value in own.items() if key not in _DEFAULT_NETWORK}
    try:
        conf = msgspec.convert({**own, **given}, NetConf)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    if problem := _problem(conf):
        raise _invalid(problem)
    return conf


def parse_defaults(keys: Mapping[str, Any]) -> NodeDefaults:
    """Return what the worker's own *keys* say, read as a runtime's are. Raises ValueError."""
    try:
        return msgspec.convert(given_keys(keys, KEYS), NodeDefaults)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def logging_of(config: str, defaults: NodeDefaults) -> NodeDefaults:
    """Return *defaults* with what *config* says about logging, however unusable it is otherwise."""
    try:
        given = {key: value for key, value in _read(config).items() if key in {"logFile", "logLevel", "logOptions"}}
        return msgspec.convert({**msgspec.to_builtins(defaults), **given}, NodeDefaults)
    except (RequestFailedError, msgspec.ValidationError):
        return defaults


def unknown_to_us(config: str) -> tuple[str, ...]:
    """Return the keys of *config* that mean nothing to anybody, in order; none of what is no configuration."""
    try:
        return unknown_keys(_read(config), KEYS)
    except RequestFailedError:
        return ()


def version_asked(config: str) -> str:
    """Return the CNI version to report errors in: what *config* asks for, or our newest if that can't be told."""
    try:
        version = _read(config).get("cniVersion", UNSTATED)
    except RequestFailedError:
        return SUPPORTED[-1]
    return version if version in SUPPORTED else SUPPORTED[-1]


def _problem(conf: NetConf) -> str:
    """Return what is wrong with keys that are right one by one, or nothing."""
    if not conf.cluster_network and not conf.delegates:
        return "it names no default network; set clusterNetwork or delegates"
    if conf.auxiliary_chain and not is_network_name(conf.auxiliary_chain):
        return (
            f"auxiliaryCNIChainName is {shown(conf.auxiliary_chain)}; "
            "start it with a letter or digit and go on with letters, digits, '_', '.' and '-'"
        )
    if conf.auxiliary_chain and "/" not in conf.cluster_network:
        return "auxiliaryCNIChainName names a folder beside clusterNetwork, which is no path; make it one"
    return _prev_result_problem(conf.prev_result, conf.cni_version) if conf.prev_result is not None else ""


def _prev_result_problem(prev_result: Mapping[str, Any], version: str) -> str:
    """Return why *prev_result* is no result that fits *version*: of the same shape, whatever it is called."""
    try:
        stated = str(prev_result.get("cniVersion") or version)
        if _shape(stated) != _shape(version):
            return f"prevResult is in cniVersion {shown(stated)}, which is no result for {version}"
        results.decode(msgspec.json.encode(prev_result).decode(), version)
    except ValueError as error:
        return f"prevResult can't be used: {error}"
    return ""


def _shape(version: str) -> tuple[bool, bool]:
    """Return what tells the three shapes of results apart. Raises ValueError."""
    return at_least(version, "0.3.0"), at_least(version, "1.0.0")


def _read(config: str) -> dict[str, Any]:
    try:
        value = decode_json(config)
    except ValueError as error:
        raise _invalid(f"it is no JSON: {error}", code=6) from error
    if not isinstance(value, dict):
        raise _invalid("it is no JSON object", code=6)
    return given_keys(cast("dict[str, Any]", value), KEYS)


def _invalid(problem: str, code: int | None = None) -> Exception:
    return failed(
        ErrorClass.INVALID_CONFIG,
        Phase.RESOLVE,
        f"the network configuration given by the runtime can't be used: {problem}",
        code=code,
    )
