"""rtnetlink: one socket in one namespace, and the messages for links, addresses, routes and rules."""
