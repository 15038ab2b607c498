"""What the settings of all steps are made of: kinds of fields, and the settings that steps share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llmtuner_kit import catalog, model_names, paths

Target = Literal["local", "local-docker", "aws"]


def _label(value: str, info: ValidationInfo) -> str:
    return paths.check_label(value, str(info.field_name)) if value else value


def _model(value: str) -> str:
    return model_names.parse(value).text if value else value


def _instance(value: str) -> str:
    return catalog.instance(value).instance_type if value else value


# Empty stands for what the field's description says. What a schema names as `choices` is offered (`values_of` below).
Label = Annotated[str, AfterValidator(_label)]
Model = Annotated[str, AfterValidator(_model), Field(json_schema_extra={"choices": "models"})]
Instance = Annotated[str, AfterValidator(_instance), Field(json_schema_extra={"choices": "instances"})]
Text = Annotated[str, Field(json_schema_extra={"multiline": True})]


class RunSettings(BaseModel):
    """What all nine notebooks share: where to work, as whom, on which run."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    target: Target = Field("local", description="where jobs run: this machine, containers on this machine, or AWS")
    region: str = Field("", description="AWS region; empty: the one your AWS configuration names")
    user_id: Label = Field("", description="whose prefix of the bucket to use; empty: your login name")
    bucket: str = Field("", description="name of the S3 bucket; empty: the kit's own in this account and region")
    run_name: Label = Field("", description="name of this run; empty: the newest run")

    @field_validator("region")
    @classmethod
    def _region(cls, value: str) -> str:
        if value and not re.fullmatch(r"[a-z]+(-[a-z]+)+-\d+", value):
            raise ValueError(f"{value!r} is no AWS region; valid: such as us-east-1 or eu-central-1")
        return value

    @field_validator("bucket")
    @classmethod
    def _bucket(cls, value: str) -> str:
        return paths.check_bucket(value) if value else value


def _ids(value: str, info: ValidationInfo) -> str:
    """Ids of EC2 separated by commas, without blanks."""
    kind = "subnet" if info.field_name == "subnets" else "sg"
    found = [item.strip() for item in value.split(",") if item.strip()]
    for item in found:
        if not re.fullmatch(rf"{kind}-[0-9a-f]{{8,17}}", item):
            raise ValueError(f"{item!r} is no id of EC2; valid: such as {kind}-0123456789abcdef0, several with commas")
    return ",".join(found)


class NetworkSettings(RunSettings):
    """What steps share that start something in SageMaker: the VPC it runs in."""

    subnets: Annotated[str, AfterValidator(_ids)] = Field(
        "", description="subnets of your VPC to run in, ids with commas between; empty: SageMaker's own network"
    )
    security_groups: Annotated[str, AfterValidator(_ids)] = Field(
        "", description="security groups to run with, ids with commas between; empty: none, as without subnets"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("subnets and security_groups belong together: set both, or neither")
        return self

    @property
    def vpc_config(self) -> dict[str, Any]:
        """The member VpcConfig of a request; empty outside of a VPC."""
        if not self.subnets:
            return {}
        groups, subnets = self.security_groups.split(","), self.subnets.split(",")
        return {"VpcConfig": {"SecurityGroupIds": groups, "Subnets": subnets}}
