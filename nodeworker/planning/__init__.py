"""Pod, networks and devices become a plan."""
