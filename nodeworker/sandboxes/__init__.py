"""One serial queue per container: attach, detach, GC, and commands from the hub."""
