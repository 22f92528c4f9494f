"""Several processes as one:  torchrun --nproc_per_node=K train_mt.py --preset gpu

Each process, one for each GPU, runs the whole program on the same data and the same seeds. They
part where there is work to split, and meet again with the same result in all of them, so that the
code in between reads as if there were only one:

    for batch in share(batches): ...       # every K-th batch for each process
    parts = gather(parts)                  # all shares, in the order of the whole
    sum_up(tensors)                        # or their sum

Only the first process writes and speaks. With one process each of these does nothing. The losses
are sums over tokens, so that a gradient in shares is the gradient of the whole; BVMPO's alone is
not, and takes its median and its softmax over each process's share.

Left out: models that do not fit on one device, and machines that share no file system.
"""

import atexit
import os
import sys

import torch
import torch.distributed as dist


def start():
    """Join the other processes, if torchrun has started any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        cuda = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        atexit.register(leave)
        if not first():
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


def world():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first():
    return rank() == 0


def share(items):
    """What this process does of a list or an array."""
    return items[rank() :: world()]


def gather(items):
    """The lists of all processes as the one list that they are shares of."""
    if world() == 1:
        return items
    shares = [None] * world()
    dist.all_gather_object(shares, items)
    return [shares[k % world()][k // world()] for k in range(sum(map(len, shares)))]


def sum_up(tensors):
    """Replace tensors of one dtype by their sums over all processes, in one message."""
    if world() > 1 and tensors:
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(part.view_as(x))


def by_first(make):
    """What make() gives, or raises, called by the first process alone: it looks at files, say."""
    if world() == 1:
        return make()
    found = [None, None]  # a value, an error
    if first():
        try:
            found[0] = make()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        found[1].told_by_first = True
        raise found[1]
    return found[0]
