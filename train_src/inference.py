"""The handler of the Hugging Face inference image: the same archive, the same bodies, the same answers as serve.py.

The image finds this file as code/inference.py of the archive and calls `model_fn` once and `transform_fn` for each
request. It has no token streaming, so `"stream": true` is refused.
"""

import json
from pathlib import Path
from typing import Any

import parity
import protocol
from generation import Generator, RequestError


def model_fn(model_dir: str, _context: Any = None) -> Generator:
    """Load and check the archive."""
    generator = Generator(Path(model_dir))
    if not generator.is_base:
        parity.check(Path(model_dir), generator)
    return generator


def transform_fn(
    model: Generator, input_data: str | bytes, _content_type: str, _accept: str, _context: Any = None
) -> str:
    """One request: a JSON body in, a JSON body out. Raises RequestError, which the image reports as a 400."""
    request = protocol.parse(protocol.parse_json(input_data))
    if request.stream:
        raise RequestError("this container cannot stream: set stream to false")
    answers = [
        list(model.stream(ids, request.sampling, request.model)) for ids in protocol.encode_prompts(model, request)
    ]
    return json.dumps(protocol.reply(request, answers), ensure_ascii=False)
