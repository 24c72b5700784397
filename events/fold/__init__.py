"""Compute from events what is true: which sandboxes are attached, how, and which requests are pending.

``advance`` is the pure step of one sandbox. ``State`` has all sandboxes and routes each event to its own.
An event that does not fit (unknown, duplicate, out of order) raises nothing: the state only records an anomaly, so
that the fold continues with the later events.
"""

from __future__ import annotations

from events.fold.sandbox import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.fold.state import MAX_ANOMALIES, Anomaly, Leaked, Pending, State, request_of
from events.fold.steps import advance

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
