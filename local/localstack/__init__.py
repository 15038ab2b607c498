"""LocalStack in host mode, in an environment of its own."""
