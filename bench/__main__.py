"""Run every benchmark, one after another."""

from __future__ import annotations

from bench import attach, cluster_memory, entry_point, fold, kubernetes

entry_point.main([])
attach.main([])
fold.main([])
cluster_memory.main([])
kubernetes.main([])
