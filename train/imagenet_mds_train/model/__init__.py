"""The network, what Composer sees of it, and the one place that builds it."""
