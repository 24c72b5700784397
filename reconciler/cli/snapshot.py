"""``plumbline snapshot``, beside the rebuild that begins with one."""

from __future__ import annotations

from reconciler.cli.rebuild import snapshot_command as command

__all__ = ["command"]
