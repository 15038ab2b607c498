"""Where SageMaker puts things in the container and what it says about the machines.

Everything lies under /opt/ml, or under SAGEMAKER_BASE_DIR where a test or a laptop says so. It must stay light:
train.py imports it before torch.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folders:
    """The container's folders, as the SageMaker training contract names them."""

    base: Path

    @classmethod
    def from_environment(cls) -> "Folders":
        """/opt/ml unless SAGEMAKER_BASE_DIR names another place."""
        return cls(Path(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml"))

    def channel(self, name: str) -> Path:
        """Where the data of an input channel lies; it exists only when the job has that channel."""
        return self.base / "input" / "data" / name

    @property
    def model(self) -> Path:
        """What lies here at the end becomes model.tar.gz."""
        return self.base / "model"

    @property
    def output(self) -> Path:
        """What lies here at the end becomes output.tar.gz."""
        return self.base / "output" / "data"

    @property
    def failure(self) -> Path:
        """Read by SageMaker as the reason when the job ends with an exit code other than 0."""
        return self.base / "output" / "failure"

    @property
    def checkpoints(self) -> Path:
        """Copied to S3 while the job runs, and back before it starts again."""
        return self.base / "checkpoints"

    def hyperparameters(self) -> dict[str, str]:
        """The job's hyperparameters, all strings; empty when the file is missing."""
        return _read(self.base / "input" / "config" / "hyperparameters.json")

    def resources(self) -> dict[str, Any]:
        """The job's hosts: `current_host`, `hosts`, `network_interface_name`; empty on a bare machine."""
        return _read(self.base / "input" / "config" / "resourceconfig.json")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
