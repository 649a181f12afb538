"""A GPT: a character-level, decoder-only Transformer, built and trained in one file.

    python gpt.py

trains on what prepare.py made, keeps the best weights in ckpt.pt and writes a sample. On Tiny
Shakespeare: val loss 1.46 in about five minutes on 2 CPU cores (AMD Zen 4, with bfloat16). In the
shapes, V is the number of different characters, D = C / H. test_gpt.py shows the ideas."""
import json
import os
import sys
import time
from itertools import islice
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

# ---- settings: a small model for a CPU, a larger one for a GPU ----
device = 'cuda' if torch.cuda.is_available() else 'cpu'
gpu = device != 'cpu'
batch_size = 64 if gpu else 16  # B: windows in a step
block_size = 256 if gpu else 128  # T: characters in a window, as far back as the model looks
max_iters = 1000 if gpu else 2500  # steps of training
eval_interval = 500  # steps between evaluations; each saves, and Ctrl-C loses what came after
n_layer = 6 if gpu else 4  # blocks, one after the other
n_head = 6 if gpu else 2  # H: attention heads in a block, of D = C / H channels each
n_embd = 384 if gpu else 128  # C: channels, the length of each position's vector
dropout = 0.2 if gpu else 0.0  # share of outputs set to 0 at random; raise it to overfit less
learning_rate = 1e-2  # of both optimizers at the first step; it falls linearly to 0
weight_decay = 2.0 if gpu else 0.3  # a step shrinks the blocks' matrices by learning rate * this
seed = 1337  # the same seed gives the same run, to the last bit on the same CPU and threads
resume = False  # True: go on from latest.pt. False: start anew, latest.pt and ckpt.pt are replaced
compile = False  # torch.compile: a slower start, then faster steps
cpu_bfloat16 = torch.cpu.get_capabilities().get('avx512_bf16', False)  # in hardware?
bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else cpu_bfloat16

# ---- data ----
def load_data():
    """What prepare.py made: meta.json (chars, sha256 of input.txt), the tokens of train and val."""
    if not os.path.exists('meta.json'):
        sys.exit('no data yet: run python prepare.py')
    meta = json.load(open('meta.json'))
    train, val = [np.memmap(f'{split}.bin', np.uint16, 'r') for split in ('train', 'val')]
    if block_size >= len(val):
        sys.exit(f'the text is too short for {block_size=}: at most {len(val) - 1} fits')
    return meta, train, val[:262144]  # enough to estimate a loss

def window_starts(data):
    """Yield, without end, where the windows for training start. In each epoch the data are cut into
    adjacent pieces, from a random offset on, and the pieces are taken in random order."""
    rng = np.random.default_rng(seed)
    size = block_size + 1  # of a piece: a window and the target of its last character
    n = len(data) // size - 1  # pieces: one fewer than fit, to leave room for the offset
    while True:
        offset = rng.integers(size)
        yield from offset + size * rng.permutation(n)

def get_batch(data, starts):
    """Inputs (B, T): the windows of data at starts (B,). Targets (B, T): the next characters."""
    idx = torch.tensor(np.stack([data[i:i + block_size + 1] for i in starts])).long().to(device)
    return idx[:, :-1], idx[:, 1:]  # idx (B, T+1) without its last and without its first

# ---- model ----
def norm(x):
    """LayerNorm without gain and bias: the last dimension gets mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:])

def rotate(x, angle):
    """Rotary positions, arxiv.org/abs/2104.09864: channels i and i + D/2 of x (.., T, D) are a
    point in a plane, turned by angle (T, D/2). A score then depends on distance, not on place."""
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x.chunk(2, -1)  # (.., T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), -1)  # (.., T, D)

class CausalSelfAttention(nn.Module):
    """Communication: each position looks at itself and those before, each head for other things."""
    def __init__(self):
        super().__init__()
        assert n_embd and n_embd % (2 * n_head) == 0, f'{n_embd=} is no multiple of 2 * {n_head=}'
        # three Linears where GPT-2 has a fused one, as Muon (below) treats each matrix by itself
        self.query = nn.Linear(n_embd, n_embd, bias=False)  # what a position looks for
        self.key = nn.Linear(n_embd, n_embd, bias=False)  # what it can be found by
        self.value = nn.Linear(n_embd, n_embd, bias=False)  # what it passes on when found
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)  # mixes what the heads have found
        D = n_embd // n_head
        speed = 10000 ** (-torch.arange(0, D, 2) / D)  # (D/2), radians: fast for near, slow for far
        self.angle = torch.outer(torch.arange(block_size), speed).to(device)  # (T, D/2)
    def forward(self, x):
        B, T, _ = x.shape
        q = self.query(x).view(B, T, n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(B, T, n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).view(B, T, n_head, -1).transpose(1, 2)  # (B, H, T, D)
        # QK-norm, arxiv.org/abs/2302.05442: q and k get length sqrt(D); no score exceeds sqrt(D)
        q = rotate(norm(q), self.angle[:T])
        k = rotate(norm(k), self.angle[:T])
        if gpu:  # FlashAttention: as below, without storing all scores; slower on a CPU
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT / q.shape[-1] ** 0.5  # (B, H, T, T): cost quadratic in T
            # hide what it must predict: half the work is wasted, but a loop over t would be slower
            future = torch.ones(T, T).triu(1).bool()  # True above the diagonal
            y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # heads side by side: (B, T, C)

class MLP(nn.Module):
    """Computation: a feed-forward network that sees each position alone."""
    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=False)
    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))  # (B, T, 4C) inside, (B, T, C) at the end

class Block(nn.Module):
    """Communicate, then compute; each adds to what is there."""
    def __init__(self):
        super().__init__()
        self.attn = CausalSelfAttention()
        self.mlp = MLP()
        self.dropout = nn.Dropout(dropout)
    def forward(self, x):
        x = x + self.dropout(self.attn(norm(x)))  # residual: x + ...; pre-norm: x passes unchanged
        return x + self.dropout(self.mlp(norm(x)))

class GPT(nn.Module):
    """From characters to the logits of the character that follows each of them."""
    def __init__(self, vocab_size):
        super().__init__()
        self.wte = nn.Parameter(0.02 * torch.randn(vocab_size, n_embd))  # small: a fair first guess
        self.blocks = nn.Sequential(*[Block() for _ in range(n_layer)])
    def forward(self, idx, targets=None):
        """Logits (B, T, V) of what follows each of idx (B, T); given targets, their mean loss."""
        x = F.embedding(idx, self.wte)  # (B, T, C), as wte[idx], whose gradient is not reproducible
        logits = norm(self.blocks(x)) @ self.wte.mT  # (B, T, V); tied weights: wte again
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens tokens to each row of idx (B, T). It needs the last logits only."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -block_size:])  # the model can look back no further
            idx_next = torch.multinomial(logits[:, -1].softmax(-1), 1)  # (B, 1)
            idx = torch.cat((idx, idx_next), 1)  # (B, T+1)
        return idx

# ---- optimizers ----
def orthogonalize(G):
    """Make G's singular values about equal, so that no direction dominates a step. A pass turns
    each singular value s into 2.5 s - 1.5 s^3. After five, all but tiny ones are in 0.2 .. 1.25."""
    if len(G) > G.shape[1]:
        return orthogonalize(G.mT).mT  # now wide, X @ X.mT is the smaller product
    X = (G.bfloat16() if bfloat16 else G) / (G.norm() + 1e-7)  # singular values: at most 1
    for _ in range(5):
        X = torch.addmm(X, X @ X.mT, X, beta=2.5, alpha=-1.5)  # 2.5 X - 1.5 X X^T X
    return X * G.shape[1] ** 0.5  # its entries get RMS 1 or so, whatever the shape

class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: kellerjordan.github.io/posts/muon. The factor 0.3 makes steps as
    large as Adam's. (torch.optim.Muon is always in bfloat16, 30 times slower on many CPUs.)"""
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    momentum = self.state[p].setdefault('momentum', torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.1)  # 0.9 momentum + 0.1 gradient, a running mean
                    update = orthogonalize(0.9 * momentum + 0.1 * p.grad)  # Nesterov: again
                    p.sub_(group['lr'] * (0.3 * update + group['weight_decay'] * p))

def make_optimizers(model):
    """Muon for the matrices of the blocks, Adam for all other parameters, here only wte."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [Muon(matrices, dict(lr=learning_rate, weight_decay=weight_decay)),
            torch.optim.Adam(others, lr=learning_rate)]

# ---- training ----
@torch.no_grad()
def estimate_loss(model, data):
    """The mean loss over data, cut into adjacent windows. The model is in eval mode."""
    x, y = get_batch(data, range(0, len(data) - block_size, block_size))  # (N, T) each
    total = 0
    for inputs, targets in zip(x.split(batch_size), y.split(batch_size)):
        _, loss = model(inputs, targets)
        total += loss.item() * len(inputs)
    return total / len(x)

def save(path, **parts):
    """Write another file, then rename it to path: whatever interrupts this, path stays whole."""
    torch.save(parts, f'{path}.{os.getpid()}.tmp')
    os.replace(f'{path}.{os.getpid()}.tmp', path)

def restore(model, optimizers, config):
    """Load weights and momenta from latest.pt; learning rates and decay are those of this file."""
    latest = torch.load('latest.pt', device)
    assert latest['config'] == config, 'latest.pt is of another text, model or batch_size'
    model.load_state_dict(latest['model'])
    for optimizer, state in zip(optimizers, latest['states'], strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {'state': state})
    return latest['step'], latest['best_loss']

def train():
    """Load the data, build or restore the model, take the steps; evaluate and save now and then."""
    meta, train_data, val_data = load_data()
    config = meta | dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size,
                         batch_size=batch_size)
    torch.manual_seed(seed)
    model = GPT(len(meta['chars'])).to(device)
    optimizers = make_optimizers(model)
    begin, best_loss = restore(model, optimizers, config) if resume else (0, torch.inf)
    schedules = [LambdaLR(opt, lambda i: 1 - (begin + i) / max_iters) for opt in optimizers]
    starts = islice(window_starts(train_data), begin * batch_size, None)  # skips those used before
    net = torch.compile(model, disable=not compile)  # shares its parameters with model
    print(f'step {begin} on {device}, {sum(p.numel() for p in model.parameters()):,} parameters; '
          f'{len(train_data):,} train, {len(val_data):,} val, {len(meta["chars"])} different chars')
    t0 = time.time()
    for step in range(begin + 1, max_iters + 1):
        model.train()
        torch.manual_seed(seed + step)  # the same dropout in a resumed run
        x, y = get_batch(train_data, islice(starts, batch_size))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            _, loss = net(x, y)
        loss.backward()
        for part in optimizers + schedules:
            part.step()  # the weights change, then the rates
        model.zero_grad()
        if step % 50 == 0:
            assert loss < torch.inf, f'{loss=} at {step=}'
            print(f'step {step} of {max_iters}: batch loss {loss:.4f}, {time.time() - t0:.0f} s, '
                  f'about {(time.time() - t0) / (step - begin) * (max_iters - step):.0f} s left')
        if step % eval_interval == 0 or step == max_iters:
            model.eval()  # no dropout until the next step
            train_loss = estimate_loss(model, train_data[:len(val_data)])  # as long as val
            val_loss = estimate_loss(model, val_data)
            assert val_loss < torch.inf, f'{val_loss=} at {step=}'
            print(f'step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}')
            if val_loss < best_loss or not os.path.exists('ckpt.pt'):  # or is moved away
                best_loss = val_loss
                save('ckpt.pt', config=config, model=model.state_dict(),
                     probe=(x[:1], model(x[:1])[0].detach()))  # sample.py compares its logits
            save('latest.pt', config=config, model=model.state_dict(), step=step,
                 best_loss=best_loss, states=[opt.state_dict()['state'] for opt in optimizers])
    idx = model.eval().generate(torch.tensor([[0]], device=device), 200)  # after chars[0]
    print(''.join(meta['chars'][i] for i in idx[0]))
    print(f'ckpt.pt holds the best weights, val loss {best_loss:.4f}; next: python sample.py')

if __name__ == '__main__':
    getattr(sys.stdout, 'reconfigure', dict)(errors='replace', line_buffering=True)  # unknown: ?
    train()
