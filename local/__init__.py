"""The local cloud: LocalStack and a SageMaker emulator on this machine."""
