"""Weights that the processes of a training share out (FSDP 2), and that are whole again at its end.

Started by `accelerate launch --use_fsdp`; each process keeps its shard of every weight and gathers
a layer when it computes with it.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_flag_from_env,
)
from torch.distributed.fsdp import FSDPModule, StateDictType
from torch.distributed.tensor import DTensor

from flowllm.errors import UserError


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Let `--use_fsdp` have its way in CPU processes too.

    accelerate 1.15 drops it there: `AcceleratorState.__init__` asks for ACCELERATE_USE_FSDP only
    under the kinds of processes that have a GPU. torch's FSDP 2 itself runs on gloo.
    """
    state = accelerator.state
    if state.distributed_type is DistributedType.MULTI_CPU and parse_flag_from_env(
        "ACCELERATE_USE_FSDP"
    ):
        plugin = FullyShardedDataParallelPlugin()
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.fsdp_plugin = plugin
        # In both places, as accelerate does: a later AcceleratorState() copies from the second.
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def check_sharding(accelerator: Accelerator, *, ema_decay: float) -> None:
    """Refuse what a sharded training cannot do.

    Raises:
        UserError: FSDP 1, sharded checkpoints, or a moving average of the weights.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError("FSDP 1 is not supported; start it with accelerate launch --fsdp_version 2")
    if plugin.state_dict_type is not StateDictType.FULL_STATE_DICT:
        # Reading the others back unpickles a file.
        raise UserError(
            "sharded checkpoints are not supported; start it with accelerate launch "
            "--fsdp_state_dict_type FULL_STATE_DICT"
        )
    if ema_decay:
        raise UserError("no average is kept of sharded weights; set training.ema_decay to 0")


def gather_weights(model: torch.nn.Module, *, keep: bool) -> None:
    """Make the weights of a sharded model whole again, on the CPU; every process must call it.

    Args:
        model: changed in place; it can be saved then, and no longer trained.
        keep: whether this process wants the weights. On the others they stay without numbers
            (meta), so that the memory of a machine holds them once.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the outermost weights gathered
    whole: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # tied weights stay one
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(weight, DTensor):
                continue
            if weight not in whole:
                values = weight.detach().full_tensor().to("cpu" if keep else "meta")
                whole[weight] = torch.nn.Parameter(values, requires_grad=weight.requires_grad)
            module.register_parameter(name, whole[weight])
