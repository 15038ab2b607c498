"""AWS CLI commands one after the other in one process, each as `aws` runs it: it imports for most of a second.

A line in: the arguments as a JSON list. A line out: [exit code, stdout, stderr].
"""

import contextlib
import io
import json
import sys

from awscli.clidriver import create_clidriver


def run(arguments: list[str]) -> tuple[int, str, str]:
    """One command with streams of its own."""
    told, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors):
        code = create_clidriver().main(arguments)
    return code, *(stream.buffer.getvalue().decode() for stream in (told, errors))


answers = sys.stdout
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), file=answers, flush=True)
