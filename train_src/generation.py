"""Answers from a model archive: load it, say what may be asked of it, decode an answer.

The same code answers behind serve.py, behind the Hugging Face inference image (inference.py) and in the parity check
of a training job, so that what was trained is what is served. Prompts are encoded by encoding.py, as in training.
"""

import gc
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from adapters import Adapter, AdapterError, read_adapter
from decoders import Decoder, HookedDecoder, ModuleDecoder, Row, Shares
from encoding import Encoder
from llama import LlamaDecoder, is_llama_like
from sampling import Chooser, Sampling, choose
from t5 import T5Decoder
from textstream import TextStream

WORKING_BYTES = 1_000_000_000  # of a GPU, beside a model's weights
ONE_THREAD_BYTES = 20_000_000  # of weights; below, waiting for each other costs threads more than they gain
OWN_NAMES = ("", "tuned")  # what the archive's own weights are called in a request
T5_LIKE = ("t5", "mt5")


class RequestError(ValueError):
    """A request that cannot be answered; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Piece:
    """A stretch of the answer. The last one has a `finish_reason`: `stop`, `length` or `cancelled`."""

    text: str
    token_id: int | None = None
    logprob: float = 0.0
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    known_tokens: int = 0  # of the prompt, from an earlier one


class Answer:
    """One answer in the making: its row in the decoder, how its tokens are picked, its text."""

    def __init__(self, row: Row, sampling: Sampling, budget: int, stop_ids: frozenset[int], tokenizer: Any) -> None:
        self.row, self.budget = row, budget
        self.last = -1  # the token to decode next
        self.is_finished = False
        self.chooser = Chooser(sampling, row.prompt_ids)
        self._stop_ids = stop_ids
        self._text = TextStream(tokenizer, sampling.stop)
        self._count = 0

    def take(self, token: int, logprob: float) -> Piece:
        """The piece that a picked token makes."""
        self._count += 1
        self.last = token
        is_end = token in self._stop_ids
        text = "" if is_end else self._text.add(token)
        reason = "stop" if is_end or self._text.stopped else "length" if self._count == self.budget else None
        self.is_finished = reason is not None
        if reason:
            text += self._text.flush()
        return Piece(text, token, logprob, reason, len(self.row.prompt_ids), self._count, self.row.known)


class Generator:
    """A loaded archive. Decoding is for one thread at a time: batching.Scheduler's, or the caller's of `stream`.

    `may_spread`: a model larger than its GPU is loaded all the same, for `logprobs`. Without it, MemoryError is raised.
    """

    def __init__(self, folder: Path, *, may_spread: bool = False) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.family = "seq2seq" if config.get("is_encoder_decoder") else "causal"
        size = weight_bytes(folder)
        if not torch.cuda.is_available() and size < ONE_THREAD_BYTES:
            torch.set_num_threads(1)
        loader = transformers.AutoModelForSeq2SeqLM if self.family == "seq2seq" else transformers.AutoModelForCausalLM
        model: Any = loader.from_pretrained(
            folder, dtype="auto", device_map=_device_map(size, may_spread=may_spread)
        ).eval()
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.encoder = Encoder(folder, self.family)
        self.stop_ids = _stop_ids(model, self.tokenizer)
        self.limit = context_length(config)
        self.decoder = _decoder(model, self.family, self.limit)
        self.is_base = not (folder / "manifest.json").is_file() and not (folder / "adapter").is_dir()
        self.adapters: dict[str, Adapter] = {}
        self._own = self._own_adapter(folder / "adapter")
        self._names = threading.Lock()

    def _own_adapter(self, folder: Path) -> Adapter | None:
        """The adapter that is merged into the weights; None when they cannot be had without it (DoRA, full)."""
        if not folder.is_dir():
            return None
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("use_dora"):
            return None
        return self.decoder.bind("tuned", read_adapter(folder, self.decoder.shapes))

    @property
    def has_base(self) -> bool:
        """Whether the base model's answers can be had from this archive."""
        return self.is_base or self._own is not None

    def add_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter askable by name. Raises RequestError when the name is taken or the folder does not fit."""
        if not self.has_base:
            raise RequestError("this archive has no base model to put an adapter on: deploy the base model")
        if name in (*OWN_NAMES, "base"):
            raise RequestError(f"an adapter cannot be called {name!r}: that is a name of the archive's own weights")
        if name in self.adapters:
            raise RequestError(f"adapter {name!r} is loaded already: delete it first", status=409)
        try:
            adapter = self.decoder.bind(name, read_adapter(folder, self.decoder.shapes))
        except AdapterError as error:
            raise RequestError(str(error)) from error
        with self._names:
            self.adapters = {**self.adapters, name: adapter}

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; answers that have begun with it end with it. Raises RequestError for an unknown name."""
        with self._names:
            if name not in self.adapters:
                raise RequestError(f"there is no adapter {name!r}; there are: {self._known()}", status=404)
            adapter = self.adapters[name]
            self.adapters = {known: adapter for known, adapter in self.adapters.items() if known != name}
        self.decoder.prefixes.forget(adapter)

    def shares(self, model: str) -> Shares:
        """The adapters that make the archive's weights the asked model's. Raises RequestError for an unknown name."""
        if model in OWN_NAMES or (model == "base" and self.is_base):
            return ()
        removed = () if self._own is None else ((self._own, -1.0),)
        if model == "base":
            if self._own is None:
                raise RequestError("this archive has no adapter to take away, so it cannot answer as the base model")
            return removed
        adapter = self.adapters.get(model)
        if adapter is None:
            raise RequestError(f"there is no model {model!r}; there are: {self._known()}", status=404)
        return (*removed, (adapter, 1.0))

    def names(self) -> list[str]:
        """What `model` of a request may be."""
        return ["tuned", *(["base"] if self.has_base else []), *self.adapters]

    def _known(self) -> str:
        return ", ".join(self.names())

    def prompt_ids(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation through the chat template, or of a text as it stands."""
        if isinstance(prompt, str):
            return self.encoder.text_ids(prompt)
        return self.encoder.prompt_ids(prompt)

    def start(self, prompt_ids: list[int], sampling: Sampling, model: str = "") -> Answer:
        """An answer that can begin. Raises RequestError when prompt and answer do not fit, or the model is unknown."""
        shares = self.shares(model)
        if not prompt_ids:
            raise RequestError("the prompt is empty")
        room = self.limit if self.family == "seq2seq" else self.limit - len(prompt_ids)
        if room < 1 or len(prompt_ids) > self.limit:
            raise RequestError(f"the prompt has {len(prompt_ids)} tokens, the model reads {self.limit}", status=413)
        budget = min(sampling.max_new_tokens, room)
        row = Row(prompt_ids, len(prompt_ids) + budget, shares)
        return Answer(row, sampling, budget, self.stop_ids, self.tokenizer)

    def advance(self, answers: Sequence[Answer], logits: Tensor) -> list[Piece]:
        """The next piece of each answer from (answers, vocabulary)."""
        picked = choose(logits, [answer.chooser for answer in answers])
        return [answer.take(*choice) for answer, choice in zip(answers, picked, strict=True)]

    def stream(self, prompt_ids: list[int], sampling: Sampling, model: str = "") -> Iterator[Piece]:
        """One answer alone, piece by piece. Raises RequestError as `start` does."""
        answer = self.start(prompt_ids, sampling, model)
        logits = None
        while logits is None:
            logits = self.decoder.prefill(answer.row)
        while True:
            piece = self.advance([answer], logits.reshape(1, -1))[0]
            yield piece
            if piece.finish_reason:
                return
            logits = self.decoder.step([answer.row], [answer.last])

    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """(tokens, vocabulary) log-probabilities in fp32, each token given the true ones before it."""
        return self.decoder.logprobs(prompt_ids, tokens)


def answer_logprobs(model: Any, family: str, prompt_ids: list[int], tokens: list[int]) -> Tensor:
    """The same for a model of transformers; the trainer calls it on the model it has just trained."""
    device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
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


class SpreadDecoder(ModuleDecoder):
    """A model larger than its GPU: what has no room there is brought for each pass. For checks, too slow to answer."""

    def __init__(self, model: Any, family: str) -> None:
        HookedDecoder.__init__(self, model, packs=False)
        self.family, self.bytes_per_token = family, 0

    @torch.inference_mode()
    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """As Decoder says."""
        return answer_logprobs(self.model, self.family, prompt_ids, tokens)


def _decoder(model: Any, family: str, context: int) -> Decoder:
    config = model.config
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return SpreadDecoder(model, family)
    if family == "seq2seq":
        if config.model_type not in T5_LIKE:
            raise RequestError(
                f"encoder-decoder models of type {config.model_type} cannot be served, only T5-like ones"
            )
        return T5Decoder(model)
    return LlamaDecoder(model, context) if is_llama_like(config) else ModuleDecoder(model)


def weight_bytes(folder: Path) -> int:
    """What the weights in a model's folder take."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def has_gpu_room(size: int) -> bool:
    """Whether weights of so many bytes fit what is free of the GPU now, with some to work in."""
    if not torch.cuda.is_available():
        return False
    gc.collect()
    torch.cuda.empty_cache()  # what PyTorch holds for later counts as free
    return size + WORKING_BYTES <= torch.cuda.mem_get_info()[0]


def _device_map(size: int, *, may_spread: bool) -> Any:
    """Where transformers puts the weights."""
    if not torch.cuda.is_available():
        return None
    if has_gpu_room(size):
        return {"": torch.device("cuda", torch.cuda.current_device())}
    if may_spread:
        print(
            f"{size / 1e9:.1f} GB of weights are more than the GPU holds: layers are brought there in turn", flush=True
        )
        return "auto"
    raise MemoryError(
        f"the model's weights take {size / 1e9:.1f} GB, and {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB of this GPU are "
        "free: use an instance with a larger GPU"
    )


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(each for each in [*ids, tokenizer.eos_token_id] if each is not None)


def context_length(config: dict[str, Any]) -> int:
    """Tokens that a served model reads, by its config.json."""
    text = config.get("text_config") or config
    return text.get("max_position_embeddings") or text.get("n_positions") or 2048
