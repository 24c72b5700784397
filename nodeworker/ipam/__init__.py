"""The common IPAM plugins, inside the worker; what they keep on disk is what the executed ones keep there."""
