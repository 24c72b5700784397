"""The network configuration a runtime gives us, laid over what the worker itself was configured with.

The keys are those of Multus, with its defaults, so that a node changes ``type`` and keeps the rest of its file.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from events.schema import ErrorClass, Phase
from nodeworker.delegates.versions import SUPPORTED, UNSTATED
from nodeworker.errors import RequestFailedError, failed
from nodeworker.resolve.grammar import decode_json, shown

_DEFAULT_NETWORK = frozenset({"clusterNetwork", "delegates"})


class NodeDefaults(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What holds for every pod of a node unless the runtime's configuration says otherwise."""

    delegates: tuple[dict[str, Any], ...] = ()
    """CNI configurations, single or list; the first is the default network. Unused where ``cluster_network`` is set."""
    cluster_network: str = ""
    """Default network: a NAD in ``multus_namespace``, the name of a configuration in ``conf_dir``, or a path."""
    default_networks: tuple[str, ...] = ()
    """Further networks of every pod outside the system namespaces; they go with ``cluster_network``."""
    conf_dir: str = "/etc/cni/multus/net.d"
    bin_dir: str = "/opt/cni/bin"
    namespace_isolation: bool = False
    """Pods use NADs of their own namespace and of the global ones only."""
    global_namespaces: str = "default"
    """Comma-separated."""
    system_namespaces: tuple[str, ...] = ("kube-system",)
    multus_namespace: str = "kube-system"


class NetConf(NodeDefaults, frozen=True, kw_only=True, rename="camel"):
    """The configuration of one request."""

    name: str
    cni_version: str = UNSTATED
    runtime_config: dict[str, Any] = {}
    """What the runtime offers to plugins with the capability, by capability."""

    @property
    def shared_namespaces(self) -> frozenset[str]:
        """The namespaces whose NADs everybody may use."""
        return frozenset(name.strip() for name in self.global_namespaces.split(",")) - {""}


def parse_netconf(config: str, defaults: NodeDefaults) -> NetConf:
    """Return the runtime's *config* laid over *defaults*; a key that is null or empty is not given.

    Whoever names the default network, as ``clusterNetwork`` or as ``delegates``, decides between the two.

    Raises RequestFailedError: INVALID_CONFIG (CNI code 6 for what is no JSON object, else 7), UNSUPPORTED_VERSION (1).
    """
    # Go's decoder, which reads this for Multus, does not tell null and empty from absent; nor do files in the field.
    given = {
        key: value
        for key, value in _decode(config).items()
        if value not in (None, "") and (value or key not in _DEFAULT_NETWORK)
    }
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
    if not conf.cluster_network and not conf.delegates:
        raise _invalid("it names no default network; set clusterNetwork or delegates")
    return conf


def version_asked(config: str) -> str:
    """Return the CNI version to report errors in: what *config* asks for, or our newest if that can't be told."""
    try:
        version = _decode(config).get("cniVersion") or UNSTATED
    except RequestFailedError:
        return SUPPORTED[-1]
    return version if version in SUPPORTED else SUPPORTED[-1]


def _decode(config: str) -> dict[str, Any]:
    try:
        value = decode_json(config)
    except ValueError as error:
        raise _invalid(f"it is no JSON: {error}", code=6) from error
    if not isinstance(value, dict):
        raise _invalid("it is no JSON object", code=6)
    return cast("dict[str, Any]", value)


def _invalid(problem: str, code: int | None = None) -> Exception:
    return failed(
        ErrorClass.INVALID_CONFIG,
        Phase.RESOLVE,
        f"the network configuration given by the runtime can't be used: {problem}",
        code=code,
    )
