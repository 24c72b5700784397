"""Looks up the devices that the kubelet allocated to a pod."""
