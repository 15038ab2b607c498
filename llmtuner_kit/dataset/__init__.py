"""Files -> instruction data: readers, conversion, checks, duplicates, splits, token report."""

from llmtuner_kit.dataset.preparation import Prepared, prepare
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.dataset.tokens import MaskedRow

__all__ = ["MaskedRow", "Prepared", "Report", "prepare"]
