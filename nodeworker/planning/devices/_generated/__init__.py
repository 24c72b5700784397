"""Code generated from podresources.proto."""
