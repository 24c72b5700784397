"""CNI_ARGS: the semicolon-separated text in which runtimes name the pod of a sandbox.

The CNI conventions deprecate it, but the pod's name is nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

from events.schema import ErrorClass, Phase, Pod
from nodeworker.errors import failed
from nodeworker.plugins.spec.names import shown


def parse_args(text: str) -> dict[str, str]:
    """Return the pairs of CNI_ARGS, the last of equal keys winning; values may hold "=".

    Raises RequestFailedError (INVALID_REQUEST, CNI code 4) for a piece that is no ``KEY=VALUE``.
    """
    args: dict[str, str] = {}
    for piece in filter(None, text.split(";")):
        key, equals, value = piece.partition("=")
        if not key or not equals:
            raise failed(
                ErrorClass.INVALID_REQUEST,
                Phase.RESOLVE,
                f"CNI_ARGS holds {shown(piece)}, which is not KEY=VALUE; correct the runtime's configuration",
            )
        args[key] = value
    return args


def pod_of(args: str) -> Pod:
    """Return the pod that CNI_ARGS names, whatever else is in them.

    podman gives a name and no namespace; a manifest without one is in ``default`` too.
    """
    found = dict(piece.split("=", 1) for piece in args.split(";") if "=" in piece)
    name = found.get("K8S_POD_NAME", "")
    return Pod(
        namespace=found.get("K8S_POD_NAMESPACE") or ("default" if name else ""),
        name=name,
        uid=found.get("K8S_POD_UID", ""),
    )


def delegate_args(given: Mapping[str, str], container_id: str, *, mac: str, ips: tuple[str, ...], default: bool) -> str:
    """Return CNI_ARGS for a delegate of the sandbox *container_id*.

    The order is that of Multus, which scripts in the field have come to rely on. ``MAC`` and ``IP`` that the runtime
    gives are meant for the interface that it asked for: no other attachment sees them.
    """
    args = {
        "IgnoreUnknown": "true",
        "K8S_POD_NAMESPACE": given.get("K8S_POD_NAMESPACE", ""),
        "K8S_POD_NAME": given.get("K8S_POD_NAME", ""),
        "K8S_POD_INFRA_CONTAINER_ID": given.get("K8S_POD_INFRA_CONTAINER_ID") or container_id,
        "K8S_POD_UID": given.get("K8S_POD_UID", ""),
    }
    asked = {key: value for key, value in (("MAC", mac), ("IP", ",".join(ips))) if value}
    dropped = set(asked) if default else {"MAC", "IP"}
    args |= {key: value for key, value in given.items() if key not in args and key not in dropped}
    return ";".join(f"{key}={value}" for key, value in (args | asked).items())
