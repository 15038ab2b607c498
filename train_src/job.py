"""One training job from a checked data set to a finished archive."""

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import attention
import parity
from base import Base, fetch_weights
from conversations import prompt_messages, row_messages
from data import Channel, read_rows
from encoding import Encoder
from evaluation import Interrupted, Score, answers, score
from failures import TrainingError
from folders import Folders
from group import Group
from hyperparameters import Hyperparameters
from memory import GB, Plan
from metrics import perplexity, report
from model import TunedModel, load_model, load_sharded, load_tokenizer, plan_memory
from sharding import whole
from stopping import Stop
from structure import check_structure
from trainer import Trainer

COMPARED_ROWS = 16  # rows whose ids are compared with transformers' own
PROBES = 4
BASE_RESULT = "base-evaluation.json"


@dataclass
class Job:
    """Everything a job needs, checked and encoded."""

    folders: Folders
    settings: Hyperparameters
    base: Base
    encoder: Encoder
    channels: dict[str, Channel]
    stop: Stop

    def run(self) -> None:
        """Load, evaluate the base, train, evaluate, write the archive."""
        transformers.utils.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        tokenizer = load_tokenizer(self.base)
        self._check_tokenizer(tokenizer)
        check_structure(self.base, self.settings.target_modules)
        group = Group()
        plan = plan_memory(self.base, self.settings, self.channels["train"], group.size)
        fetch_weights(self.base, self.settings.model_revision)
        load = load_sharded if plan.sharded else load_model
        model = load(self.base, self.settings, recompute=plan.gradient_checkpointing)
        print(f"loaded: {_description(model)}; {_described(plan)}", flush=True)
        test = self.channels.get("test")
        trainer = Trainer(
            model,
            self.channels["train"],
            self.channels.get("validation"),
            self.settings,
            self.folders,
            micro_batch_tokens=plan.micro_batch_tokens,
            group=group,
            stop=self.stop,
        )
        base_result = None
        with contextlib.suppress(Interrupted):
            base_result = self._base_result(model, tokenizer, test, trainer) if test else None
        if group.leads:
            print(f"training for {trainer.total_steps} steps", flush=True)
        finished = trainer.run()
        if not trainer.progress.step:
            print("stopped before the first step: there is nothing to save", flush=True)
            group.close()
            return
        metrics: dict[str, Any] = {
            "train_loss": trainer.progress.last_loss,
            "steps": trainer.progress.step,
            "tokens": trainer.progress.tokens,
            "training_seconds": round(trainer.progress.seconds, 1),
            "finished": finished,
        }
        evaluation = None
        if test and base_result and finished:
            with contextlib.suppress(Interrupted):
                evaluation = self._evaluation(model, tokenizer, test, base_result, trainer)
        if evaluation:
            metrics |= {"base": evaluation["base"], "tuned": evaluation["tuned"], "test_rows": evaluation["rows"]}
        probes, recorded = self._probes(), None
        if model.sharded:
            # Whole models answer and are written below; what the spread one answers is recorded by all together.
            recorded = self._recorded(model, tokenizer, probes)
            model = self._gathered(model, leads=group.leads)
        if group.leads:
            self._write_archive(model, tokenizer, metrics, evaluation, probes, recorded)
        group.close()

    def _check_tokenizer(self, tokenizer: Any) -> None:
        """The archive ships transformers' tokenizer: it must give the ids that were trained on."""
        if self.base.family == "seq2seq":
            return
        for row in read_rows(self.folders.channel("train"))[0][:COMPARED_ROWS]:
            messages = row_messages(row)
            ours = next(self.encoder.encode([row]))
            template = self.encoder.chat_template
            theirs = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True)["input_ids"]
            if getattr(ours, "ids", None) != theirs:
                raise TrainingError(
                    f"the tokenizer files of {self.base.model_id} contradict each other: tokenizer.json gives other "
                    "ids than transformers; save the tokenizer again with save_pretrained"
                )

    def _base_result(self, model: TunedModel, tokenizer: Any, test: Channel, trainer: Trainer) -> dict[str, Any]:
        """The base model on the test rows. Kept beside the checkpoints: a resumed full fine-tune has no base left."""
        path = self.folders.checkpoints / BASE_RESULT
        group = trainer.group
        known = json.loads(path.read_text(encoding="utf-8")) if group.leads and path.is_file() else None
        if known := group.from_leader(known):
            return known
        started = time.monotonic()
        if group.leads and test.rows:
            print(f"evaluating the base model on {len(test.rows)} test rows", flush=True)
        with model.base():
            result = score(model, test.rows, trainer.micro_batch_tokens, group, self.stop)
            if not math.isfinite(result.loss):
                raise TrainingError(
                    f"the loss of {self.base.model_id} is {result.loss} before any training: its weights are damaged, or "
                    "too large for this precision; fetch the model again, or set precision fp32"
                )
            texts = answers(model, tokenizer, self.encoder, self._prompts(), self._stop_ids(tokenizer))
        found = {"losses": result.losses, "correct": result.correct, "labels": result.labels, "answers": texts}
        if not group.leads:
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.rename(path)
        report(base_loss=result.loss, base_perplexity=perplexity(result.loss))
        print(f"base model evaluated in {time.monotonic() - started:.1f} s", flush=True)
        return found

    def _evaluation(
        self, model: TunedModel, tokenizer: Any, test: Channel, base_result: dict[str, Any], trainer: Trainer
    ) -> dict[str, Any]:
        """Base against tuned on the test rows; written to the job's output folder."""
        tuned = score(model, test.rows, trainer.micro_batch_tokens, trainer.group, self.stop)
        texts = answers(model, tokenizer, self.encoder, self._prompts(), self._stop_ids(tokenizer))
        base = Score(base_result["losses"], base_result["correct"], base_result["labels"])
        rows = read_rows(self.folders.channel("test"))[0]
        found = {
            "rows": len(test.rows),
            "tokens": sum(tuned.labels),
            "base": base.summary(),
            "tuned": tuned.summary(),
            "per_row": [
                {"tokens": labels, "base_loss": before / max(labels, 1), "tuned_loss": after / max(labels, 1)}
                for labels, before, after in zip(tuned.labels, base.losses, tuned.losses, strict=True)
            ],
            "samples": [
                {
                    "prompt": "\n\n".join(message["content"] for message in prompt),
                    "reference": row_messages(row)[len(prompt)]["content"],
                    "base": before,
                    "tuned": after,
                }
                for prompt, row, before, after in zip(
                    self._prompts(), rows, base_result["answers"], texts, strict=False
                )
            ],
        }
        if not trainer.group.leads:
            return found
        report(
            base_loss=base.loss,
            base_perplexity=perplexity(base.loss),
            test_loss=tuned.loss,
            perplexity=perplexity(tuned.loss),
            test_token_accuracy=tuned.token_accuracy,
        )
        self.folders.output.mkdir(parents=True, exist_ok=True)
        path = self.folders.output / "evaluation.json"
        path.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
        return found

    def _prompts(self) -> list[list[dict[str, str]]]:
        """The first test rows without their answers."""
        rows = read_rows(self.folders.channel("test"))[0][: self.settings.evaluation_samples]
        return [prompt_messages(row) for row in rows]

    def _probes(self) -> list[list[dict[str, str]]]:
        """Prompts whose answers must be the same after the archive is loaded again."""
        rows = read_rows(self.folders.channel("test" if "test" in self.channels else "train"))[0][:PROBES]
        return [prompt_messages(row) for row in rows]

    def _stop_ids(self, tokenizer: Any) -> set[int]:
        """Every token that ends an answer: the tokenizer's own, and what the template puts after one."""
        return {*self.channels["train"].stop_ids, tokenizer.eos_token_id} - {None}

    def _recorded(self, model: TunedModel, tokenizer: Any, probes: list[list[dict[str, str]]]) -> list[dict[str, Any]]:
        prompts = [(messages, self.encoder.prompt_ids(messages)) for messages in probes]
        with model.generating() as network:
            return parity.record(network, self.base.family, prompts, sorted(self._stop_ids(tokenizer)))

    def _gathered(self, model: TunedModel, *, leads: bool) -> TunedModel:
        """The trained model in one piece in the leader's memory. All processes must call it together."""
        cpu = torch.device("cpu")
        fresh = load_model(self.base, self.settings, device=cpu, computed_on=model.device) if leads else None
        targets = fresh.named_parameters() if fresh else {}
        with torch.no_grad():
            for name, parameter in model.named_parameters().items():
                weight = whole(parameter)
                if fresh:
                    targets[name].copy_(weight)
        return fresh or model

    def _write_archive(
        self,
        model: TunedModel,
        tokenizer: Any,
        metrics: dict[str, Any],
        evaluation: dict[str, Any] | None,
        probes: list[list[dict[str, str]]],
        recorded: list[dict[str, Any]] | None,
    ) -> None:
        from archive import write_archive

        started = time.monotonic()
        attention.set_documents(())
        tokenizer.chat_template = self.encoder.chat_template if self.base.family == "causal" else None
        manifest = write_archive(
            self.folders.model,
            model=model.module,
            tokenizer=tokenizer,
            base_info={
                "model_id": self.base.model_id,
                "revision": self.base.revision,
                "family": self.base.family,
                "path": str(self.base.folder),
            },
            hyperparameters=self.settings.as_dict(),
            metrics=metrics,
            dataset_sha256=self.settings.dataset_sha256,
            stop_ids=sorted(self._stop_ids(tokenizer)),
            probes=probes,
            recorded=recorded,
            evaluation=evaluation,
        )
        # Beside the archive, where it can be read without fetching the weights.
        self.folders.output.mkdir(parents=True, exist_ok=True)
        path = self.folders.output / "manifest.json"
        path.write_text(json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8")
        print(f"archive written in {time.monotonic() - started:.1f} s", flush=True)


def _described(plan: Plan) -> str:
    recompute = "recomputed" if plan.gradient_checkpointing else "kept"
    return (
        f"passes of {plan.micro_batch_tokens} tokens, activations {recompute}, "
        f"{'weights spread over the processes, ' if plan.sharded else ''}"
        f"about {plan.estimate.total / GB:.1f} GB expected"
    )


def _description(model: TunedModel) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters())
    total = sum(parameter.numel() for parameter in model.network.parameters())
    threads = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else torch.cuda.get_device_name()
    return (
        f"{total / 1e6:.1f} M weights, {trained / 1e6:.2f} M of them trained, "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device.type} ({threads}), process {os.getpid()}"
    )
