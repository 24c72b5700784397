"""Which attachments of a sandbox may have resources, by the phases of both."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import NodeName
from tests.support.stories.events import container
from tests.support.stories.values import ETH0, planned

P, A, F, D, X = (
    AttachmentPhase.PLANNED,
    AttachmentPhase.ATTACHED,
    AttachmentPhase.ATTACH_FAILED,
    AttachmentPhase.DETACHED,
    AttachmentPhase.DETACH_FAILED,
)


def sandbox_of(phase: SandboxPhase, *attachments: AttachmentPhase) -> Sandbox:
    made = tuple(Attachment(plan=planned(i, network=f"shop/{i}"), phase=phase) for i, phase in enumerate(attachments))
    return Sandbox(key=SandboxKey(container(1), ETH0), node=NodeName("n"), phase=phase, attachments=made)


@pytest.mark.parametrize(
    ("phases", "count"),
    [
        ((), 0),
        ((P, P), 2),  # the ledger may not have the effect yet
        ((A, P, P), 3),
        ((A, A), 2),
        ((P, A, P), 3),  # the event of the first one comes later
        ((F, P, P), 1),
        ((A, F, P), 2),
        ((P, F, P), 2),
        ((A, D, P), 2),  # being undone
        ((D, D, P), 2),
        ((D, X, D), 3),
        ((A, X, P), 2),
        ((X, P), 1),
    ],
)
def test_attempted_returns_attachments_that_may_have_resources(phases: Sequence[AttachmentPhase], count: int) -> None:
    sandbox = sandbox_of(SandboxPhase.PLANNED, *phases)
    assert sandbox.attempted() == sandbox.attachments[:count]


@pytest.mark.parametrize(
    ("phase", "attachments", "holds"),
    [
        (SandboxPhase.REQUESTED, (), True),
        (SandboxPhase.PLANNED, (P, P), True),
        (SandboxPhase.ATTACHED, (A, A), True),
        (SandboxPhase.DETACHING, (A, D), True),
        (SandboxPhase.DETACH_FAILED, (D, X), True),
        (SandboxPhase.DETACH_FAILED, (D, D), False),
        (SandboxPhase.DETACH_FAILED, (), False),
        (SandboxPhase.DETACHED, (A,), False),  # the outcome decides
        (SandboxPhase.ATTACH_FAILED, (), False),
        (SandboxPhase.ATTACH_FAILED, (D, D, P, P), False),
        (SandboxPhase.ATTACH_FAILED, (D, X, P), True),
        (SandboxPhase.ATTACH_FAILED, (A, D), True),
        (SandboxPhase.ATTACH_FAILED, (P, P), True),
    ],
)
def test_holds_resources_by_phase(phase: SandboxPhase, attachments: tuple[AttachmentPhase, ...], holds: bool) -> None:
    assert sandbox_of(phase, *attachments).holds_resources is holds
