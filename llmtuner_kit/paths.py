"""Names and S3 keys, pure. Everything that becomes part of a key or an ARN is validated here, once.

s3://{bucket}/users/{user_id}/uploads/{dataset}/...
                              datasets/{dataset}/{version}/...
                              models/{job_name}/output/model.tar.gz
                              checkpoints/{job_name}/...            of a job and its next tries
                              runs/{run_name}/run.json
                              code/{sha}/...                        train_src as it was submitted
                              base-models/{model_id}/{revision}/... base models staged for a job
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmtuner_kit.errors import SettingsError

# SageMaker's own rule for job, model and endpoint names: 1 to 63 characters, hyphens only inside.
NAME_PATTERN = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_LABEL_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BUCKET_PATTERN = re.compile(r"(?!xn--|sthree-)(?!.*(-s3alias|--ol-s3)$)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


def check_name(name: str, field: str) -> str:
    """Return `name` when SageMaker would take it as a resource name, else raise SettingsError."""
    if not NAME_PATTERN.fullmatch(name) or len(name) > 63:
        raise SettingsError(
            f"{field} is {name!r}, which SageMaker does not take as a name.",
            valid="1 to 63 letters, digits and hyphens, no hyphen at either end",
            fix=f"set {field} to {slug(name) or 'a name'!r}",
        )
    return name


def check_label(label: str, field: str) -> str:
    """Return `label` when it is safe as one segment of an S3 key and of an IAM policy, else raise SettingsError."""
    if not _LABEL_PATTERN.fullmatch(label):
        raise SettingsError(
            f"{field} is {label!r}, which cannot be part of an S3 prefix.",
            valid="1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
            fix=f"set {field} to {slug(label) or 'a name'!r}",
        )
    return label


def check_bucket(bucket: str) -> str:
    """Return `bucket` when S3 would take it (and TLS with virtual hosts works: no dots), else raise SettingsError."""
    if not _BUCKET_PATTERN.fullmatch(bucket):
        raise SettingsError(
            f"bucket is {bucket!r}, which S3 does not take as a bucket name here.",
            valid="3 to 63 lower-case letters, digits and hyphens, starting and ending with a letter or digit",
            fix="leave bucket empty to use the kit's own bucket, or name an existing one",
        )
    return bucket


def slug(text: str, limit: int = 63) -> str:
    """The nearest valid label to any text; empty when nothing of it can be kept."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-")


def fit_name(*parts: str, limit: int = 63) -> str:
    """Join parts with hyphens into a valid name; the first part is shortened when the whole is too long."""
    tail = "-".join(parts[1:])
    head = parts[0][: max(1, limit - len(tail) - 1)].rstrip("-") if tail else parts[0][:limit]
    return f"{head}-{tail}" if tail else head


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> (bucket, key); the key has no leading slash."""
    if not uri.startswith("s3://"):
        raise SettingsError(f"{uri!r} is not an S3 URI.", valid="s3://bucket/key")
    bucket, _, key = uri[5:].partition("/")
    return bucket, key


@dataclass(frozen=True)
class UserPaths:
    """The part of a bucket that belongs to one user. All methods return keys or prefixes without the bucket."""

    bucket: str
    user_id: str

    @property
    def root(self) -> str:
        """`users/{user_id}/`: nothing of this user lies outside of it."""
        return f"users/{self.user_id}/"

    def uri(self, key: str) -> str:
        """The s3:// URI of a key of this bucket."""
        return f"s3://{self.bucket}/{key}"

    def owns(self, uri: str) -> bool:
        """Whether an S3 URI lies in this user's prefix."""
        bucket, key = split_uri(uri)
        return bucket == self.bucket and key.startswith(self.root) and ".." not in key.split("/")

    def uploads(self, dataset: str) -> str:
        return f"{self.root}uploads/{dataset}/"

    def dataset(self, dataset: str, version: str) -> str:
        return f"{self.root}datasets/{dataset}/{version}/"

    def datasets(self, dataset: str) -> str:
        return f"{self.root}datasets/{dataset}/"

    @property
    def models(self) -> str:
        """S3OutputPath of every training job; SageMaker adds `/{job_name}/output/model.tar.gz`."""
        return f"{self.root}models"

    def model_archive(self, job_name: str) -> str:
        return f"{self.models}/{job_name}/output/model.tar.gz"

    def output_archive(self, job_name: str) -> str:
        return f"{self.models}/{job_name}/output/output.tar.gz"

    def checkpoints(self, job_name: str) -> str:
        return f"{self.root}checkpoints/{job_name}/"

    @property
    def runs(self) -> str:
        return f"{self.root}runs/"

    def run_record(self, run_name: str) -> str:
        return f"{self.runs}{run_name}/run.json"

    def code(self, sha: str) -> str:
        return f"{self.root}code/{sha}/"

    def base_model(self, model_id: str, revision: str) -> str:
        return f"{self.root}base-models/{model_id}/{revision}/"
