"""Native plugins: the worker's own code for common types, without the two processes that executing one costs."""
