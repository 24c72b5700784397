"""Evidence about what is held: files, addresses, namespaces, and what the container runtime lists."""
