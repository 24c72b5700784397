"""Hears changes of links, addresses, routes and filter rules, and reports drift."""
