"""Subscribes to kernel events of links, addresses, routes and filter rules, and reports drift."""
