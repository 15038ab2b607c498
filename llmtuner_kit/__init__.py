"""llmtuner_kit: from your own files to a fine-tuned language model at a SageMaker endpoint."""

from importlib.metadata import version

__version__ = version("llmtuner-kit")
