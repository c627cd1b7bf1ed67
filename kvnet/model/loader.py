"""Load a checkpoint, quantized or not, with its tokenizer. Knows transformers; no caches, no peers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from kvnet.codec.pack import TORCH_DTYPES
from kvnet.errors import ConfigError, UnsupportedModel
from kvnet.model.cache import refuse_unsupported
from kvnet.model.checkpoint import resolve
from kvnet.model.fingerprint import tokenizer_files, weight_files
from kvnet.types import DType

Quantization = Literal["none", "int8", "nf4"]
DTypeChoice = Literal["auto", "float32", "float16", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]

_BLOCK_INPUTS, _PACKED_OUTPUTS = 64, 32  # multiples of these


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to host and how. Raises ConfigError for a choice that does not exist."""

    model: str
    quantization: Quantization = "none"
    dtype: DTypeChoice = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}, it must be one of {', '.join(choices)}")


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "quantization": get_args(Quantization),
    "dtype": get_args(DTypeChoice),
    "device": get_args(Device),
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, and the folder it came from."""

    name: str
    folder: Path
    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase


def load(spec: ModelSpec, *, cache_dir: Path) -> LoadedModel:
    """Find, check and load a model. Never runs code from a checkpoint, never opens a pickle.

    Raises UnknownModel, UnsupportedModel, or ConfigError for a device that is not here.
    """
    device = _device(spec.device)
    folder = resolve(spec.model, cache_dir=cache_dir)
    weight_files(folder)
    tokenizer_files(folder)
    _silence()
    with _translated(spec.model):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        refuse_unsupported(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=_torch_dtype(spec, config),
            quantization_config=_quantization_config(spec, config, device),
            device_map={"": device},
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    _refuse_incomplete(spec.model, info)
    _leave_odd_heights_unpacked(model)
    return LoadedModel(name=_display_name(spec.model), folder=folder, model=model.eval(), tokenizer=tokenizer)


def _device(choice: Device) -> str:
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device; use 'cpu' or 'auto'")
    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return choice


def _torch_dtype(spec: ModelSpec, config: Any) -> torch.dtype:
    """The dtype of activations, hence of the cache: the checkpoint's own unless chosen.

    Quantized weights compute in 16 bits (bitsandbytes' int8 in float16 alone).
    """
    if spec.dtype != "auto":
        return TORCH_DTYPES[DType(spec.dtype)]
    stored = config.get_text_config(decoder=True).dtype or torch.float32
    if spec.quantization == "int8" or (spec.quantization == "nf4" and stored == torch.float32):
        return torch.float16
    return TORCH_DTYPES[DType(str(stored).removeprefix("torch."))]


def _quantization_config(spec: ModelSpec, config: Any, device: str) -> BitsAndBytesConfig | None:
    if spec.quantization == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_torch_dtype(spec, config),
            llm_int8_skip_modules=_left_whole(config) if device == "cpu" else None,
        )
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return None


def _left_whole(config: Any) -> list[str] | None:
    """Linear layers that stay in 16 bits: bitsandbytes' CPU kernels decode rows of whole blocks alone right.

    None where there are none, so that bitsandbytes chooses by itself.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    odd = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.in_features % _BLOCK_INPUTS
    ]
    return [*odd, "lm_head"] if odd else None


def _leave_odd_heights_unpacked(model: Any) -> None:
    """bitsandbytes packs 4-bit weights anew on processors with AVX512-BF16, but only of such heights."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.out_features % _PACKED_OUTPUTS:
            module.support_avx512bf16_for_cpu = False


def _refuse_incomplete(model: str, info: dict[str, Any]) -> None:
    """transformers fills missing weights with random numbers and goes on; kvnet does not."""
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise UnsupportedModel(
            f"{_display_name(model)}: {len(missing)} weights are missing or misshapen, first {missing[0]}; "
            "its config.json and its weights do not belong together, copy both again"
        )


def _display_name(model: str) -> str:
    """A folder's own name instead of its path, which is nobody else's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


@contextmanager
def _translated(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise UnsupportedModel(f"transformers cannot load {_display_name(model)}: {reason}") from exc


def _silence() -> None:
    """No progress bars and no advice on a daemon's stderr."""
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    disable_progress_bars()
