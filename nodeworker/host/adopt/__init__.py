"""Adopts the pods of Multus: they keep running, and the ledger records how they are attached.

The files that Multus, the runtime and host-local left (``records``, ``read``) and the state of the kernel
(``namespaces``) become one ``SandboxAdopted`` for each sandbox (``plan``). From then on DEL, CHECK and repair treat
these pods as attached by Plumbline. The files are only read: a node can go back to Multus.
"""
