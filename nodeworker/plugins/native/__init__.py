"""The common interface plugins, inside the worker: an execution costs two processes and ten times the kernel."""
