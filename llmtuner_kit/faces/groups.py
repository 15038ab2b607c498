"""Which fields of a form are folded away, and under which title; the few that everybody looks at stay at the top."""

from __future__ import annotations

SHARED = ("target", "region", "user_id", "bucket")
"""Fields of every step that say where it runs, and as whom."""
VPC = ("subnets", "security_groups")

# By step: title of the group -> its fields.
_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "prepare": {
        "Word the rows anew with templates": (
            "instruction_template", "input_template", "output_template", "system_template",
        ),
        "Lengths, splits and duplicates": (
            "max_length", "passage_tokens", "long_rows", "splits_from", "validation_share", "test_share", "stratify",
            "near_duplicates",
        ),
        "As a Processing job": ("compute", "instance_type", "max_runtime_minutes", "budget_usd", "role_arn"),
        "In a VPC": VPC,
    },
    "train": {
        "Adapter and batches": (
            "lora_r", "lora_alpha", "lora_dropout", "max_length", "batch_tokens", "max_steps", "seed",
            "evaluation_samples",
        ),
        "Machine, limits and access": (
            "instance_count", "spot", "max_runtime_minutes", "role_arn", "kms_key_id",
        ),
        "In a VPC": VPC,
    },
    "deploy": {
        "Autoscaling": ("min_instances", "max_instances", "invocations_per_instance"),
        "Access": ("role_arn", "kms_key_id"),
        "In a VPC": VPC,
    },
    "invoke": {"How answers are made": ("max_new_tokens", "temperature", "top_p", "stream")},
}  # fmt: skip


def of(step: str) -> dict[str, tuple[str, ...]]:
    """Title -> fields of the groups of a step, in the order they are shown."""
    return _GROUPS.get(step, {}) | {"Where it runs, and as whom": SHARED}
