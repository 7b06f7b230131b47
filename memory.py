"""The rehearsal memory (§4.3, §5.1): a reservoir of past pairs, and the penalty ℓ^p.

In:  named tensors of a batch, one row per pair: (B, ...) each.
Out: the rows of pairs drawn at random, under the same names.

The memory is the same for all methods. Each method decides what it stores of a pair. For FLAVA, at the paper's size:

    frames        4·3·224·224  uint8      602,112 bytes      importance I, pruning P   2·(512+784)  float32  10,368
    spectrogram   1024·128     float16    262,144            queries q̂                 2·12·64      float16   3,072
                                                             pooled c_a, c_v           2·768        float16   3,072

That is 880,768 bytes a pair, or 1.762 GB for 2,000 pairs; with frames and spectrogram in float32 it would be 2.9 MB a
pair. FLAVA+ stores half of the patches and their positions: 439,568 bytes, so 4,000 pairs take 1.758 GB.

Tour: stops 15 and 16.
"""
import math
import os

import psutil
import torch
import torch.nn.functional as F

from config import UserError
from utils.distributed import get_world_size

# How tensors are stored. Frames are 8-bit in the video already. I spans more orders of magnitude than float16 has.
# GMED's edits are smaller than a step of uint8.
DTYPES = {'video': torch.uint8, 'patches_v': torch.uint8, 'ids_a': torch.int16, 'ids_v': torch.int16,
          'importance_a': torch.float32, 'importance_v': torch.float32, 'prune_a': torch.float32,
          'prune_v': torch.float32, 'edited_a': torch.float32, 'edited_v': torch.float32}
DEFAULT_DTYPE = torch.float16                          # audio, patches_a, query_*, pooled_*
REPLAY_DTYPE = {torch.float16: torch.float32, torch.int16: torch.int64}        # stored → as `sample` returns it


class Memory:
    """Reservoir sampling (Vitter 1985): of n pairs seen, each is in the memory with probability capacity / n.

    Task boundaries are not an input. The rows lie on the GPU of the batches if they take at most a quarter of it.
    """

    def __init__(self, capacity):
        self.capacity = capacity   # pairs
        self.seen = 0              # pairs seen so far
        self.rows = {}             # name → (capacity, ...); allocated by the first `add`
        self.sampled = None        # the slots of the last `sample`

    def __len__(self):
        return min(self.seen, self.capacity)

    @property
    def device(self):
        return next((rows.device for rows in self.rows.values()), torch.device('cpu'))

    @property
    def bytes(self):
        """Size of the full memory."""
        return sum(rows.nbytes for rows in self.rows.values())

    def add(self, **tensors):
        """Offer the pairs of a batch, by name: tensors (B, ...)."""
        first = next(iter(tensors.values()))
        if not self.rows:
            self.allocate({name: (x.shape[1:], DTYPES.get(name, DEFAULT_DTYPE)) for name, x in tensors.items()},
                          first.device)
        slots, kept = reservoir_slots(self.seen, self.capacity, len(first))
        self.seen += len(first)
        if slots:
            kept = to_device(torch.tensor(kept), first.device)
            self.write(torch.tensor(slots), {name: x.detach().index_select(0, kept) for name, x in tensors.items()})

    def sample(self, number, device):
        """min(number, len) pairs without replacement (N22) → {name: (n, ...)} on the device; {} if the memory is
        empty."""
        if len(self) == 0:
            return {}
        self.sampled = torch.randperm(len(self))[:number]
        slots = to_device(self.sampled, self.device)
        past = {name: to_device(rows.index_select(0, slots), device) for name, rows in self.rows.items()}
        return {name: x.to(REPLAY_DTYPE.get(x.dtype, x.dtype)) for name, x in past.items()}

    def replace(self, **tensors):
        """Overwrite the pairs of the last `sample`, in its order: tensors (n, ...), by name."""
        self.write(self.sampled, {name: x.detach() for name, x in tensors.items()})

    def write(self, slots, tensors):
        """tensors {name: (n, ...)} → the slots (n,)"""
        slots = to_device(slots, self.device)
        for name, x in tensors.items():
            rows = self.rows[name]
            rows.index_copy_(0, slots, x.to(rows.dtype).to(rows.device))

    def allocate(self, kinds, device):
        """kinds {name: (shape of a row, dtype)} → empty rows: on a GPU if they take at most a quarter of it, else in
        pinned CPU memory. Raises UserError if the machine has too little memory."""
        needed = sum(self.capacity * math.prod(shape) * dtype.itemsize for shape, dtype in kinds.values())
        on_gpu = device.type == 'cuda' and needed <= torch.cuda.get_device_properties(device).total_memory / 4
        needed_here, installed = needed * int(os.environ.get('LOCAL_WORLD_SIZE', 1)), psutil.virtual_memory().total
        if not on_gpu and needed_here > installed:
            raise UserError(f'--memory-size: the memory takes {needed_here / 1e9:.1f} GB, and this machine has '
                            f'{installed / 1e9:.1f} GB')
        where = dict(device=device) if on_gpu else dict(pin_memory=device.type == 'cuda')
        self.rows = {name: torch.empty(self.capacity, *shape, dtype=dtype, **where)
                     for name, (shape, dtype) in kinds.items()}

    def state_dict(self):
        # copy: torch.save writes the whole storage behind a slice
        filled = {name: rows[:len(self)].to('cpu', copy=True) for name, rows in self.rows.items()}
        return dict(capacity=self.capacity, seen=self.seen, rows=filled)

    def load_state_dict(self, state, device):
        """Restore from state_dict; device: of the batches."""
        self.capacity, self.seen = state['capacity'], state['seen']
        if state['rows']:
            self.allocate({name: (x.shape[1:], x.dtype) for name, x in state['rows'].items()}, torch.device(device))
        for name, filled in state['rows'].items():
            self.rows[name][:len(filled)] = filled


def reservoir_slots(seen, capacity, B):
    """Reservoir update for the next B pairs: keep pair n with probability min(1, capacity / (n + 1)), in a random slot.
    n: index of a pair in the stream, from 0; `seen` pairs came before.

    → slots, kept: two lists of equal length; pair kept[i] of the batch goes into slot slots[i]
    """
    n = torch.arange(seen, seen + B)
    slot = (torch.rand(B, dtype=torch.float64) * (n + 1)).long()       # uniform over 0 … n
    slot = torch.where(n < capacity, n, slot)                          # every pair is kept until the memory is full
    pair_in_slot = {}
    for pair, s in enumerate(slot.tolist()):
        if s < capacity:
            pair_in_slot[s] = pair                                     # a later pair replaces an earlier one
    return list(pair_in_slot.keys()), list(pair_in_slot.values())


def penalty(past, pooled_a, pooled_v):
    """ℓ^p, as in DER++ (§4.3, N10): how far the pooled embeddings of replayed pairs are from the stored ones. The
    stored ones come from another mask, and for FLAVA from another selection.

    past['pooled_a'], past['pooled_v'] (n, D): stored; pooled_a, pooled_v (n, D): the same pairs by the model in
    training → scalar; α weighs it
    """
    return F.mse_loss(pooled_a, past['pooled_a']) + F.mse_loss(pooled_v, past['pooled_v'])


def to_device(x, device):
    """Copy x to a device without a host-device sync."""
    if x.device.type == 'cpu' and torch.device(device).type == 'cuda':
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


# --------------------------------------------------------------------------------------- capacity

def per_rank(pairs):
    """The memory is divided over the GPUs (N22)."""
    return max(1, pairs // get_world_size())


def patch_capacity(pairs, sizes, kappa_a, kappa_v):
    """FLAVA+: how many pairs of κ_a, κ_v patches fit into the bytes of `pairs` whole pairs (N24)."""
    p = sizes.patch_size
    whole_pair = sizes.num_patches_a * p * p * 2 + sizes.num_patches_v * p * p * 3     # float16, uint8
    selected = kappa_a * p * p * 2 + kappa_v * p * p * 3
    return pairs * whole_pair // selected


def reshard(states, rank, world_size, capacity):
    """state_dicts of all ranks → the state_dict of `rank` after a resume on another number of processes.

    Each reservoir is a uniform sample of what its rank saw, and all ranks saw equally many pairs. So a random share of
    their union is a uniform sample too. All ranks get equally many pairs, or their batches would differ in size and the
    collective operations of the losses would hang.
    """
    stored = sum(min(state['seen'], state['capacity']) for state in states)
    seen = sum(state['seen'] for state in states)
    share = min(capacity, stored // world_size)
    mine = torch.randperm(stored, generator=torch.Generator().manual_seed(seen))[rank::world_size][:share]
    rows = {name: torch.cat([state['rows'][name] for state in states])[mine] for name in states[0]['rows']}
    # pairs have been dropped already: a larger reservoir would favour later ones
    if seen > stored:
        return dict(capacity=max(1, share), seen=seen // world_size, rows=rows)
    return dict(capacity=capacity, seen=share, rows=rows)
