"""One training job from a checked data set to a finished archive."""

import contextlib
import itertools
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import attention
import checkpoints
import disk
import parity
from base import Base, fetch_weights
from conversations import prompt_messages, row_messages
from data import Channel, fingerprint, read_rows
from device import plan_memory
from encoding import Encoder
from evaluation import ANSWER_TOKENS, Interrupted, Score, answers, score
from failures import TrainingError
from folders import Folders
from group import Group
from hyperparameters import Hyperparameters
from loading import load_model, load_sharded, load_tokenizer
from memory import GB, Plan, Shape
from metrics import perplexity, report
from model import TunedModel
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
        self._require_disk(model)
        base_result = None
        with contextlib.suppress(Interrupted):
            base_result = self._base_result(model, tokenizer, test, trainer) if test else None
        if group.leads:
            print(f"training for {trainer.schedule.total_steps} steps", flush=True)
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
        del trainer  # its optimizer and its best weights take the room that the archive's check needs
        probes, recorded = self._probes(model), None
        if model.sharded:
            # Whole models answer and are written below; what the spread one answers is recorded by all together.
            recorded = self._recorded(model, tokenizer, probes)
            model = self._gathered(model, leads=group.leads)
        if group.leads:
            self._write_archive(model, tokenizer, metrics, evaluation, probes, recorded)
        group.close()

    def _require_disk(self, model: TunedModel) -> None:
        trained = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        has_adapter, has_best = self.settings.method != "full", self.settings.early_stopping_patience > 0
        # Weights and two moments, the adapter in PEFT's form, the best weights.
        checkpoint = trained * (3 + has_adapter + has_best)
        archive = 2 * Shape.from_config(self.base.config).weights + trained * has_adapter
        disk.require_room(self.folders, checkpoints=(checkpoints.KEPT + 1) * checkpoint, archive=archive)

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
        """The base model on the test rows. Kept beside the checkpoints: a job that goes on need not ask it again."""
        path = self.folders.checkpoints / BASE_RESULT
        group = trainer.group
        asked = [
            self.base.model_id,
            self.base.revision,
            str(model.dtype),
            fingerprint(test.rows),
            len(self._samples(model)),
        ]
        known = group.from_leader(_read_json(path) if group.leads else None)
        if known and known.get("of") == asked:
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
            texts = self._answers(model, tokenizer, trainer.micro_batch_tokens)
        found = {
            "of": asked,
            "losses": result.losses,
            "correct": result.correct,
            "labels": result.labels,
            "answers": texts,
        }
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
        texts = self._answers(model, tokenizer, trainer.micro_batch_tokens)
        base = Score(base_result["losses"], base_result["correct"], base_result["labels"])
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
                    "prompt": "\n\n".join(message["content"] for message in prompt_messages(row)),
                    "reference": row_messages(row)[len(prompt_messages(row))]["content"],
                    "base": before,
                    "tuned": after,
                }
                for row, before, after in zip(self._samples(model), base_result["answers"], texts, strict=True)
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

    def _answers(self, model: TunedModel, tokenizer: Any, most_tokens: int) -> list[str]:
        prompts = [prompt_messages(row) for row in self._samples(model)]
        return answers(model, tokenizer, self.encoder, prompts, self._stop_ids(tokenizer), most_tokens)

    def _samples(self, model: TunedModel) -> list[Any]:
        """The first test rows whose questions the model can read, with room for an answer.

        None where the weights are spread over the processes, which would gather all of them for every token.
        """
        count = 0 if model.sharded else self.settings.evaluation_samples
        return self._readable("test", count, ANSWER_TOKENS)

    def _probes(self, model: TunedModel) -> list[list[dict[str, str]]]:
        """Prompts whose answers must be the same after the archive is loaded again."""
        count = 1 if model.sharded else PROBES
        found = self._readable("test", count, parity.PROBE_TOKENS) or self._readable(
            "train", count, parity.PROBE_TOKENS
        )
        return [prompt_messages(row) for row in found] or [[{"role": "user", "content": "Hello"}]]

    def _readable(self, channel: str, count: int, answer_tokens: int) -> list[Any]:
        """The first rows of a channel whose prompt fits the model together with an answer."""
        most = self.base.longest_prompt(self.settings.max_length) - answer_tokens
        rows = read_rows(self.folders.channel(channel))[0] if channel in self.channels else []
        fitting = (row for row in rows if len(self.encoder.prompt_ids(prompt_messages(row))) <= most)
        return list(itertools.islice(fitting, count))

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


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a file of an earlier run says; None when there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


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
