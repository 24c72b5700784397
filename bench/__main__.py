"""Run every benchmark, one after another."""

from __future__ import annotations

from bench import (
    attach,
    breakdown,
    cluster,
    cluster_memory,
    drift,
    entry_point,
    fold,
    kubernetes,
    leaks,
    ledger_client,
    memory,
    projection,
)

entry_point.main([])
attach.main([])
breakdown.main([])
memory.main([])
fold.main([])
projection.main([])
cluster.main([])
cluster_memory.main([])
kubernetes.main([])
leaks.main([])
ledger_client.main([])
drift.main([])
