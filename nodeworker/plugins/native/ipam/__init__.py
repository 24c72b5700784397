"""The IPAM plugins host-local and static; they use the same files as the executed ones."""
