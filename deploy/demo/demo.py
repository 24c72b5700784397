"""Play the life of three pods for real, and say at each step what happens and why.

Everything is real but the cluster: namespaces, interfaces, ledger. Pods and networks come from a folder of manifests.
Root is not needed, nor is any CNI plugin, and the machine stays as it is: see ``seclusion``.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from seclusion import SeclusionError, seclude
from stage import Stage
from telling import DemoFailedError, expect, quote, say, wait_for


def play(stage: Stage) -> None:
    """The demo, step by step."""
    attach(stage)
    tell(stage)
    survive(stage)
    drift(stage)
    detach(stage)


def attach(stage: Stage) -> None:
    """Start Plumbline; two pods get their interfaces."""
    say(
        "1. plumbline up",
        """
        Three processes on one machine: the node ledger (a nats-server on loopback), the worker that makes
        interfaces, and the reconciler that tells people what is there. In a cluster each has its own container.
        """,
    )
    stage.start()

    say(
        "2. A pod with one additional network",
        """
        samplepod carries the annotation k8s.v1.cni.cncf.io/networks: macvlan-conf. The runtime executes the
        entry point with CNI_COMMAND=ADD; it hands the request to the worker and prints the worker's answer: the
        default network's result, because that is what the kubelet shows as the pod's IP. CNI_PATH is an empty
        folder: the worker does the work of bridge, macvlan and host-local itself.
        """,
    )
    stage.attach("samplepod")
    stage.within("samplepod", "ip", "-brief", "address")
    expect(stage.address("samplepod", "net1").startswith("192.168.1."), "net1 has no address of macvlan-conf")

    say(
        "3. A pod with the same network twice",
        """
        Each mention is an attachment of its own, with an interface of its own: net1 and net2.
        """,
    )
    stage.attach("twice")
    stage.within("twice", "ip", "-brief", "address")

    say(
        "4. The pods reach each other over net1",
        """
        Past the default network: both ends are macvlan interfaces.
        """,
    )
    stage.within("samplepod", "ping", "-c", "1", "-W", "2", "-I", "net1", stage.address("twice", "net1"))


def tell(stage: Stage) -> None:
    """What Kubernetes and people get to know of it."""
    say(
        "5. What Kubernetes is told",
        """
        The reconciler reads the ledger and publishes the pod's k8s.v1.cni.cncf.io/network-status annotation;
        here, into the status folder beside the manifests.
        """,
    )
    quote(stage.status("samplepod"))

    say(
        "6. The story of a pod",
        """
        Every event was in the ledger before its effect was on the node.
        """,
    )
    stage.timeline("samplepod")


def survive(stage: Stage) -> None:
    """The worker is killed, and the pod does not notice."""
    say(
        "7. kill -9 of the worker in the middle of an attach",
        """
        The pod 'unlucky' has a network with one plugin more: demo-slow, a script of this demo's own that does
        nothing and takes a second for it. Meanwhile the worker is killed. The entry point holds on: it comes back to
        the next worker with the same request. That one reads from the ledger what was begun, lets the orphaned plugin
        end, undoes the half-made interface and makes it again.
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
    """An interface is deleted behind Plumbline's back, and comes back."""
    say(
        "8. The node is held to the ledger",
        """
        Somebody deletes net1 in the running pod. The worker hears it from the kernel and says so in the ledger; the
        reconciler judges it, and asks the node to make the interface again, with the address and the MAC address
        that it had. verify compares database, ledger and node.
        """,
    )
    before = stage.link("samplepod", "net1")
    stage.within("samplepod", "ip", "link", "delete", "net1")
    stage.wait_for_link("samplepod", "net1", before)
    stage.within("samplepod", "ip", "-brief", "address")
    stage.timeline("samplepod")
    stage.verify()


def detach(stage: Stage) -> None:
    """All is taken away, and the ledger still knows."""
    say(
        "9. Detach",
        """
        DEL undoes what was recorded, in reverse order, with the configuration that ADD used: nobody needs the
        manifests any more, so they are deleted first.
        """,
    )
    for manifest in stage.manifests.glob("*.yaml"):
        manifest.unlink()
    for pod in ("samplepod", "twice", "unlucky"):
        stage.detach(pod)

    say(
        "10. Nothing is left",
        """
        No address is taken, no interface, no namespace; the ledger still knows what was.
        """,
    )
    stage.prove_nothing_left()
    stage.timeline("samplepod")

    say(
        "11. SIGTERM",
        """
        Everything stops in order.
        """,
    )
    exit_code = stage.stop()
    expect(exit_code == 0, f"plumbline up ended with exit code {exit_code}")
    print("   exit code 0")


def interrupted(number: int, _frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that everything is stopped in order."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Run the demo; return its exit code: 0 all as told, 1 it was not, 2 it can't be played here, 130 interrupted."""
    signal.signal(signal.SIGTERM, interrupted)
    try:
        ordinary_user = os.geteuid() != 0
        seclude()
        say(
            "The stage",
            f"""
            The demo has made itself a network namespace and a /run of its own{
                ", and a user namespace in which it is root" if ordinary_user else ""
            }. All that follows happens in there: the machine does not change, and nothing has to be tidied up.
            """,
        )
        with Stage() as stage:
            play(stage)
    except SeclusionError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left of the demo", file=sys.stderr)
        return 130
    except DemoFailedError as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1
    print("\n\033[1mThat was all of it, and it is all gone again.\033[0m")
    return 0


if __name__ == "__main__":
    sys.exit(main())
