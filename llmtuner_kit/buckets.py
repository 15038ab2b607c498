"""The bucket: found, or created closed.

Encryption at rest on every object, all public access blocked, TLS only, ACLs off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmtuner_kit.aws import Aws, ClientError, is_error
from llmtuner_kit.errors import AccessError, NotFoundError, NotReadyError, SettingsError


def tls_only_policy(bucket: str, partition: str = "aws") -> dict[str, Any]:
    """The bucket policy that refuses every request without TLS."""
    arn = f"arn:{partition}:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TlsOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }


def ensure_bucket(aws: Aws, bucket: str, *, may_create: bool, prefix: str = "") -> None:
    """Make sure that the bucket is there, in this region and ours.

    A user of the kit may list nothing but the own `prefix`: where the whole bucket is denied, that is asked for.

    Raises NotFoundError when it is missing and may not be created, AccessError when it belongs to another account,
    SettingsError when it is in another region.
    """
    client = aws.client("s3")
    try:
        found = client.head_bucket(Bucket=bucket, ExpectedBucketOwner=aws.account_id)
        _require_region(aws, bucket, found)
    except ClientError as error:
        if is_error(error, "404", "NoSuchBucket"):
            if not may_create:
                raise NotFoundError(
                    f"There is no bucket {bucket!r} in account {aws.account_id}.",
                    fix="leave bucket empty to use the kit's own bucket, or create it first",
                ) from None
            _create(aws, bucket)
            return
        if is_error(error, "403"):
            if prefix and _may_list(aws, bucket, prefix):
                _require_region(aws, bucket, error.response)
                return
            raise AccessError(
                f"Bucket {bucket!r} belongs to another account, or you may not see it.",
                valid=f"a bucket of account {aws.account_id}",
                fix="set bucket to one of yours"
                if may_create  # somebody else was faster with the kit's own name
                else "leave bucket empty to use the kit's own bucket",
            ) from None
        raise


def _require_region(aws: Aws, bucket: str, answer: Mapping[str, Any]) -> None:
    """S3 says with every answer about a bucket, a refusal too, where it is."""
    where = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region", aws.region)
    if where != aws.region:
        raise SettingsError(
            f"Bucket {bucket!r} is in {where}, and jobs in {aws.region} read buckets of their own region only.",
            fix=f"set region to {where!r}, or use a bucket in {aws.region}",
        )


def _may_list(aws: Aws, bucket: str, prefix: str) -> bool:
    try:
        aws.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1, ExpectedBucketOwner=aws.account_id)
    except AccessError:
        return False
    return True


def _create(aws: Aws, bucket: str) -> None:
    client = aws.client("s3")
    where = {} if aws.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": aws.region}}
    try:
        client.create_bucket(Bucket=bucket, ObjectOwnership="BucketOwnerEnforced", **where)
    except ClientError as error:
        if is_error(error, "OperationAborted"):
            raise NotReadyError(
                f"S3 is not done yet with bucket {bucket!r}, which was created or deleted a moment ago.",
                fix="wait a minute and run the cell again",
            ) from None
        # Two notebooks may start at the same time: the other one made it.
        if not is_error(error, "BucketAlreadyOwnedByYou"):
            raise
    harden(aws, bucket)


def harden(aws: Aws, bucket: str) -> None:
    """Block public access, encrypt by default, allow TLS only. Running it twice changes nothing."""
    client = aws.client("s3")
    client.put_public_access_block(
        Bucket=bucket,
        PublicAccessBlockConfiguration={
            "BlockPublicAcls": True,
            "IgnorePublicAcls": True,
            "BlockPublicPolicy": True,
            "RestrictPublicBuckets": True,
        },
    )
    client.put_bucket_encryption(
        Bucket=bucket,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": True}]
        },
    )
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(tls_only_policy(bucket, aws.partition)))
