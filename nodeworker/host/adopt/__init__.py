"""Take over from Multus: its pods go on running, and the ledger learns how they are attached.

What Multus, the runtime and host-local left on disk (``records``, ``read``) and what the kernel has (``places``) become
one ``SandboxAdopted`` for each sandbox (``plan``). From then on DEL, CHECK and repair find these pods as if Plumbline
had attached them. The files are read and never changed: with them a node can go back.
"""
