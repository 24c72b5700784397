"""Installs and removes the entry point and its configuration on the host.

The runtime never reads a half-written file, and a stopped process of ours removes nothing.
"""

from __future__ import annotations


class InstallError(Exception):
    """The node can't be installed or uninstalled as requested; the text is a sentence with reason and remedy."""


class NotYetError(InstallError):
    """It is not possible now, but may be possible soon without a change by the administrator."""
