"""Plans one sandbox, as pure functions of the runtime's request, the node's configuration, the pod and its networks.

``netconf`` parses the runtime's configuration, ``networks`` lists the networks of the pod, ``planning.cluster.gather``
fetches their definitions, and ``plan`` renders each to the exact bytes for its plugins. No module here does I/O, reads
a clock or keeps state, so the plan in the ledger can be computed again anywhere.
"""
