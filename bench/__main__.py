"""Run every benchmark, one after another."""

from __future__ import annotations

from bench import attach, cluster, cluster_memory, entry_point, fold, kubernetes, projection

entry_point.main([])
attach.main([])
fold.main([])
projection.main([])
cluster.main([])
cluster_memory.main([])
kubernetes.main([])
