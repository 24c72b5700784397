"""The known keys of a network configuration: a node that ran Multus has many in its file.

A known key is used, or accepted without effect for the reason given here. An unknown key is probably a mistake: it is
logged, and pods are attached nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nodeworker.plugins.spec.names import respelled

WITHOUT_EFFECT: Mapping[str, str] = {
    "type": "its purpose is served when the runtime calls Plumbline",
    "capabilities": "the runtime reads it, to decide what to pass in runtimeConfig",
    "retryDeleteOnError": "a DEL that failed is always repeated until it succeeds",
    "allowTryDeleteOnErr": "as retryDeleteOnError",
    "cniDir": "the ledger records attachments",
    "kubeconfig": "access to the API server is configured once for the worker, in worker.kubernetes",
    "logToStderr": "the worker logs to standard error in any case",
    "daemonSocketDir": "the entry point finds the worker at PLUMBLINE_SOCKET",
    "socketDir": "as daemonSocketDir; the worker's end is runDir",
    "chrootDir": "plugins are executed in the worker's mount namespace, which has the node's files",
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
    "cniConf": "Multus' installer writes it and Multus does not read it either; confDir is the right key",
    "defaultnetworkfile": "Multus does not read it any more",
    "defaultnetworkwaitseconds": "Multus does not read it any more",
}
"""Keys of Multus and its daemon that change nothing, each with the reason."""

OF_CNI = frozenset({"cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "args", "ipam", "dns"})
"""Keys that the CNI specification allows in any configuration, and that have no meaning in ours."""

_NOT_GIVEN = (None, "", msgspec.Raw(b"null"), msgspec.Raw(b'""'))

_RESERVED = "cni.dev/"
"""Prefix of keys that runtimes add (CNI specification 1.1, section 2, "GC")."""


def given_keys(config: Mapping[str, Any], honoured: Iterable[str]) -> dict[str, Any]:
    """Return the keys of *config*, spelled as in *honoured*, without those that are null or empty.

    Go's decoder, which reads the file for Multus, treats null and empty as absent, and existing files rely on it.
    """
    return {key: value for key, value in respelled(config, honoured).items() if value not in _NOT_GIVEN}


def unknown_keys(given: Iterable[str], honoured: Iterable[str]) -> tuple[str, ...]:
    """Return the keys in *given* that have no meaning, in order."""
    known = {name.casefold() for name in (*honoured, *WITHOUT_EFFECT, *OF_CNI)}
    return tuple(key for key in given if key.casefold() not in known and not key.startswith(_RESERVED))


def names_of(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the JSON keys of *struct*."""
    return tuple(field.encode_name for field in msgspec.structs.fields(struct))
