"""Attach and detach three pods for real, and say at each step what happens and why.

Everything is real except the cluster: namespaces, interfaces, ledger. Pods and networks are manifests in a folder. The
demo needs neither root nor a CNI plugin and does not change the machine: see ``isolation``.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from isolation import IsolationError, isolate
from output import DemoFailedError, expect, print_indented, print_step, wait_for
from stage import Stage

_LAST_LINES = 20


def play(stage: Stage) -> None:
    """The demo, step by step."""
    attach(stage)
    report(stage)
    kill_worker(stage)
    drift(stage)
    detach(stage)


def attach(stage: Stage) -> None:
    """Start Plumbline; two pods get their interfaces."""
    print_step(
        "1. plumbline up",
        """
        Three processes on one machine. The node ledger is a nats-server on loopback. The worker makes interfaces. The
        reconciler publishes what each pod has. In a cluster each has its own container. Their log goes to a file; on
        a terminal it is coloured.
        """,
    )
    stage.start()

    print_step(
        "2. A pod with one additional network",
        """
        samplepod carries the annotation k8s.v1.cni.cncf.io/networks: macvlan-conf. The runtime executes the entry
        point with CNI_COMMAND=ADD. The entry point passes the request to the worker and prints the answer: the result
        of the default network, which the kubelet shows as the pod's IP. CNI_PATH is an empty folder: the worker does
        the work of bridge, macvlan and host-local itself.
        """,
    )
    stage.attach("samplepod")
    stage.within("samplepod", "ip", "-brief", "address")
    expect(stage.address("samplepod", "net1").startswith("192.168.1."), "net1 has no address of macvlan-conf")

    print_step(
        "3. A pod with the same network twice",
        """
        Each mention is a separate attachment with its own interface: net1 and net2.
        """,
    )
    stage.attach("twice")
    stage.within("twice", "ip", "-brief", "address")

    print_step(
        "4. The pods reach each other over net1",
        """
        The packets bypass the default network: both ends are macvlan interfaces.
        """,
    )
    stage.within("samplepod", "ping", "-c", "1", "-W", "2", "-I", "net1", stage.address("twice", "net1"))


def report(stage: Stage) -> None:
    """Show what Kubernetes and people see of the attach."""
    print_step(
        "5. What Kubernetes sees",
        """
        The reconciler reads the ledger and publishes the pod's annotation k8s.v1.cni.cncf.io/network-status. Here it
        writes to the folder status beside the manifests.
        """,
    )
    print_indented(stage.status("samplepod"))

    print_step(
        "6. The timeline of a pod",
        """
        The request and the plan were in the ledger before the first interface was made.
        """,
    )
    stage.timeline("samplepod")


def kill_worker(stage: Stage) -> None:
    """Kill the worker during an attach; the runtime still gets its answer."""
    print_step(
        "7. kill -9 of the worker in the middle of an attach",
        """
        The network of the pod 'unlucky' has one more plugin: demo-slow, a script that does nothing for one second.
        The demo kills the worker during that second. The entry point retries: it sends the same request to the next
        worker. That worker finds the unfinished intent in the ledger, waits for the orphaned plugin, removes the
        half-made interface and makes it again.
        """,
    )
    stage.make_namespace("unlucky")
    request = stage.execute("ADD", "unlucky")
    wait_for(stage.plugins / "demo-slow-is-running")
    stage.kill_worker()
    stage.answer(request)
    stage.within("unlucky", "ip", "-brief", "address")
    stage.timeline("unlucky")


def drift(stage: Stage) -> None:
    """Delete an interface by hand; the worker restores it."""
    print_step(
        "8. Drift: an interface is deleted and comes back",
        """
        The demo deletes net1 in the running pod. The worker gets the kernel's notification and records the drift in
        the ledger. The reconciler decides to repair it and sends a command to the node. The worker makes the interface
        again, with the same address and MAC address. Then 'verify' compares database, ledger and node.
        """,
    )
    before = stage.link("samplepod", "net1")
    stage.within("samplepod", "ip", "link", "delete", "net1")
    stage.wait_for_link("samplepod", "net1", before)
    stage.within("samplepod", "ip", "-brief", "address")
    stage.timeline("samplepod")
    stage.verify()


def detach(stage: Stage) -> None:
    """Detach all pods; the ledger keeps their events."""
    print_step(
        "9. Detach",
        """
        DEL undoes the recorded plan in reverse order, with the configuration that ADD used. It does not need the
        manifests, so the demo deletes them first.
        """,
    )
    for manifest in stage.manifests.glob("*.yaml"):
        manifest.unlink()
    for pod in ("samplepod", "twice", "unlucky"):
        stage.detach(pod)

    print_step(
        "10. Nothing is left",
        """
        No address is taken, no interface and no namespace exists. The ledger still has every event.
        """,
    )
    stage.prove_nothing_left()
    stage.timeline("samplepod")

    print_step(
        "11. SIGTERM",
        """
        Everything stops in order.
        """,
    )
    exit_code = stage.stop()
    expect(exit_code == 0, f"plumbline up ended with exit code {exit_code}")
    print("   exit code 0")


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that the demo stops every process in order."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Run the demo; return its exit code: 0 done, 1 a step failed, 2 it can't run here, 130 interrupted."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        is_root = os.geteuid() == 0
        isolate()
        print_step(
            "The stage",
            f"""
            The demo runs in {"a network namespace" if is_root else "a user namespace, a network namespace"} and a
            separate /run. The machine does not change; only a log file stays behind.
            """,
        )
        stage = Stage()
        with stage:
            _play_or_show_log(stage)
    except IsolationError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left of the demo", file=sys.stderr)
        return 130
    except DemoFailedError as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1
    print(f"\n\033[1mThe demo is over, and everything it made is gone.\033[0m The log stays: {stage.log}")
    return 0


def _play_or_show_log(stage: Stage) -> None:
    try:
        play(stage)
    except DemoFailedError:
        print(f"\n   the last lines of {stage.log}:")
        print_indented("\n".join(stage.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]))
        raise


if __name__ == "__main__":
    sys.exit(main())
