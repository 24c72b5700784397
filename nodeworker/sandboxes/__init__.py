"""One serial queue per sandbox: attach, detach, GC, and commands from the hub."""
