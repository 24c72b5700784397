"""Compute from events what is true: which sandboxes are attached, how, and which requests are still open.

``advance`` is the pure step for one sandbox; ``State`` keeps the sandboxes of many events and routes each to its own.
Nothing here raises on an event that makes no sense where it stands (unknown, duplicated, out of order): the state stays
as it is and the anomaly is recorded, because a reader at three in the morning needs the rest of the story.
"""

from __future__ import annotations

from events.fold.sandbox import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase, advance
from events.fold.state import MAX_ANOMALIES, Anomaly, Leaked, Pending, State, request_of

__all__ = [
    "MAX_ANOMALIES",
    "Anomaly",
    "Attachment",
    "AttachmentPhase",
    "Leaked",
    "Pending",
    "Sandbox",
    "SandboxKey",
    "SandboxPhase",
    "State",
    "advance",
    "request_of",
]
