"""Ways to run a container: as a process with a /opt/ml of its own, or in Docker."""
