"""Settings, logs, the metrics server, child processes, backoff and decoding: every process needs these."""
