"""Which keys a network configuration may have, because a node that ran Multus keeps every key of its file.

Each is honoured, or accepted without effect for a reason that is said here. Any other is a mistake that people want to
be told of, and that must not cost them their pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nodeworker.plugins.spec.names import respelled

WITHOUT_EFFECT: Mapping[str, str] = {
    "type": "it has done its work when the runtime calls Plumbline",
    "capabilities": "the runtime reads it, to know what to offer in runtimeConfig",
    "retryDeleteOnError": "a DEL that failed is always repeated until it succeeds",
    "allowTryDeleteOnErr": "as retryDeleteOnError",
    "cniDir": "what was attached is in the ledger",
    "kubeconfig": "access to the API server is configured once for the worker, in worker.kubernetes",
    "logToStderr": "the worker logs to standard error in any case",
    "daemonSocketDir": "the entry point finds the worker at PLUMBLINE_SOCKET",
    "socketDir": "as daemonSocketDir; the worker's end is runDir",
    "chrootDir": "plugins are executed where the worker sees the node's files",
    "connectionLimit": "worker.concurrency bounds the work, and the queue is a metric",
    "metricsPort": "worker.metrics says where metrics are served",
    "enablePprof": "there is no such endpoint",
    "perNodeCertificate": "credentials come from the kubeconfig or the service account",
    "multusConfigFile": "the installer writes the runtime's configuration",
    "multusAutoconfigDir": "as multusConfigFile",
    "multusMasterCNI": "as multusConfigFile",
    "cniConfigDir": "as multusConfigFile",
    "overrideNetworkName": "as multusConfigFile",
    "forceCNIVersion": "as multusConfigFile",
    "cniConf": "Multus' installer writes it and Multus does not read it either: confDir is meant",
    "defaultnetworkfile": "Multus does not read it any more",
    "defaultnetworkwaitseconds": "Multus does not read it any more",
}
"""Keys of Multus and its daemon that change nothing, each with the reason."""

OF_CNI = frozenset({"cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "args", "ipam", "dns"})
"""Keys that the CNI specification has for any configuration, and that mean nothing in ours."""

_RESERVED = "cni.dev/"
"""Prefix of the keys that runtimes add (CNI specification 1.1, section 2, "GC")."""


def given_keys(config: Mapping[str, Any], honoured: Iterable[str]) -> dict[str, Any]:
    """Return the keys of *config* spelled as in *honoured*, without those that are null or empty.

    Go's decoder, which reads this for Multus, does not tell null and empty from absent; nor do files in the field.
    """
    return {key: value for key, value in respelled(config, honoured).items() if value is not None and value != ""}


def unknown_keys(given: Iterable[str], honoured: Iterable[str]) -> tuple[str, ...]:
    """Return those of *given* that mean nothing to anybody, in order."""
    known = {name.casefold() for name in (*honoured, *WITHOUT_EFFECT, *OF_CNI)}
    return tuple(key for key in given if key.casefold() not in known and not key.startswith(_RESERVED))


def names_of(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the keys that *struct* is read from."""
    return tuple(field.encode_name for field in msgspec.structs.fields(struct))
