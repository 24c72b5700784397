"""Hundreds of pod lifecycles, from a fixed seed, while worker and runtime fail: the soak of ``bench.leaks``."""

from __future__ import annotations

from pathlib import Path

from bench.leaks import quickened, soak


async def test_leaks_are_freed_and_live_sandboxes_are_not(tmp_path: Path) -> None:
    with quickened():
        world = await soak(tmp_path, seed=7, lives=300)
    assert world.missed > 20
    assert world.reclaimed > 20
    assert not world.left
    assert not world.false_frees
