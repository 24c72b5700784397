"""The IPAM plugins host-local and static; they keep the same files as the executed ones."""
