"""rtnetlink for whoever makes, reads or repairs interfaces: one socket in one namespace, and messages for it."""
