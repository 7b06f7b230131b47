"""The rehearsal memory (§4.3, §5.1): which past pairs are kept, what is stored of each, in how many bytes.

In:  named tensors of a batch, one row per pair: (B, ...) each.
Out: the rows of pairs drawn at random, under the same names.

The memory knows no method: it keeps what it is given. What the methods keep of a pair, at the paper's size:

    frames        4·3·224·224  uint8      602,112 bytes      importance I, pruning P  2·(512+784)  float32   10,368
    spectrogram   1024·128     float16    262,144            queries q̂                2·12·64      float16    3,072
                                                             pooled c_a, c_v          2·768        float16    3,072

That is 880,768 bytes for FLAVA, where frames and spectrogram in float32 take 2.9 MB. FLAVA+ stores half of the patches
and their positions instead: 439,568 bytes. `python memory.py` adds it up for the paper's 2,000 pairs.

Tour: stops 15 and 16.
"""
import math

import torch
import torch.nn.functional as F

from patches import Sizes, world

# What each named tensor is stored as. Frames are 8-bit when they come from a video, so uint8 loses nothing. I spans
# more orders of magnitude than float16 has.
STORED_AS = {'video': torch.uint8, 'patches_v': torch.uint8, 'kept_a': torch.int16, 'kept_v': torch.int16,
             'importance_a': torch.float32, 'importance_v': torch.float32,
             'prune_a': torch.float32, 'prune_v': torch.float32,
             'edited_a': torch.float32, 'edited_v': torch.float32}   # GMED's edits are far smaller than a byte's step
OTHERWISE = torch.float16   # audio, patches_a, query_*, pooled_*
COMES_BACK_AS = {torch.float16: torch.float32, torch.int16: torch.int64}
# What each method stores of a pair. `full` goes by it, before there is a memory; the memory takes what it is given.
PAIR, POOLED, QUERIES = ('audio', 'video'), ('pooled_a', 'pooled_v'), ('query_a', 'query_v')
SCORES = ('importance_a', 'importance_v', 'prune_a', 'prune_v')
STORED_BY = {'er': PAIR, 'mir': PAIR, 'cls-er': PAIR, 'lump': PAIR, 'der++': PAIR + POOLED, 'random': PAIR + POOLED,
             'mats': PAIR + POOLED, 'gmed': ('edited_a', 'edited_v'), 'flava': PAIR + SCORES + QUERIES + POOLED,
             'flava+': ('patches_a', 'patches_v', 'kept_a', 'kept_v') + QUERIES + POOLED}


class Memory:
    """Reservoir sampling (Vitter 1985): after n pairs have passed, each is in the memory with probability capacity/n.

    It never asks where a task begins or ends. It lies where the batches are, on the GPU if it fits there, so that
    nothing waits for a replay; which rows are drawn and replaced is decided on the CPU.
    """

    def __init__(self, capacity):
        self.capacity = capacity   # pairs
        self.seen = 0              # pairs that have passed so far
        self.rows = {}             # name → (capacity, ...), allocated by the first `add`
        self.drawn = None          # the rows that `sample` gave last

    def __len__(self):
        return min(self.seen, self.capacity)

    @property
    def device(self):
        """Where its rows lie."""
        return next((rows.device for rows in self.rows.values()), torch.device('cpu'))

    @property
    def bytes(self):
        """What a full memory takes."""
        return sum(rows.nbytes for rows in self.rows.values())

    def add(self, **tensors):
        """Offer a batch: tensors (B, ...), by name. Which pairs stay, chance decides."""
        B = len(next(iter(tensors.values())))
        if not self.rows:
            self.allocate({name: (x.shape[1:], STORED_AS.get(name, OTHERWISE)) for name, x in tensors.items()},
                          next(iter(tensors.values())).device)
        to, of = self.draw_slots(B)
        if to:
            of = sent(torch.tensor(of), next(iter(tensors.values())).device)
            self.write(torch.tensor(to), {name: x.detach().index_select(0, of) for name, x in tensors.items()})

    def draw_slots(self, B):
        """Of the next B pairs: the rows that some of them get, and which they are, as lists of equal length."""
        number = torch.arange(self.seen, self.seen + B)            # of each pair, counted from 0
        slot = (torch.rand(B, dtype=torch.float64) * (number + 1)).long()   # uniform over 0 … number
        slot = torch.where(number < self.capacity, number, slot)   # while there is room, none is turned away
        self.seen += B
        winner = {s: i for i, s in enumerate(slot.tolist()) if s < self.capacity}   # of two for one slot, the later
        return list(winner.keys()), list(winner.values())

    def sample(self, number, device):
        """`number` pairs, or all where there are fewer, without replacement → {name: (n, ...)} on the device."""
        self.drawn = torch.randperm(len(self))[:number]
        at = sent(self.drawn, self.device)
        past = {name: sent(rows.index_select(0, at), device) for name, rows in self.rows.items()}
        return {name: x.to(COMES_BACK_AS.get(x.dtype, x.dtype)) for name, x in past.items()}

    def replace(self, **tensors):
        """Write back the pairs that `sample` gave last, in their order: tensors (n, ...), by name."""
        self.write(self.drawn, {name: x.detach() for name, x in tensors.items()})

    def write(self, to, tensors):
        """tensors {name: (n, ...)} into the rows `to` (n,)"""
        to = sent(to, self.device)
        for name, x in tensors.items():
            rows = self.rows[name]
            rows.index_copy_(0, to, x.to(rows.dtype).to(rows.device))

    def allocate(self, kinds, device):
        """kinds {name: (shape of a row, dtype)} → empty rows: on the device where they take at most a quarter of it,
        else beside it, in memory that the GPU can fetch from by itself."""
        needed = sum(self.capacity * math.prod(shape) * dtype.itemsize for shape, dtype in kinds.values())
        where = dict(device=device) if fits_gpu(needed, device) else dict(pin_memory=device.type == 'cuda')
        self.rows = {name: torch.empty(self.capacity, *shape, dtype=dtype, **where)
                     for name, (shape, dtype) in kinds.items()}

    def state_dict(self):
        # clone: torch.save would write the whole storage behind a view, though most of it is still empty
        filled = {name: rows[:len(self)].to('cpu', copy=True) for name, rows in self.rows.items()}
        return dict(capacity=self.capacity, seen=self.seen, rows=filled)

    def load_state_dict(self, state, device):
        """state_dict's rows, to lie where batches on this device will be"""
        self.capacity, self.seen = state['capacity'], state['seen']
        self.allocate({name: (x.shape[1:], x.dtype) for name, x in state['rows'].items()}, torch.device(device))
        for name, filled in state['rows'].items():
            self.rows[name][:len(filled)] = filled


def split_anew(states, part, parts, capacity):
    """The `state_dict`s of all processes' memories → that of process `part` of `parts`, of so many pairs each.

    Each reservoir is a uniform sample of what its process saw, of as many pairs as the others saw; so is their union of
    what all saw, and so is a share of it that is dealt out at random. Statistically nothing changes.
    """
    seen, number = sum(state['seen'] for state in states), sum(len(rows_of(state)) for state in states)
    mine = torch.randperm(number, generator=torch.Generator().manual_seed(seen))[part::parts]
    rows = {name: torch.cat([state['rows'][name] for state in states])[mine[:capacity]] for name in states[0]['rows']}
    full = seen > number                               # otherwise all that was seen is there
    return dict(capacity=min(capacity, len(mine)) if full else capacity, seen=seen // parts if full else len(mine),
                rows=rows)


def rows_of(state):
    """One of a state's tensors: as many rows as there are pairs."""
    return next(iter(state['rows'].values()), ())


def sent(x, device):
    """x on a device, without waiting for what the device is doing."""
    if x.device.type == 'cpu' and torch.device(device).type == 'cuda':
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def penalty(past, pooled_a, pooled_v):
    """ℓ^p, DER++'s (§4.3): how far the pooled embeddings of replayed pairs drifted from what was stored.

    past['pooled_a'], past['pooled_v'] (n, D), and those of the same pairs now → scalar
    Mean squared error, audio and video separately; α weighs their sum.
    """
    return F.mse_loss(pooled_a, past['pooled_a']) + F.mse_loss(pooled_v, past['pooled_v'])


def share_of_process(pairs):
    """The paper divides the memory over the GPUs."""
    return max(1, pairs // world())


def patch_capacity(pairs, sizes, kappa_a, kappa_v):
    """How many pairs' selected patches fit into the bytes of `pairs` whole pairs: 1/ρ times as many, where
    ρ_a = ρ_v."""
    p = sizes.patch_size
    whole = sizes.num_patches_a * p * p * 2 + sizes.num_patches_v * p * p * 3      # float16, uint8
    patches = kappa_a * p * p * 2 + kappa_v * p * p * 3
    return int(pairs * whole / patches)


def fits_gpu(needed, device):
    """Whether so many bytes are kept on the GPU, if the device is one."""
    return device.type == 'cuda' and needed <= torch.cuda.get_device_properties(device).total_memory / 4


def numbers_of(s, kappa_a, kappa_v):
    """{name: how many numbers a pair has of it}, of the sizes s and κ selected patches"""
    M, N, p = s.num_patches_a, s.num_patches_v, s.patch_size
    return dict(audio=s.audio_frames * s.mel_bins, video=s.num_frames * 3 * s.image_size ** 2,
                importance_a=M, importance_v=N, prune_a=M, prune_v=N, query_a=s.embed_dim, query_v=s.embed_dim,
                pooled_a=s.embed_dim, pooled_v=s.embed_dim, edited_a=M * p * p, edited_v=N * p * p * 3,
                patches_a=kappa_a * p * p, patches_v=kappa_v * p * p * 3, kept_a=kappa_a, kept_v=kappa_v)


def full(cfg, method):
    """→ pairs, and bytes of each, in the memory of one process when it is full; of methods not in STORED_BY, 0 bytes.
    method: its name, or that of the selection in its place"""
    numbers, pairs = numbers_of(cfg, cfg.kappa_a, cfg.kappa_v), cfg.memory_size
    if method == 'flava+':
        pairs = patch_capacity(pairs, cfg, cfg.kappa_a, cfg.kappa_v)
    return share_of_process(pairs), sum(numbers[name] * STORED_AS.get(name, OTHERWISE).itemsize
                                        for name in STORED_BY.get(method, ()))


def main():
    """The bytes of the paper's 2,000 pairs of full size, added up by the memory itself."""
    s = Sizes()
    kappa = s.num_patches_a // 2, s.num_patches_v // 2
    numbers = numbers_of(s, *kappa)
    for name, method, pairs in (('FLAVA', 'flava', 2000), ('FLAVA+', 'flava+', patch_capacity(2000, s, *kappa))):
        memory = Memory(pairs)
        memory.add(**{each: torch.empty(1, numbers[each]) for each in STORED_BY[method]})
        # one pair; the rows of all are allocated, and the untouched ones cost nothing yet
        print(f'{name:<7}{pairs:>6,} pairs of {memory.bytes // pairs:>9,} bytes = {memory.bytes / 1e9:.3f} GB')


if __name__ == '__main__':
    main()
