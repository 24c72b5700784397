"""Separate processes that change the host: ``install`` the entry point, ``adopt`` pods from Multus."""
