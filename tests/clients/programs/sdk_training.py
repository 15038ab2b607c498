"""SageMaker SDK v3: training with a source folder, requirements and torchrun; a failure; a stop. Prints what it saw."""

import json
import logging
import sys
from pathlib import Path

from sagemaker.core.resources import TrainingJob
from sagemaker.core.utils.exceptions import FailedStatusError
from sagemaker.train.configs import Compute, InputData, SourceCode, StoppingCondition
from sagemaker.train.distributed import Torchrun
from sagemaker.train.model_trainer import ModelTrainer

source, data, prefix = sys.argv[1:]
logging.basicConfig(level=logging.INFO, stream=sys.stderr)  # where the SDK shows the job's log
image = "000000000000.dkr.ecr.us-east-1.amazonaws.com/own-training:1"


def trainer(name: str, code: SourceCode, **more) -> ModelTrainer:
    compute = Compute(instance_type="ml.m5.xlarge", instance_count=1)
    return ModelTrainer(
        training_image=image, source_code=code, compute=compute, base_job_name=f"{prefix}-{name}", **more
    )


tuned = trainer(
    "tuned",
    SourceCode(source_dir=source, entry_script="train.py", requirements="requirements.txt"),
    distributed=Torchrun(process_count_per_node=2),
    hyperparameters={"epochs": 2, "note": "a b"},
    stopping_condition=StoppingCondition(max_runtime_in_seconds=600),
)
tuned.train(input_data_config=[InputData(channel_name="train", data_source=data)], wait=True, logs=True)
job = tuned._latest_training_job

broken = trainer("broken", SourceCode(command="echo out of luck > /opt/ml/output/failure; exit 3"))
broken.train(wait=False)
endless = trainer("endless", SourceCode(command="sleep 600"))
endless.train(wait=False)
stopped = endless._latest_training_job
stopped.stop()
try:
    broken._latest_training_job.wait(poll=1)
    failure = ""
except FailedStatusError as error:
    failure = str(error)
stopped.wait(poll=1, logs=False)

mine = list(TrainingJob.get_all(name_contains=prefix))
job.refresh()
told = {
    "status": job.training_job_status,
    "artifacts": job.model_artifacts.s3_model_artifacts,
    "hyperparameters": job.hyper_parameters,
    "failure": failure,
    "stopped": stopped.training_job_status,
    "all": sorted(item.training_job_status for item in mine),
}
for item in mine:
    item.delete()
told["left"] = len(list(TrainingJob.get_all(name_contains=prefix)))
Path("told.json").write_text(json.dumps(told))
