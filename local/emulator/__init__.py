"""SageMaker on this machine: the real wire protocol, real training jobs, real endpoints."""
