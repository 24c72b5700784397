"""The kernel: network namespaces, sysctl, rtnetlink and nftables."""
