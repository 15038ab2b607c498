"""Answers from a model archive: load it, decode token by token, stream text.

The same code answers behind serve.py, behind the Hugging Face inference image (inference.py) and in the parity check
of a training job, so that what was trained is what is served. Prompts are encoded by encoding.py, as in training.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from encoding import Encoder

ONE_THREAD_BYTES = 20_000_000  # of weights; below, waiting for each other costs threads more than they gain


class RequestError(ValueError):
    """A request that cannot be answered; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens and when to stop. Temperature 0 takes the likeliest token each time."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A stretch of the answer. The last one has a `finish_reason`: `stop` or `length`."""

    text: str
    token_id: int | None = None
    logprob: float = 0.0
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Generator:
    """A loaded archive. One request at a time; the caller serialises (serve.py does)."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.family = "seq2seq" if config.get("is_encoder_decoder") else "causal"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if self.device.type == "cpu" and size < ONE_THREAD_BYTES:
            torch.set_num_threads(1)
        loader = transformers.AutoModelForSeq2SeqLM if self.family == "seq2seq" else transformers.AutoModelForCausalLM
        model: Any = loader.from_pretrained(folder, dtype="auto")
        self.model = model.to(self.device).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.encoder = Encoder(folder, self.family)
        self.stop_ids = _stop_ids(self.model, self.tokenizer)
        self.limit = _context_length(config)
        self._adapter = _Adapter.attach(self.model, folder / "adapter")

    @property
    def has_base(self) -> bool:
        """Whether the base model's answers can be had from this archive."""
        return self._adapter is not None

    def prompt_ids(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation through the chat template, or of a text as it stands."""
        if isinstance(prompt, str):
            return self.encoder.tokenizer.encode(prompt, add_special_tokens=self.family == "seq2seq").ids
        return self.encoder.prompt_ids(prompt)

    def check_room(self, prompt_ids: list[int], *, base: bool = False) -> int:
        """How many tokens an answer may have. Raises RequestError when none, or when there is no base to ask."""
        if base and self._adapter is None:
            raise RequestError("this archive has no adapter to take away, so it cannot answer as the base model")
        room = self.limit if self.family == "seq2seq" else self.limit - len(prompt_ids)
        if room < 1 or len(prompt_ids) > self.limit:
            raise RequestError(f"the prompt has {len(prompt_ids)} tokens, the model reads {self.limit}", status=413)
        if not prompt_ids:
            raise RequestError("the prompt is empty")
        return room

    def stream(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        *,
        base: bool = False,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Decode. Raises RequestError when prompt and answer do not fit, or when there is no base to ask."""
        budget = min(sampling.max_new_tokens, self.check_room(prompt_ids, base=base))
        if self._adapter:
            self._adapter.taken_away = base
        choose = _Chooser(sampling, self.device)
        text = _TextStream(self.tokenizer, sampling.stop)
        for count, (token, logprob) in enumerate(self._tokens(prompt_ids, budget, choose), 1):
            is_end = token in self.stop_ids
            piece = "" if is_end else text.add(token)
            reason = "stop" if is_end or text.stopped else "length" if count == budget else None
            if reason or is_cancelled():
                yield Piece(piece + text.flush(), token, logprob, reason or "cancelled", len(prompt_ids), count)
                return
            yield Piece(piece, token, logprob, None, len(prompt_ids), count)

    @torch.inference_mode()
    def _tokens(self, prompt_ids: list[int], budget: int, choose: "_Chooser") -> Iterator[tuple[int, float]]:
        ids = torch.tensor([prompt_ids], device=self.device)
        options: dict[str, Any] = {"use_cache": True}
        if self.family == "seq2seq":
            options["encoder_outputs"] = self.model.get_encoder()(input_ids=ids)
            options["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
            ids = torch.tensor([[self.model.config.decoder_start_token_id]], device=self.device)
            seen: list[int] = []
        else:
            options["past_key_values"] = DynamicCache(config=self.model.config)
            options["logits_to_keep"] = 1
            seen = list(prompt_ids)
        name = "decoder_input_ids" if self.family == "seq2seq" else "input_ids"
        for _ in range(budget):
            logits = self.model(**{name: ids}, **options).logits[0, -1].float()
            token, logprob = choose(logits, seen)
            seen.append(token)
            yield token, logprob
            ids = torch.tensor([[token]], device=self.device)

    @torch.inference_mode()
    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """(tokens, vocabulary) log-probabilities in fp32, each token given the true ones before it."""
        if self._adapter:
            self._adapter.taken_away = False
        return answer_logprobs(self.model, self.family, prompt_ids, tokens)


def answer_logprobs(model: Any, family: str, prompt_ids: list[int], tokens: list[int]) -> Tensor:
    """The same for any loaded model; the trainer calls it on the model it has just trained."""
    device = next(model.parameters()).device
    if family == "seq2seq":
        start = model.config.decoder_start_token_id
        logits = model(
            input_ids=torch.tensor([prompt_ids], device=device),
            decoder_input_ids=torch.tensor([[start, *tokens[:-1]]], device=device),
        ).logits[0]
    else:
        ids = torch.tensor([[*prompt_ids, *tokens[:-1]]], device=device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens)).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


class _Adapter:
    """Turns the merged model back into its base by subtracting the adapter's share from each layer's output."""

    def __init__(self) -> None:
        self.taken_away = False

    @classmethod
    def attach(cls, model: nn.Module, folder: Path) -> "_Adapter | None":
        """None when the archive has no plain LoRA adapter (full fine-tuning, DoRA)."""
        if not (folder / "adapter_model.safetensors").is_file():
            return None
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("use_dora"):
            return None
        adapter = cls()
        root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
        scale = config["lora_alpha"] / root
        weights = load_file(folder / "adapter_model.safetensors")
        modules: dict[str, Any] = dict(model.named_modules())
        for name, a in weights.items():
            if not name.endswith(".lora_A.weight"):
                continue
            stem = name.removesuffix(".lora_A.weight")
            layer = modules[stem.removeprefix("base_model.model.")]
            b = weights[f"{stem}.lora_B.weight"]
            dtype, device = layer.weight.dtype, layer.weight.device
            adapter._hook(layer, a.to(device, dtype), (b * scale).to(device, dtype))
        return adapter

    def _hook(self, layer: nn.Module, a: Tensor, b: Tensor) -> None:
        def subtract(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output - (inputs[0] @ a.t()) @ b.t() if self.taken_away else output

        layer.register_forward_hook(subtract)


class _Chooser:
    """Picks the next token from logits (vocabulary,). A seed makes the draws repeatable."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self.generator = torch.Generator(device)
            self.generator.manual_seed(sampling.seed) if sampling.seed is not None else self.generator.seed()

    def __call__(self, logits: Tensor, seen: list[int]) -> tuple[int, float]:
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0 and seen:
            index = torch.tensor(sorted(set(seen)), device=logits.device)
            values = logits[index]
            factor = sampling.repetition_penalty
            logits[index] = torch.where(values > 0, values / factor, values * factor)
        if sampling.temperature <= 0:
            token = int(logits.argmax())
            return token, float(torch.log_softmax(logits, -1)[token])
        logits = logits / sampling.temperature
        if 0 < sampling.top_k < len(logits):
            logits[logits < logits.topk(sampling.top_k).values[-1]] = -math.inf
        if sampling.top_p < 1.0:
            ordered, order = logits.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            logits[order[before >= sampling.top_p]] = -math.inf
        probabilities = logits.softmax(-1)
        token = int(torch.multinomial(probabilities, 1, generator=self.generator))
        return token, float(probabilities[token].log())


class _TextStream:
    """Token ids -> text, held back while a character or a stop sequence may still be incomplete."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.sent = 0
        self.stopped = False
        self._text = ""

    def add(self, token: int) -> str:
        """The text that is certain after this token."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        for stop in self.stop:
            found = text.find(stop, max(0, self.sent - len(stop)))
            if found >= 0:
                self.stopped = True
                text = text[:found]
        self._text = text
        safe = len(text) if self.stopped else self._safe_length(text)
        piece = text[self.sent : safe]
        self.sent = max(self.sent, safe)
        return piece

    def flush(self) -> str:
        """What was held back."""
        return self._text[self.sent :]

    def _safe_length(self, text: str) -> int:
        # An incomplete character decodes to the replacement character until its last byte has come.
        safe = len(text) - 1 if text.endswith("\ufffd") else len(text)
        for stop in self.stop:
            for length in range(min(len(stop) - 1, safe), 0, -1):
                if text[:safe].endswith(stop[:length]):
                    safe -= length
                    break
        return max(safe, self.sent)


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(each for each in [*ids, tokenizer.eos_token_id] if each is not None)


def _context_length(config: dict[str, Any]) -> int:
    text = config.get("text_config") or config
    return text.get("max_position_embeddings") or text.get("n_positions") or 2048
