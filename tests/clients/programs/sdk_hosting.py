"""SageMaker SDK v3: model, configuration, endpoint, update, and a ModelBuilder's deploy. Prints what it saw."""

import json
import sys
from pathlib import Path

from sagemaker.core.helper import session_helper
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import ContainerDefinition, DesiredWeightAndCapacity, ProductionVariant
from sagemaker.serve.model_builder import ModelBuilder

archive, prefix = sys.argv[1:]
role = "arn:aws:iam::000000000000:role/llmtuner-execution"
session_helper.EP_LOGGER_POLL = 1  # seconds between the looks of a deploy, 30 as the SDK comes
image = "000000000000.dkr.ecr.us-east-1.amazonaws.com/own-vllm:1"


def ask(endpoint: Endpoint) -> dict:
    answer = endpoint.invoke(body=json.dumps({"inputs": "hi"}), content_type="application/json")
    return json.loads(answer.body.read())


told = {}
for number in ("1", "2"):
    name = f"{prefix}-{number}"
    container = ContainerDefinition(image=image, model_data_url=archive, environment={"NAME": number})
    Model.create(model_name=name, primary_container=container, execution_role_arn=role)
    variant = ProductionVariant(
        variant_name="AllTraffic", model_name=name, instance_type="ml.m5.xlarge", initial_instance_count=1
    )
    EndpointConfig.create(endpoint_config_name=name, production_variants=[variant])
endpoint = Endpoint.create(endpoint_name=prefix, endpoint_config_name=f"{prefix}-1")
endpoint.wait_for_status("InService", poll=1)
told["first"] = ask(endpoint)
endpoint.endpoint_config_name = f"{prefix}-2"
endpoint.update()
endpoint.wait_for_status("InService", poll=1)
told["updated"] = ask(endpoint)
wanted = DesiredWeightAndCapacity(variant_name="AllTraffic", desired_instance_count=2)
endpoint.update_weights_and_capacities(desired_weights_and_capacities=[wanted])
endpoint.wait_for_status("InService", poll=1)
endpoint.refresh()
told["instances"] = endpoint.production_variants[0].current_instance_count
told["listed"] = [item.endpoint_name for item in Endpoint.get_all(name_contains=prefix)]

builder = ModelBuilder(
    image_uri=image,
    s3_model_data_url=archive,
    role_arn=role,
    env_vars={"NAME": "built"},
    instance_type="ml.m5.xlarge",
)
model = builder.build(model_name=f"{prefix}-built")
deployed = builder.deploy(endpoint_name=f"{prefix}-built", initial_instance_count=1, instance_type="ml.m5.xlarge")
told["built"] = ask(deployed)

for item in (endpoint, deployed):
    item.delete()
for item in (endpoint, deployed):
    item.wait_for_delete(poll=1)
for name in (f"{prefix}-1", f"{prefix}-2", f"{prefix}-built"):
    EndpointConfig.get(name).delete()
    Model.get(name).delete()
told["left"] = [item.endpoint_name for item in Endpoint.get_all(name_contains=prefix)]
Path("told.json").write_text(json.dumps(told))
