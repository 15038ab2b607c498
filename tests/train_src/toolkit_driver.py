"""Runs an archive in the handler service of sagemaker-huggingface-inference-toolkit, as the inference image does.

    python toolkit_driver.py MODEL_FOLDER < one JSON body a line > one JSON reply a line

The toolkit's model server (Java) is left out; everything behind it is the toolkit's own.
"""

import json
import os
import sys

import transformers.file_utils

# The toolkit on PyPI asks transformers for a function that version 5 no longer has, as it no longer has TensorFlow.
transformers.file_utils.is_tf_available = lambda: False

from mms.context import Context, RequestProcessor  # noqa: E402
from mms.metrics.metrics_store import MetricsStore  # noqa: E402
from mms.service import PredictionException  # noqa: E402
from sagemaker_huggingface_inference_toolkit.handler_service import HuggingFaceHandlerService  # noqa: E402


def main(folder: str) -> None:
    """Answer each line of standard input."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed while loading is no reply
    service = HuggingFaceHandlerService()
    context = Context("model", folder, {}, 1, -1, "1.0")
    context.request_processor = [RequestProcessor({"Content-Type": "application/json", "Accept": "application/json"})]
    context.metrics = MetricsStore(["request"], "model")
    service.initialize(context)
    for line in sys.stdin:
        try:
            reply = {"status": 200, "body": service.handle([{"body": line.encode()}], context)[0]}
        except PredictionException as error:
            reply = {"status": error.error_code, "body": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
