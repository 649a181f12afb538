# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""A GPT: a character-level, decoder-only Transformer, built and trained in one file.

    python gpt.py        (or uv run gpt.py, which first installs what the lines above name)

This trains on what prepare.py made, saves ckpt.pt beside it and prints a sample. It reaches val
loss 1.46 on Tiny Shakespeare in four minutes on 2 CPU cores with bfloat16. Shapes: B windows in a
batch, T characters in a window, C channels, H heads of D = C / H channels, V different characters.
"""
import json
import os
import sys
import tempfile
import time
import zipfile  # the format of torch.save
from hashlib import sha256

os.environ.setdefault('GOMP_SPINCOUNT', '10000')  # before torch: waiting threads free their core
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

device = 'cuda' if torch.cuda.is_available() else 'cpu'
gpu = 'cuda' in device  # two configurations: a small model for a CPU, a larger one for a GPU
avx512 = torch.backends.cpu.get_cpu_capability() == 'AVX512'  # whether PyTorch uses it here
bfloat16 = gpu or (avx512 and torch.cpu.get_capabilities()['avx512_bf16'])  # for matrix products
batch_size = 64 if gpu else 16  # windows in a step, over all processes together
block_size = 256 if gpu else 128  # characters in a window: how far back the model looks
max_iters = 1000 if gpu else 2200 if bfloat16 else 1900  # steps (a CPU without bfloat16 is slower)
eval_interval = 500  # steps between two evaluations on val; each saves a checkpoint
n_layer = 6 if gpu else 4  # blocks, one after the other
n_embd = 384 if gpu else 128  # channels
n_head = n_embd // 64  # attention heads in a block; rotate() needs an even n_embd / n_head
dropout = 0.2 if gpu else 0.0  # raise it when val loss is far above batch loss
learning_rate = 1e-2  # at the first step; it falls linearly to 0
weight_decay = 0.3  # each step multiplies the blocks' matrices by 1 - rate * weight_decay
compile = gpu  # torch.compile: a slower start, then faster steps
seed = 1337  # the same seed gives the same run, to the last bit on the same CPU
resume = False  # True continues from latest.pt, saved at the last evaluation
rank = int(os.environ.get('RANK', 0))  # under torchrun, the number of this process
world_size = int(os.environ.get('WORLD_SIZE', 1))  # and how many there are

# ---- data ----
def load_data():
    """What prepare.py made: meta.json (chars, sha256 of each split), and each split's tokens."""
    try:
        meta = json.load(open('meta.json'))
        data = {split: np.memmap(f'{split}.bin', np.uint16, 'r') for split in ('train', 'val')}
        hashes = [sha256(data[split]).hexdigest() for split in ('train', 'val')]
        assert hashes == meta['sha256'], 'damaged, or from different texts'
        return meta, data
    except Exception as e:  # whatever is wrong with these files, writing them anew fixes it
        sys.exit(f'cannot use train.bin, val.bin, meta.json ({e}): run python prepare.py')

def shuffle(data, begin):
    """Yield each step after begin with the starts (B,) of its windows. Each epoch skips a random
    offset, cuts the rest into adjacent pieces of T + 1 characters and shuffles the pieces."""
    n = len(data) // (block_size + 1) - 1  # pieces; one fewer than fit, to allow for the offset
    for step in range(begin + 1, max_iters + 1):
        epoch, i = divmod(step - 1, n // batch_size)
        if i == 0 or step == begin + 1:  # a new epoch, or resuming within one
            rng = np.random.default_rng((abs(seed), epoch))  # it takes no negative seed
            starts = rng.integers(block_size + 1) + (block_size + 1) * rng.permutation(n)
        yield step, starts[i * batch_size:(i + 1) * batch_size]

def get_batch(data, starts):
    """Inputs (B, T): the windows of data at starts (B,). Targets (B, T): the same, one later."""
    windows = torch.from_numpy(data[starts[:, None] + np.arange(block_size + 1)])  # (B, T+1)
    windows = windows.long().to(device)
    return windows[:, :-1], windows[:, 1:]

# ---- model ----
def rotate(x, angle):
    """Rotary positions, arxiv.org/abs/2104.09864: channels i and i + D/2 of x (.., T, D) are a
    point in a plane, turned by angle (T, D/2), which grows with the position. So positions enter
    the product of a turned q and a turned k only by their difference: by how far apart they are."""
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x.chunk(2, -1)  # (.., T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), -1)  # (.., T, D)

class CausalSelfAttention(nn.Module):
    """Communication, multi-head self-attention: each position looks at itself and those before."""
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(n_embd, n_embd, bias=False)  # what a position looks for
        self.key = nn.Linear(n_embd, n_embd, bias=False)  # what it can be found by
        self.value = nn.Linear(n_embd, n_embd, bias=False)  # what it passes on when found
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)  # mixes what the heads found

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) each
        q, k, v = [u.unflatten(2, (n_head, -1)).transpose(1, 2) for u in (q, k, v)]  # (B, H, T, D)
        T, D = q.shape[2:]
        frequency = 10000 ** (-torch.arange(0, D, 2, device=device) / D)  # (D/2): from 1 down
        angle = torch.outer(torch.arange(T, device=device), frequency)  # (T, D/2)
        q, k = [rotate(F.layer_norm(u, [D]), angle) for u in (q, k)]  # QK-norm, arxiv 2302.05442
        scores = q @ k.mT / D ** 0.5  # (B, H, T, T), none above sqrt(D), as |q| = |k| = sqrt(D)
        mask = scores.new_full((T, T), -torch.inf).triu(1)  # -inf for the future, else 0
        y = (scores + mask).softmax(-1) @ v  # (B, H, T, D): softmax(q @ k.mT / sqrt(D) + mask) @ v
        return self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C): the heads side by side

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
        self.ln_1 = nn.LayerNorm(n_embd, bias=False)
        self.attn = CausalSelfAttention()
        self.ln_2 = nn.LayerNorm(n_embd, bias=False)
        self.mlp = MLP()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attn(self.ln_1(x)))  # residual: x + ...; pre-norm: ln_1 first
        return x + self.dropout(self.mlp(self.ln_2(x)))

class GPT(nn.Module):
    """From characters to the logits of the character that follows each of them."""
    def __init__(self, vocab_size):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)  # token embedding: what a character is
        self.wpe = nn.Parameter(torch.zeros(block_size, n_embd))  # its place (without: loss + 0.01)
        self.blocks = nn.Sequential(*[Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd, bias=False)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: the same table for input and output
        nn.init.normal_(self.wte.weight, std=0.02)  # small: an even guess at first, loss ln V

    def forward(self, idx, targets=None):
        """Logits (B, T, V) of what follows each of idx (B, T); given targets, their mean loss."""
        x = self.wte(idx) + self.wpe[:idx.shape[1]]  # (B, T, C)
        logits = self.lm_head(self.ln_f(self.blocks(x)))  # (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.mT, targets)  # as (B, V, T)
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens sampled tokens to each row of idx (B, T)."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -block_size:])  # the model can look back no further
            probs = logits[:, -1].softmax(-1)  # (B, V)
            idx = torch.cat((idx, torch.multinomial(probs, 1)), 1)  # (B, T+1)
        return idx

def orthogonalize(G):
    """Turn G = U S V^T into about U V^T, so that no direction dominates a step: each pass takes
    every singular value s to 2.5 s - 1.5 s^3; five bring all but tiny ones into 0.2 to 1.25."""
    if len(G) > G.shape[1]:
        return orthogonalize(G.mT).mT  # transposed, X @ X.mT is the smaller product
    X = (G.bfloat16() if bfloat16 else G) / (G.norm() + 1e-7)  # singular values up to 1
    for _ in range(5):
        X = torch.addmm(X, X @ X.mT, X, beta=2.5, alpha=-1.5)  # 2.5 X - 1.5 X X^T X
    return X

class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: kellerjordan.github.io/posts/muon. By hand, since torch.optim.Muon
    always computes in bfloat16, slow on a CPU with only AVX2: 600 ms a step, here 20."""
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    momentum = self.state[p].setdefault('momentum', torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.1)  # a running mean of the gradients
                    update = orthogonalize(0.9 * momentum + 0.1 * p.grad)  # looks ahead: Nesterov
                    scale = 0.3 * max(p.shape) ** 0.5  # RMS 0.3, near Adam's 0.2: arxiv 2502.16982
                    p.sub_(group['lr'] * (scale * update + weight_decay * p))

def make_optimizers(model):
    """Muon for the blocks' matrices, Adam for the rest; train() sets the rate at each step."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p not in set(matrices)]
    return {'muon': Muon(matrices, defaults={}), 'adam': torch.optim.Adam(others)}

# ---- training ----
@torch.no_grad()
def estimate_loss(model, data):
    """The mean loss over data (its first 262,144 characters) in windows that do not overlap."""
    model.eval()  # no dropout, until the next model.train()
    starts = np.arange(0, len(data[:262144]) - block_size, block_size)
    batches = np.split(starts, range(batch_size, len(starts), batch_size))  # the last: the rest
    return sum(model(*get_batch(data, b))[1].item() * len(b) for b in batches) / len(starts)

def save(path, ckpt):
    """Write to a temporary folder, then move: an interrupted save never damages what is at path."""
    try:
        with tempfile.TemporaryDirectory(suffix='.tmp', dir='.') as folder:
            torch.save(ckpt, f'{folder}/{path}')
            os.replace(f'{folder}/{path}', path)
    except (OSError, RuntimeError) as e:
        sys.exit(f'cannot write {path} ({e}): is the disk full? An old file is intact')

def restore(parts, meta, val):
    """Load latest.pt and check that its val loss is reproduced. Returns its step and best loss."""
    try:
        assert not zipfile.ZipFile('latest.pt').testzip(), 'damaged: a checksum is wrong'
        latest = torch.load('latest.pt', device)  # data only: runs no code
        assert latest['meta'] == meta, 'it was trained on another text'
        assert latest['step'] < max_iters, 'it has reached max_iters'
        for name, part in parts.items():
            part.load_state_dict(latest[name])
        assert abs(estimate_loss(parts['model'], val) - latest['val_loss']) < 1e-5, 'another model'
        return latest['step'], latest['best_loss']
    except Exception as e:
        sys.exit(f'cannot resume from latest.pt: {e!r:.200}')

def check_settings(data):
    """Before training, exit on an impossible setting, with one line that says what is allowed."""
    assert min(n_layer, n_head, max_iters) > 0, f'{n_layer=}, {n_head=}, {max_iters=}: 1 or more'
    assert n_embd % (2 * n_head) == 0, f'2 * {n_head=} must divide {n_embd=}'
    assert 0 <= dropout < 1, f'{dropout=} must be 0 or more and below 1'
    assert eval_interval > 0, f'{eval_interval=} must be 1 or more'
    assert 0 < block_size < len(data['val']), f'{block_size=}: 1 to {len(data["val"]) - 1}'
    sizes = range(world_size, len(data['train']) // (block_size + 1), world_size)
    assert batch_size in sizes, f'{batch_size=} must be in {sizes}'
    assert device == 'cpu' or torch.accelerator.is_available(), f'{device=}: there is none here'

def train():
    """Train from scratch, or resume latest.pt; under torchrun, as one of world_size processes."""
    meta, data = load_data()
    check_settings(data)
    if world_size > 1 and gpu:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    torch.manual_seed(seed)
    model = GPT(len(meta['chars'])).to(device)
    optimizers = make_optimizers(model)
    parts = {'model': model} | optimizers
    begin, best_loss = restore(parts, meta, data['val']) if resume else (0, np.inf)
    net = torch.compile(model) if compile else model  # for the steps; the parameters are shared
    if world_size > 1:
        torch.distributed.init_process_group()
        net = nn.parallel.DistributedDataParallel(net)  # averages the gradients of the processes
    window, _ = get_batch(data['val'], np.array([0]))  # (1, T): sample.py must get the same logits
    t0 = time.time()

    for step, starts in shuffle(data['train'], begin):
        model.train()
        torch.manual_seed(seed + step * world_size + rank)  # the same dropout after a resume
        with torch.autocast('cuda' if gpu else 'cpu', torch.bfloat16, enabled=bfloat16):
            _, loss = net(*get_batch(data['train'], starts[rank::world_size]))  # our rank's share
        loss.backward()
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group['lr'] = learning_rate * (max_iters + 1 - step) / max_iters
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0 and step % 50 == 1:
            print(f'step {step}, {time.time() - t0:.0f} s: batch loss {loss:.4f}', flush=True)
        if rank == 0 and (step % eval_interval == 0 or step == max_iters):
            val_loss = estimate_loss(model, data['val'])
            assert val_loss < np.inf, f'{val_loss=} at {step=}: lower learning_rate'
            best_loss = min(best_loss, val_loss)
            ckpt = dict(meta=meta, n_layer=n_layer, n_head=n_head, step=step, val_loss=val_loss,
                        best_loss=best_loss, probe=(window, model(window)[0]),
                        **{name: part.state_dict() for name, part in parts.items()})
            if val_loss == best_loss:
                save('ckpt.pt', ckpt)  # the best so far, for sample.py
            save('latest.pt', ckpt)  # for resume; last, so after a crash in between both are redone
            print(f'step {step}: val loss {val_loss:.4f}, best {best_loss:.4f}', flush=True)
    if rank == 0:
        shown = [c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in meta['chars']]
        print(''.join(shown[i] for i in model.generate(window[:, :1], 200)[0]))

if __name__ == '__main__':
    try:
        train()
    except AssertionError as e:
        if not e.args:
            raise  # an edit's own, without a message
        sys.exit(e)  # one line, no traceback
    except (KeyboardInterrupt, UnicodeError) as e:  # the latter: the sample cannot be printed here
        sys.exit(f'stopped ({e!r}): resume = True goes on from latest.pt, if this run has saved it')
