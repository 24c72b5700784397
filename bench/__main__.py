"""Run every benchmark, one after another."""

from __future__ import annotations

from bench import attach, entry_point, fold

entry_point.main([])
attach.main([])
fold.main([])
