"""The entry point and its configuration on the host: put there, kept there, and taken off again.

What the runtime reads is never half there, and never goes away because one of our processes does.
"""

from __future__ import annotations


class InstallError(Exception):
    """The node can't be left as it was asked for; the text is one sentence that says why and what to do."""


class NotYetError(InstallError):
    """It can't be now, and may be soon without anybody's doing."""
