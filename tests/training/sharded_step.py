"""A step of HNC with the task's parameters sharded over the processes (FSDP), and one with a static graph (DDP).

Rank 0 saves the weights of both, those of FSDP gathered.
Run by test_processes.py with torchrun: python sharded_step.py <file>
"""

import sys

import timm
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import timm_hnc


def make_task() -> timm_hnc.HNCTask:
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet_gn', num_classes=3)
    hnc = timm_hnc.HNCLoss('mse', topk=1)
    return timm_hnc.HNCTask(timm_hnc.CamModel(model), hnc=hnc, hnc_weight=0.1, verbose=False)


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def step(task: torch.nn.Module, input: torch.Tensor, target: torch.Tensor, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(task.parameters(), lr=lr)
    task(input, target)['loss'].backward()
    optimizer.step()


def mean_of_ones() -> float:
    """What gloo makes of the mean over the processes, 1; with torch 2.7 and 2.8 the sum, and so is the gradient."""
    mean = torch.empty(1)
    dist.reduce_scatter_tensor(mean, torch.ones(dist.get_world_size()), op=dist.ReduceOp.AVG)
    return mean.item()


if __name__ == '__main__':
    dist.init_process_group('gloo')
    task = make_task()
    mesh = torch.distributed.init_device_mesh('cpu', (dist.get_world_size(),))
    for block in task.trainable_module.model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    input, target = batch()
    own = slice(dist.get_rank() * 4, dist.get_rank() * 4 + 4)
    step(task, input[own], target[own], lr=0.1 / mean_of_ones())
    weights = get_model_state_dict(task, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    static = make_task().prepare_distributed(static_graph=True)
    step(static, input[own], target[own])
    if dist.get_rank() == 0:
        torch.save([weights, static.get_checkpoint_state()['state_dict']], sys.argv[1])
    dist.destroy_process_group()
