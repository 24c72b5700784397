"""The bridge plugin: a veth pair whose other end is a port of a bridge on the node."""
