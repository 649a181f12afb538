# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""A GPT: a character-level, decoder-only Transformer, built and trained in one file.

    python gpt.py

trains on the files that prepare.py made, then prints a sample. On Tiny Shakespeare it reaches val
loss 1.47 in under three minutes on 2 CPU cores.

Shapes: B windows of text in a batch, T characters in a window, C channels (numbers that describe a
character), H attention heads of D = C / H channels, V characters in the vocabulary.
"""
import hashlib
import itertools
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

device = 'cuda' if torch.cuda.is_available() else 'cpu'

def by_device(cpu, gpu):
    """The two configurations: a small model for a laptop's CPU, a larger one for a GPU."""
    return gpu if 'cuda' in device else cpu

batch_size = by_device(cpu=16, gpu=64)  # windows in a step, over all processes together
block_size = by_device(cpu=128, gpu=256)  # characters in a window: how far back the model looks
max_iters = by_device(cpu=1900, gpu=1000)  # steps of training
eval_interval = 250  # evaluate on the val split and save after so many steps
n_layer = by_device(cpu=4, gpu=6)  # blocks, one after the other
n_embd = by_device(cpu=128, gpu=384)  # channels
n_head = n_embd // 64  # attention heads in a block
dropout = by_device(cpu=0.0, gpu=0.2)  # raise it when val loss is far above train loss
learning_rate = 1e-2  # at the first step; it falls linearly to 0
weight_decay = 0.3  # a step multiplies the matrices in the blocks by 1 - rate * weight_decay
compile = by_device(cpu=False, gpu=True)  # torch.compile: a slower start, then faster steps
seed = 1337  # the same seed gives the same run, to the last bit on the same CPU
resume = False  # True goes on from the last evaluation of the run before

# ---- data ----
def load_data():
    """What prepare.py made: meta.json and, for each split, the array of its tokens."""
    try:
        meta = json.loads(pathlib.Path('meta.json').read_text())
        data = {split: np.memmap(f'{split}.bin', np.uint16, 'r') for split in ('train', 'val')}
        digest = hashlib.sha256(data['train'])
        digest.update(data['val'])
        if digest.hexdigest() != meta['sha256']:
            raise ValueError('they are from different texts')
    except Exception as e:  # whatever is wrong with these files, writing them anew fixes it
        sys.exit(f'cannot use train.bin, val.bin, meta.json ({e!r:.200}): run python prepare.py')
    return meta, data

def shuffle(data):
    """Yield for each step where its windows start (B,). An epoch cuts data into windows, from a
    random offset on, and takes each once, in random order. What fills no batch is left out."""
    n = len(data) // (block_size + 1) - 1  # windows; one fewer than would fit leaves room to offset
    for epoch in itertools.count():
        rng = np.random.default_rng((seed, epoch))
        starts = rng.integers(block_size + 1) + (block_size + 1) * rng.permutation(n)
        yield from np.split(starts[:n - n % batch_size], n // batch_size)

def get_batch(data, starts):
    """Inputs and targets (B, T): the windows of data at starts (B,). Targets are shifted by one."""
    windows = data[starts[:, None] + np.arange(block_size + 1)]  # (B, T+1)
    windows = torch.from_numpy(windows.astype(np.int64)).to(device)
    return windows[:, :-1], windows[:, 1:]

# ---- model ----
def rotate(x, cos, sin):
    """Rotary positions, arxiv.org/abs/2104.09864: rotate the pair of channels i and i + D/2 of x
    (B, H, T, D) by angle i of its position, given by cos and sin (T, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)

class CausalSelfAttention(nn.Module):
    """Communication: each character gathers what it needs from itself and the ones before it."""
    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)  # queries, keys, values at once
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        D = C // n_head
        qkv = self.c_attn(x).view(B, T, 3, n_head, D)  # multi-head self-attention
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        # Pair i turns by frequency_i per position: q @ k.mT sees positions by their distance alone.
        frequency = 10000 ** -(torch.arange(0, D, 2, device=x.device) / D)
        angle = torch.outer(torch.arange(T, device=x.device), frequency)  # (T, D/2)
        # The norm, QK-norm of arxiv.org/abs/2302.05442, keeps the scores bounded.
        q = rotate(F.layer_norm(q, (D,)), angle.cos(), angle.sin())
        k = rotate(F.layer_norm(k, (D,)), angle.cos(), angle.sin())
        if x.is_cuda:  # all that follows in one call, faster on a GPU
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q / D ** 0.5) @ k.mT  # (B, H, T, T): how well each query matches each key
            future = torch.full((T, T), -torch.inf, device=x.device).triu(1)
            y = (scores + future).softmax(dim=-1) @ v  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # the heads side by side

class MLP(nn.Module):
    """Computation: a feed-forward network that sees each position alone."""
    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))  # (B, T, 4C) inside, (B, T, C) at the end

class Block(nn.Module):
    """Communication followed by computation."""
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, bias=False)
        self.attn = CausalSelfAttention()
        self.ln_2 = nn.LayerNorm(n_embd, bias=False)
        self.mlp = MLP()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attn(self.ln_1(x)))  # residual: x + ...; pre-norm: ln_1 first
        x = x + self.dropout(self.mlp(self.ln_2(x)))
        return x

class GPT(nn.Module):
    """Characters in; out, for each of them, the logits of the next."""
    def __init__(self, vocab_size):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # what a character is
        self.wpe = nn.Embedding(block_size, n_embd)  # where it stands; helps rotary a little
        self.blocks = nn.Sequential(*[Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd, bias=False)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one table reads characters and writes them
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)  # small: the first loss is about ln V, a pure guess

    def forward(self, idx, targets=None):
        """Logits (B, T, V) of what follows each of idx (B, T); their mean loss against targets."""
        x = self.wte(idx) + self.wpe.weight[:idx.shape[1]]  # (B, T, C)
        logits = self.lm_head(self.ln_f(self.blocks(x)))  # (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens sampled tokens to each row of idx (B, T)."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -block_size:])  # the model can look back no further
            probs = logits[:, -1].softmax(dim=-1)  # (B, V)
            idx = torch.cat((idx, torch.multinomial(probs, num_samples=1)), dim=1)  # (B, T+1)
        return idx

# ---- optimizers ----
def orthogonalize(G):
    """Bring most singular values of G near 1 by three steps of Newton-Schulz iteration, with the
    numbers of Polar Express, arxiv.org/abs/2505.16932."""
    if G.shape[0] > G.shape[1]:
        return orthogonalize(G.mT).mT  # transposed, X @ X.mT is the smaller product
    X = G / (1.01 * G.norm() + 1e-7)  # all singular values below 1
    for a, b, c in ((8.287, -23.596, 17.300), (4.107, -2.948, 0.545), (3.949, -2.909, 0.552)):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X

class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalized: of about the same size in each direction,
    kellerjordan.github.io/posts/muon. Its RMS is 0.2 * lr, as AdamW's is, so one rate serves both:
    arxiv.org/abs/2502.16982. torch.optim.Muon computes in bfloat16, which is slow on many CPUs: for
    the default model and with AVX2 alone it takes 540 ms a step where this class takes 16."""
    @torch.no_grad()
    def step(self):
        group, = self.param_groups
        for p in group['params']:
            momentum = self.state[p].setdefault('momentum', torch.zeros_like(p))
            momentum.lerp_(p.grad, 0.05)  # 0.95 * momentum + 0.05 * gradient
            update = orthogonalize(p.grad.lerp(momentum, 0.95))  # Nesterov's momentum
            p.mul_(1 - group['lr'] * weight_decay)
            p.sub_(update, alpha=group['lr'] * 0.2 * max(p.shape) ** 0.5)

def make_optimizers(model):
    """Muon for the matrices in the blocks, AdamW for the rest: each parameter is in exactly one."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return Muon(matrices, {'lr': learning_rate}), adamw

# ---- evaluation and checkpoints ----
# ckpt.pt is saved at the evaluation with the lowest val loss, for sample.py; latest.pt at each, for
# resume. Both have the weights, the optimizers' states, what prepare.py wrote about the text and an
# example: a window with the model's answer, by which sample.py detects that gpt.py was edited.
@torch.no_grad()
def estimate_loss(model, data):
    """The mean loss over data (its first 2**18 characters) in windows that do not overlap; and the
    example, a window (T,) with the logits (V,) at its end."""
    model.eval()
    torch.set_float32_matmul_precision('highest')
    starts = np.arange(0, min(2**18, len(data)) - block_size, block_size)
    total = 0.0
    for i in range(0, len(starts), batch_size):
        idx, targets = get_batch(data, starts[i:i + batch_size])
        logits, loss = model(idx, targets)
        total += loss.item() * len(idx)
    return total / len(starts), (idx[-1].clone(), logits[-1, -1].clone())

def save(path, ckpt):
    """Write to a file beside path, then rename it: what is at path is whole whatever happens."""
    try:
        torch.save(ckpt, f'{path}.tmp')
        os.replace(f'{path}.tmp', path)
    except (OSError, RuntimeError) as e:
        sys.exit(f'cannot write {path} ({e}): is the disk full? The file before it is intact')
    finally:
        pathlib.Path(f'{path}.tmp').unlink(missing_ok=True)

def restore(parts, meta, data):
    """Load the model and the optimizers from latest.pt; returns its step and the best val loss."""
    try:
        latest = torch.load('latest.pt', map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(latest[name])
        val_loss, _ = estimate_loss(parts['model'], data['val'])
        if meta != latest['meta'] or abs(val_loss - latest['val_loss']) > 1e-3:
            raise ValueError('it is from another model or another text')
        return latest['step'], latest['best_loss']
    except Exception as e:
        sys.exit(f'cannot resume from latest.pt: {e!r:.200}')

# ---- training ----
def check_settings(train_length, val_length, world_size):
    """Exit before any work if a global breaks a rule. A rule begins with the name of its global."""
    for rule in ('n_layer > 0', 'n_head > 0', 'n_embd % (2 * n_head) == 0', 'block_size > 0',
                 'block_size < val_length', 'batch_size < train_length / (block_size + 1) - 1',
                 'batch_size > 0', 'batch_size % world_size == 0', 'dropout >= 0', 'dropout < 1',
                 'max_iters > 0', 'eval_interval > 0', 'seed >= 0'):
        if not eval(rule):
            sys.exit(f'{rule.split()[0]} = {eval(rule.split()[0])} breaks {rule} '
                     f'({train_length=}, {val_length=})')

def train():
    """Train from scratch, or from latest.pt on; under torchrun, as one of world_size processes."""
    rank = int(os.environ.get('RANK', 0))
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    meta, data = load_data()
    check_settings(len(data['train']), len(data['val']), world_size)
    torch.empty(2**23 - 2**14)  # after 32 MB are freed once, glibc reuses memory: steps 10% faster
    if world_size > 1 and 'cuda' in device:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    torch.manual_seed(seed)
    model = GPT(len(meta['chars'])).to(device)
    muon, adamw = make_optimizers(model)
    parts = {'model': model, 'muon': muon, 'adamw': adamw}
    begin, best_loss = restore(parts, meta, data) if resume else (0, np.inf)
    net = torch.compile(model) if compile else model
    if world_size > 1:
        torch.distributed.init_process_group()
        net = nn.parallel.DistributedDataParallel(net)  # averages the gradients of the processes
    batches = enumerate(shuffle(data['train']), 1)
    start = time.time()

    for step, starts in itertools.islice(batches, begin, max_iters):  # skips those before resuming
        model.train()
        torch.set_float32_matmul_precision('medium')  # lets products use TF32 or bfloat16 units
        torch.manual_seed(seed + step * world_size + rank)  # for dropout; a resumed run repeats it
        with torch.autocast('cuda', torch.bfloat16, enabled='cuda' in device):
            _, loss = net(*get_batch(data['train'], starts[rank::world_size]))  # a process's share
        loss.backward()
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]['lr'] = learning_rate * (1 - (step - 1) / max_iters)
            optimizer.step()
            optimizer.zero_grad()

        if rank == 0 and (step % 50 == 0 or step == 1):
            print(f'step {step}, {time.time() - start:.0f} s: batch loss {loss:.4f}', flush=True)
        if rank == 0 and (step % eval_interval == 0 or step == max_iters):
            val_loss, example = estimate_loss(model, data['val'])
            if not np.isfinite(val_loss):
                sys.exit(f'val loss is {val_loss} in step {step}: lower learning_rate')
            ckpt = {'meta': meta, 'n_layer': n_layer, 'n_head': n_head, 'example': example,
                    'step': step, 'val_loss': val_loss, 'best_loss': min(val_loss, best_loss)}
            ckpt |= {name: part.state_dict() for name, part in parts.items()}
            if val_loss < best_loss:
                best_loss = val_loss
                save('ckpt.pt', ckpt)
            save('latest.pt', ckpt)
            print(f'step {step}: val loss {val_loss:.4f}, saved', flush=True)

    if rank == 0:
        print(f'best val loss {best_loss:.4f}, in ckpt.pt. The model writes:')
        idx = model.eval().generate(torch.zeros(1, 1, dtype=torch.long, device=device), 200)
        print(''.join(meta['chars'][i] for i in idx[0]))

if __name__ == '__main__':
    try:
        train()
    except KeyboardInterrupt:
        sys.exit('stopped: resume = True goes on from the last step saved, if there is one')
