"""Sharded weights: FSDP 2 for trainings of several processes, and whole weights at the end.

`accelerate launch --use_fsdp` starts such a training. Each process keeps its shard of every weight
and gathers the weights of a layer while it computes with them.
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
    """Make `--use_fsdp` take effect in CPU processes.

    accelerate 1.15 ignores it there: `AcceleratorState.__init__` looks at ACCELERATE_USE_FSDP only
    for kinds of processes that have a GPU. FSDP 2 of torch itself runs on gloo.

    Args:
        accelerator: its state is changed in place.
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
    """Check that a sharded training is possible with these settings.

    Args:
        accelerator: of a training with FSDP.
        ema_decay: decay of the moving average of the weights.

    Raises:
        UserError: if FSDP 1, sharded checkpoints or a moving average of the weights are set.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError("FSDP 1 is not supported; start it with accelerate launch --fsdp_version 2")
    if plugin.state_dict_type is not StateDictType.FULL_STATE_DICT:
        # torch reads the other kinds of checkpoints back by unpickling a file.
        raise UserError(
            "sharded checkpoints are not supported; start it with accelerate launch "
            "--fsdp_state_dict_type FULL_STATE_DICT"
        )
    if ema_decay:
        raise UserError("no average is kept of sharded weights; set training.ema_decay to 0")


def gather_weights(model: torch.nn.Module, *, keep: bool) -> None:
    """Replace the sharded weights of a model by whole ones on the CPU; every process must call it.

    Args:
        model: changed in place; it can be saved afterwards, but no longer trained.
        keep: True in the process that needs the weights. In the other ones they become tensors
            without numbers (meta), so that the memory of a machine holds the weights once.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the outermost weights gathered
    whole: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(weight, DTensor):
                continue
            if weight not in whole:
                values = weight.full_tensor().detach().to("cpu" if keep else "meta")
                whole[weight] = torch.nn.Parameter(values, requires_grad=weight.requires_grad)
            module.register_parameter(name, whole[weight])
