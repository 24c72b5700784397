"""What every process needs: settings, logs, the metrics server, child processes, backoff, decoding."""
