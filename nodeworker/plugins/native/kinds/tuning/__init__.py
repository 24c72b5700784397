"""The tuning plugin: changes a link that an earlier plugin made, and sysctls of its namespace."""
