"""Several processes as one:  torchrun --nproc_per_node=K train_mt.py --preset gpu

Each process, one for each GPU, runs the whole program on the same data and the same seeds. They
split the work where there is any, and end with the same result in all of them, so that the
code in between reads as if there were only one:

    for batch in shard(batches): ...       # every K-th batch for each process
    parts = all_gather(parts)              # all shards, in the order of the whole
    all_reduce(tensors)                    # or their sum

Only the main process writes and prints. With one process each of these does nothing. The losses
are sums over tokens, so a sum over shards has the gradient of the whole; only BVMPO's is not, and
takes its median and its softmax over each process's shard.

Left out: models that do not fit on one device, and machines that share no file system.
"""

import atexit
import os
import sys

import torch
import torch.distributed as dist

from infra.errors import UserError


def start():
    """Join the other processes, if torchrun has started any."""
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not os.environ["WORLD_SIZE"].isdecimal():
        wrong = f"without {', '.join(missing)}" if missing else "but is no number"
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set in the environment {wrong}: "
                        "start several processes by torchrun, or unset it")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(leave)
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def end():
    """Wait for the others and leave, so that none ends while another still hears from it."""
    if dist.is_initialized():
        dist.barrier()
        leave()


def leave():
    """Wait for no one: another process may have failed."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main():
    return rank() == 0


def shard(items):
    """This process's part of a list or an array."""
    return items[rank() :: world_size()]


def all_gather(items):
    """The lists of all processes as the one list that they are shards of."""
    if world_size() == 1:
        return items
    shards = [None] * world_size()
    dist.all_gather_object(shards, items)
    return [shards[k % world_size()][k // world_size()] for k in range(sum(map(len, shards)))]


def all_reduce(tensors):
    """Replace tensors of one dtype by their sums over all processes, in one message."""
    if world_size() > 1 and tensors:
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(part.view_as(x))


def on_main(make):
    """What make() returns, or raises, called by the main process alone: it looks at files, say."""
    if world_size() == 1:
        return make()
    found = [None, None]  # a value, an error
    if is_main():
        try:
            found[0] = make()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        found[1].told_by_main = True
        raise found[1]
    return found[0]
