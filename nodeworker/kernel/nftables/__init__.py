"""nftables: packet filter rules, written and read in transactions."""
