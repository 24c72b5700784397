"""Renders and publishes the network-status of pods."""
