# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""A GPT: the whole model and its training.

    python gpt.py

trains a character-level, decoder-only Transformer on train.bin and keeps the best weights in ckpt.pt. On
Tiny Shakespeare it reaches val loss 1.48 in 2.5 minutes on 2 CPU cores (AMD EPYC, AVX-512).
"""
import io
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
batch_size = 64 if device == 'cuda' else 8  # windows of text in one step, over all processes together
block_size = 256  # characters in a window: how far back the model can look
max_iters = 1000 if device == 'cuda' else 1800  # steps of training, over which the learning rates fall to 0
eval_interval = 250 if device == 'cuda' else 300  # steps between two evaluations, each of which saves ckpt.pt
n_layer = 6 if device == 'cuda' else 4  # blocks, one on top of the other
n_head = 6 if device == 'cuda' else 2  # attention heads in a block
n_embd = 384 if device == 'cuda' else 128  # channels: how many numbers describe a character
dropout = 0.2 if device == 'cuda' else 0.0  # raise it when val loss stays far above train loss
learning_rate = 1e-2  # for embeddings and norms, which AdamW trains
matrix_lr = 3e-2  # for the matrices in the blocks, which Muon trains
weight_decay = 0.1  # each step shrinks the matrices by their rate times this, against overfitting
warmup_iters = 20  # steps in which the learning rates rise from 0
muon = True  # False gives the matrices to AdamW, which wants a matrix_lr of about 2e-3
rotary = 1.0  # how fast q and k turn with their position; at 0.0 they don't
qk_norm = True  # False leaves q and k as long as they are
seed = 1337  # the same seed gives the same run, to the last bit on the same CPU
resume = False  # True goes on from ckpt.pt, as if the run had never stopped

# ---- data ----
def load_data():
    """What prepare.py made: the characters and, for each split, an array of tokens that stays on disk."""
    try:
        meta = json.loads(pathlib.Path('meta.json').read_text())
        data = {split: np.memmap(f'{split}.bin', np.uint16, 'r') for split in ('train', 'val')}
        tokens = {split: len(data[split]) for split in data}
        assert isinstance(meta['chars'], str) and meta.get('tokens', tokens) == tokens, 'not of one text'
    except Exception as e:  # whatever is wrong with the files, making them anew mends it
        sys.exit(f'cannot use train.bin, val.bin and meta.json ({e!r:.200}): run python prepare.py')
    if min(tokens.values()) <= block_size:
        sys.exit(f'block_size = {block_size} does not fit into {tokens}: lower it, or prepare a longer text')
    return meta['chars'], data

def get_batch(data, starts, vocab_size):
    """The windows of data that begin at starts (B,): inputs and, one character on, targets, each (B, T)."""
    rows = torch.from_numpy(data[starts[:, None] + np.arange(block_size + 1)].astype(np.int64))  # (B, T+1)
    if rows.max() >= vocab_size:
        sys.exit(f'token {rows.max()} in the data has no character in meta.json: run python prepare.py')
    rows = (rows.pin_memory() if device == 'cuda' else rows).to(device, non_blocking=True)  # pinned: no wait
    return rows[:, :-1], rows[:, 1:]

# ---- model ----
class Block(nn.Module):
    """Communication between characters, then computation on each; both add to what is there."""
    def __init__(self):
        super().__init__()
        self.n_head, self.qk_norm, D = n_head, qk_norm, n_embd // n_head
        self.ln_1 = nn.LayerNorm(n_embd, bias=False)
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)  # queries, keys and values in one product
        self.attn_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.ln_2 = nn.LayerNorm(n_embd, bias=False)
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.mlp_proj = nn.Linear(4 * n_embd, n_embd, bias=False)
        self.dropout = nn.Dropout(dropout)
        # Rotary positions, arxiv.org/abs/2104.09864: channels i and i + D/2 turn, the further the later.
        angle = torch.outer(rotary * torch.arange(block_size), 10000 ** -(torch.arange(0, D, 2) / D))
        self.register_buffer('cos', angle.cos().repeat(1, 2)[:, None], persistent=False)  # (T, 1, D)
        self.register_buffer('sin', torch.cat((-angle.sin(), angle.sin()), dim=1)[:, None], persistent=False)

    def attn(self, x):
        """Each character asks those up to itself, and takes in what the ones that match have to say."""
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        qk, v = self.c_attn(x).view(B, T, 3 * H, D).split((2 * H, H), dim=2)  # (B, T, 2H, D), (B, T, H, D)
        qk = F.layer_norm(qk, (D,)) if self.qk_norm else qk  # keeps scores bounded, arxiv.org/abs/2302.05442
        qk = qk * self.cos[:T] + qk.roll(D // 2, dims=-1) * self.sin[:T]  # rotary; sin carries the sign
        q, k = qk.transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        return self.attn_proj(y.transpose(1, 2).reshape(B, T, C))

    def forward(self, x):
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.dropout(self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)))))

class GPT(nn.Module):
    """Characters in; out, for each of them, the logits of the next."""
    def __init__(self, vocab_size):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # what a character is
        self.wpe = nn.Embedding(block_size, n_embd)  # where in the window it stands
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block() for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd, bias=False)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one table reads characters in and writes them out
        for name, p in self.named_parameters():
            if p.ndim == 2:  # as in GPT-2: the more projections add up in x, the smaller each begins
                nn.init.normal_(p, std=0.02 * (2 * n_layer) ** -0.5 if 'proj' in name else 0.02)

    def forward(self, idx, targets=None):
        """Logits (B, T, V) for what follows each of idx (B, T); the mean cross-entropy to targets (B, T)."""
        x = self.dropout(self.wte(idx) + self.wpe.weight[:idx.shape[1]])  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))  # (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

# ---- training ----
class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalized, so that a matrix learns in all its directions at one rate:
    kellerjordan.github.io/posts/muon. All matrices consist of C x C squares, which take it in one batch."""
    @torch.no_grad()
    def step(self):
        matrices, lr = self.param_groups[0]['params'], self.param_groups[0]['lr']
        squares = lambda matrix: [s for rows in matrix.split(n_embd) for s in rows.split(n_embd, dim=1)]
        grad = torch.stack([s for p in matrices for s in squares(p.grad)])  # (12 * n_layer, C, C)
        momentum = self.state[matrices[0]].setdefault('momentum', torch.zeros_like(grad)).lerp_(grad, 0.05)
        X = F.normalize(grad.lerp(momentum, 0.95), dim=(1, 2)) / 1.01  # Nesterov's; all singular values < 1
        # Three polynomials in a row draw them all towards 1 (Polar Express, arxiv.org/abs/2505.16932).
        for a, b, c in ((8.2872, -23.5959, 17.3004), (4.1071, -2.9478, 0.5448), (3.9487, -2.9089, 0.5518)):
            A = X @ X.mT
            X = a * X + torch.baddbmm(A, A, A, beta=b, alpha=c) @ X
        for square, step in zip([s for p in matrices for s in squares(p)], X):
            square.mul_(1 - lr * weight_decay).add_(step, alpha=-lr)

@torch.no_grad()
def estimate_loss(model, data, split):
    """The mean loss over all of val, or as much of train, in adjacent windows (at most 2**18 characters)."""
    starts = np.arange(0, min(2**18, len(data['train']), len(data['val'])) - block_size, block_size)
    model.eval()
    total = sum(model(*get_batch(data[split], batch, model.wte.num_embeddings))[1].item() * len(batch)
                for batch in np.array_split(starts, -(-len(starts) // batch_size)))
    model.train()
    return total / len(starts)

def train():
    """Train from scratch or from ckpt.pt on; under torchrun, as one of world_size processes."""
    rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    if n_embd % (2 * n_head):
        sys.exit(f'n_embd = {n_embd} is not divisible into n_head = {n_head} heads of even size: change one')
    if batch_size % world_size:
        sys.exit(f'batch_size = {batch_size} is not divisible among {world_size} processes: change one')
    chars, data = load_data()
    config = {k: v for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, str))}
    config['vocab_size'] = vocab_size = len(chars)
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    torch.set_float32_matmul_precision('medium')  # float32 products on the fastest units the machine has
    torch.empty(2**23 - 2**14)  # to free 32 MB once makes glibc reuse memory (man mallopt): 7% faster
    torch.manual_seed(seed)
    model = GPT(vocab_size).to(device)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [model.wte.weight, model.wpe.weight] + [p for p in model.parameters() if p.ndim == 1]
    adamw = lambda params, decay: torch.optim.AdamW(params, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    parts = {'model': model, 'others': adamw(others, 0.0),
             'matrices': Muon(matrices, defaults={}) if muon else adamw(matrices, weight_decay)}
    ckpt = {'config': config, 'chars': chars, 'val_loss': np.inf, 'latest': {'step': 0}}
    if resume:
        try:
            old = dict(torch.load('ckpt.pt', map_location=device, weights_only=True))
            assert chars == old['chars'], 'it has learned other characters than those in meta.json'
            for name in ('block_size', 'n_layer', 'n_head', 'n_embd', 'muon', 'rotary', 'qk_norm'):
                assert config[name] == old['config'][name], f'it has {name} = {old["config"][name]}'
            for name in parts:
                parts[name].load_state_dict(old['latest'][name])
            ckpt |= {name: old[name] for name in ('model', 'step', 'val_loss', 'latest')}
        except Exception as e:  # whatever is wrong with it
            sys.exit(f'cannot resume from ckpt.pt ({e!r:.200}): mend it, or set resume = False to replace it')
    net = torch.compile(model) if device == 'cuda' else model
    if world_size > 1:
        torch.distributed.init_process_group('nccl' if device == 'cuda' else 'gloo')
    if rank == 0:
        print(f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {device}, '
              f'{batch_size * block_size:,} characters in a batch', flush=True)

    saved, since_step, since = 'nothing new is saved', ckpt['latest']['step'], time.perf_counter()
    try:
        for step in range(since_step + 1, max_iters + 1):
            # All chance comes from the step's number: resuming needs no state, N processes share one batch.
            rng = np.random.default_rng((seed, step))
            starts = rng.integers(len(data['train']) - block_size, size=batch_size)[rank::world_size]
            torch.manual_seed(rng.integers(2**32) + rank)  # for dropout
            with torch.autocast('cuda', torch.bfloat16, enabled=device == 'cuda'):
                _, loss = net(*get_batch(data['train'], starts, vocab_size))
            loss.backward()
            for p in model.parameters() if world_size > 1 else ():  # go on with the mean gradient
                torch.distributed.all_reduce(p.grad.div_(world_size))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scale = min(step / (warmup_iters + 1), 1) * (1 - (step - 1) / max_iters)  # up, then down to 0
            for optimizer, lr in ((parts['matrices'], matrix_lr), (parts['others'], learning_rate)):
                optimizer.param_groups[0]['lr'] = scale * lr
                optimizer.step()
                optimizer.zero_grad()

            evaluate = step % eval_interval == 0 or step == max_iters
            seconds = time.perf_counter() - since
            if rank > 0 or not (evaluate or seconds > 3):  # a sign of life every 3 seconds
                continue
            losses = {k: estimate_loss(model, data, k) for k in data} if evaluate else {'batch': loss.item()}
            if not np.isfinite(sum(losses.values())):
                sys.exit(f'the loss is not finite in step {step}: lower learning_rate and matrix_lr')
            if evaluate:
                if losses['val'] < ckpt['val_loss']:
                    best = {name: p.clone() for name, p in model.state_dict().items()}
                    ckpt |= {'model': best, 'step': step, 'val_loss': losses['val']}
                ckpt['latest'] = {'step': step} | {name: part.state_dict() for name, part in parts.items()}
                torch.save(ckpt, buffer := io.BytesIO())  # first to memory: a full disk is then a clear error
                pathlib.Path('ckpt.pt.tmp').write_bytes(buffer.getbuffer())
                os.replace('ckpt.pt.tmp', 'ckpt.pt')  # in one step: at any moment a whole ckpt.pt is there
                saved = f'ckpt.pt has step {step}, and resume = True goes on from it'
            pace = seconds / (step - since_step)
            print(f'step {step} of {max_iters}:', ', '.join(f'{k} loss {v:.4f}' for k, v in losses.items()),
                  f'({pace * 1e3:.0f} ms a step, {batch_size * block_size / pace:,.0f} characters a second, '
                  f'{pace * (max_iters - step):.0f} s left)', flush=True)
            since, since_step = time.perf_counter(), step
    except (KeyboardInterrupt, OSError) as e:  # an OSError, when the disk is full
        if rank == 0:
            print(f'stopped in step {step} by {e!r}; {saved}', file=sys.stderr)
        sys.exit(130 if isinstance(e, KeyboardInterrupt) else 1)
    if rank == 0:
        print(f'best val loss {ckpt["val_loss"]:.4f}, in ckpt.pt. To see what it writes: python sample.py')
    if world_size > 1:
        torch.distributed.destroy_process_group()

if __name__ == '__main__':
    train()
