"""Devices, precision, loss scaling, processes and trackers of a run, by accelerate; sharded weights, by torch's FSDP2.

Three things of accelerate are not used, because they would not be exact. Its DDP wrapper averages gradients and sees
one forward call a step, where the loss of a batch cut into parts makes several; gradients are summed instead. Its FSDP2
wrapper does not run on CPUs, where sharded runs are tested against whole ones; the same torch functions are called.
Its checkpoints are pickles that a crash can leave half written; see `carzero.train.checkpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.checkpoint import assemble
from carzero.train.config import TrainConfig, choose_dtype
from carzero.train.ranks import Ranks

_MIXED = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
#: Steps in a row that float16 may skip before the run counts as diverged; its scale falls by 2^20 meanwhile.
_MOST_SKIPPED = 20


class Engine:
    """The machine side of one run.

    Args:
        config: device, precision, sharding and trackers of it are read here.

    Attributes:
        device, dtype: of this process, and of activations; with `why_device` and `why_dtype`.
        ranks: the processes of the run.

    Raises:
        UserError: there is no such device, or it cannot do what is asked for.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device, self.why_device = _choose_device(config.device)
        self.dtype, self.why_dtype = choose_dtype(config.precision, self.device)
        if self.dtype == torch.float16 and self.device.type == "cpu":
            raise UserError(
                "train: precision float16 scales the loss, which needs a CUDA device, got device cpu; use bfloat16 or "
                "float32."
            )
        # accelerate keeps its state for the life of the process; another run may want another precision
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision=_MIXED[self.dtype],
            log_with=config.trackers or None,
            project_dir=config.out if config.trackers else None,
        )
        self.device = self.accelerator.device
        self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes)
        self.sharded = config.sharding == "fsdp2" and self.ranks.world > 1
        if self.sharded and self.dtype == torch.float16:
            raise UserError("train: sharding fsdp2 does not go with precision float16; use bfloat16.")
        self._skipped = 0

    def prepare(self, model: CARZero) -> CARZero:
        """The model on the device, in training mode, sharded or compiled as asked for."""
        model = model.to(self.device).train()
        if self.config.compile:
            model.image_encoder.compile()
            model.text_encoder.model.compile()
        if self.sharded:
            shard(model)
        return model

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer with accelerate's loss scaler around it."""
        return self.accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Gradients of this rank's share of the loss, scaled for float16."""
        # FSDP2 averages over ranks, and the shares add up
        self.accelerator.backward(loss * self.ranks.world if self.sharded else loss)

    def clip(self, model: nn.Module, limit: float) -> float:
        """Unscale the gradients, clip them to this norm (0: do not) and return the norm before."""
        norm = self.accelerator.clip_grad_norm_(list(model.parameters()), limit or math.inf)
        return float(getattr(norm, "full_tensor", lambda: norm)())

    def skips(self, loss: float, norm: float) -> bool:
        """Whether float16's scale was too large for this step: the optimizer leaves it out and lowers the scale."""
        scaler = self.accelerator.scaler
        skip = scaler is not None and math.isfinite(loss) and not math.isfinite(norm) and self._skipped < _MOST_SKIPPED
        self._skipped = self._skipped + 1 if skip else 0
        return skip

    def state(self, optimizer: Any) -> dict[str, Any]:
        """Optimizer and loss scaler, whole and on the CPU; all ranks call."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": _whole(optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any], optimizer: Any) -> None:
        """Put back what `state` gave, whether it was sharded or not."""
        saved = state["optimizer"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        spread = {
            index: {name: _like(value, parameters[index]) for name, value in entry.items()}
            for index, entry in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": spread})
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def whole_model(self, model: CARZero) -> CARZero | None:
        """The model with all its weights, on the first rank where it is sharded; all ranks call."""
        if not self.sharded:
            return model
        tensors = _whole(model.state_dict())
        if not self.ranks.first:
            return None
        whole = assemble(model.config, tensors, "train")
        if model.tokenizer is not None:
            whole.text_encoder.set_tokenizer(model.tokenizer)
        return whole

    def start_trackers(self) -> None:
        """Open the trackers, with the settings."""
        if self.config.trackers:
            settings = {name: str(value) for name, value in self.config.as_dict().items()}
            self.accelerator.init_trackers("carzero", config=settings)

    def track(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures to the trackers."""
        if self.config.trackers:
            self.accelerator.log(dict(figures), step=step)

    def close(self) -> None:
        """Close the trackers."""
        if self.config.trackers:
            for tracker in self.accelerator.trackers:
                tracker.finish()


def shard(model: CARZero) -> None:
    """Spread the weights over the processes: each transformer block, the decoder, and what is left, are gathered apart.

    Source: torch ``fully_shard``; the two encode methods are forward calls to it.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    vision, text = model.image_encoder.model, model.text_encoder.model
    for block in (*vision.blocks, *text.encoder.layer, model.decoder, model):
        fully_shard(block)
    for name in ("encode_images", "encode_texts"):
        register_fsdp_forward_method(model, name)
    register_fsdp_forward_method(model.decoder, "project")


def _whole(value: Any) -> Any:
    """The same with every tensor gathered, detached and on the CPU."""
    if isinstance(value, Tensor):
        value = getattr(value, "full_tensor", lambda: value)()
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _whole(entry) for name, entry in value.items()}
    return [_whole(entry) for entry in value] if isinstance(value, list) else value


def _like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor of the optimizer's state, spread as its parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(value, Tensor) or value.shape != parameter.shape or not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _choose_device(asked: str) -> tuple[torch.device, str]:
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is present"
        return torch.device("cpu"), "no CUDA device is present"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"train: there is no device {asked!r}; name cpu, cuda, cuda:N or auto.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train: device must be cpu, cuda, cuda:N or auto, got {asked!r}.")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"train: device {asked} was asked for, but torch {torch.__version__} finds "
                f"{torch.cuda.device_count()} CUDA devices; use cpu or auto."
            )
        if device.index is not None:
            torch.cuda.set_device(device)
    return device, "asked for"
