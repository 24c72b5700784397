"""Code generated from cri.proto."""
