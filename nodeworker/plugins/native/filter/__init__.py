"""Packet filter rules of native plugins: masquerading and MAC filtering."""
