"""Pure planning: what the runtime, the node, the pod and the networks say becomes the plan of one sandbox.

The way through it: ``netconf`` reads what the runtime gave us, ``wanted`` says which networks that means for a pod,
``nodeworker.planning.cluster.gather`` fetches them, ``plan`` renders each to the bytes its plugins will be handed. No
module here does I/O, reads a clock or keeps state, so the plan in the ledger can be recomputed, and argued with,
anywhere.
"""
