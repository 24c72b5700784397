"""The CNI specification as values: versions, results, configurations, CNI_ARGS, names."""
