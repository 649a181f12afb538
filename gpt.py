# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""Build and train a GPT: a Transformer that predicts the next character from those before it.

    python gpt.py

The script trains on the files that prepare.py made, keeps the best model in ckpt.pt and prints a
sample. With the settings for a CPU, a run on two cores of an AMD EPYC takes eight to ten minutes
and reaches a validation loss of about 1.47 on Tiny Shakespeare (the mean of three runs).

Most parts have GPT-2's names. test_gpt.py shows what each part is for."""
import json
import os
import sys
from types import SimpleNamespace
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

# ---- settings: a small model for a CPU, a larger one for a GPU ----
device = 'cuda' if torch.cuda.is_available() else 'cpu'
gpu = device != 'cpu'
out_dir = '.'  # the folder of ckpt.pt (the best weights) and latest.pt (for resuming)
resume = False  # True: continue from latest.pt. False: start from scratch and replace both files
seed = 1337  # on one CPU, the same seed and number of threads give the same run, bit for bit
batch_size = 64 if gpu else 16  # B: windows in a batch
block_size = 256 if gpu else 128  # T: characters in a window, which is all that the model can see
max_iters = 1000 if gpu else 2500  # training steps
eval_interval = 500  # steps between evaluations; each, except that of step 0, saves the model
n_layer = 6 if gpu else 4  # blocks, one after the other
n_head = 6 if gpu else 2  # H: attention heads; n_embd must be a multiple of 2 * n_head
n_embd = 384 if gpu else 128  # C: channels, the length of the vector at each position
dropout = 0.2 if gpu else 0.0  # share of the outputs of attention and MLP that training sets to 0
warmup_iters = max_iters // 25  # the learning rate rises in these first steps, then falls
max_new_tokens = 300  # characters in the sample at the end
# Products in bfloat16, a 16-bit format, are faster where the hardware supports the format.
cpu_bfloat16 = torch.cpu.get_capabilities().get('avx512_bf16', False)
bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else cpu_bfloat16
flash = gpu  # True: one call of PyTorch computes attention, which is faster on a GPU

# Three switches turn on what GPT-2 does not have. The code of the switches is at the end of this
# file. With all three False, the model is nearly GPT-2, trained nearly as in Karpathy's lecture
# "Let's reproduce GPT-2". The docstrings of GPT and of train say what differs.
rotary = True  # queries and keys are rotated by their position. False: learned positions are added
even_windows = True  # training windows are spread evenly over the text. False: they are random
muon = True  # Muon trains the matrices of the blocks, AdamW the rest. False: AdamW trains all

# A weight decay shrinks the weights: each step first multiplies them by
# 1 - learning rate * weight decay.
muon_learning_rate = 1e-2  # of Muon and of the AdamW beside it
muon_weight_decay = 2.0 if gpu else 0.3  # of Muon only
learning_rate = 3e-3  # of AdamW, if muon is False
weight_decay = 0.1  # of AdamW, if muon is False

# ---- data ----
def load_data():
    """Return meta (the characters and the checksum of the text) and the tokens of both splits."""
    if not os.path.exists('meta.json'):
        sys.exit('There is no data yet: run python prepare.py first.')
    meta = json.load(open('meta.json'))
    train_data = np.memmap('train.bin', np.uint16, 'r')
    val_data = np.memmap('val.bin', np.uint16, 'r')[:262_144]  # enough to estimate a loss
    if block_size >= len(val_data):
        sys.exit(f'The text is too short for {block_size=}: at most {len(val_data) - 1} fits.')
    return meta, train_data, val_data

def get_batch(data, starts):
    """Return the windows of data that begin at starts, and their targets. Both are (B, T).

    A window holds T examples at once: the target of each character is the next character."""
    windows = [data[i:i + block_size + 1] for i in starts]
    idx = torch.tensor(np.stack(windows)).long().to(device)  # (B, T+1)
    return idx[:, :-1], idx[:, 1:]

def decode(tokens, chars):
    """Turn tokens into text: a token is the index of a character in chars."""
    return ''.join(chars[token] for token in tokens)

# ---- the model ----
# A shape such as (B, T, C) means B windows in a batch, T characters in a window and C channels at
# each character. Each of the H heads has D = C / H channels. The text has V different characters.
class CausalSelfAttention(nn.Module):
    """Communication: each position gathers what it needs from itself and earlier positions."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # for q, k and v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)  # mixes the heads
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        H, D = self.config.n_head, C // self.config.n_head
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D): what a position looks for
        k = k.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D): what it can be found by
        v = v.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D): what it gives when it is found
        if self.config.rotary:
            q, k = rotate(q), rotate(k)  # see the end of this file
        if flash:  # to edit the scores or the mask, set flash = False and edit the lines under else
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        else:
            # k.mT is k with its last two dimensions swapped: (B, H, D, T).
            wei = q @ k.mT / D ** 0.5  # (B, H, T, T): scores; the division keeps them small
            tril = torch.ones(T, T, device=x.device).tril()  # row t: 1 up to t, then 0
            wei = wei.masked_fill(tril == 0, -torch.inf)
            wei = wei.softmax(dim=-1)  # each row: weights from 0 to 1 that sum to 1
            y = wei @ v  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side
        return self.dropout(self.c_proj(y))

class MLP(nn.Module):
    """Computation: each position works by itself on what it has gathered."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = F.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)

class Block(nn.Module):
    """Communication, then computation. Both parts add their result to x: a residual connection.

    LayerNorm brings the channels of each position to mean 0 and variance 1. LayerNorm then applies
    a learned gain and bias."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x

class GPT(nn.Module):
    """Compute, for each character, a logit (score) for every character that may follow.

    config has vocab_size, block_size, n_layer, n_head, n_embd, dropout and rotary. With rotary
    False, this is GPT-2's model, except that
    - the linear layers have no biases,
    - dropout acts at the end of attention and of MLP only,
    - the linear layers, and wte with them, are initialized in PyTorch's default way,
    - GELU is exact, whereas GPT-2 approximates it."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # a vector for each character
        if not config.rotary:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)  # a vector for each position
            nn.init.normal_(self.wpe.weight, std=0.02)  # GPT-2's code has 0.01
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight  # tied: one table for input and output

    def forward(self, idx, targets=None):
        """Return the logits (B, T, V) for what follows each token of idx (B, T), and the loss.

        Without targets (B, T), the loss is None."""
        x = self.wte(idx)  # (B, T, C)
        if not self.config.rotary:
            x = x + self.wpe(torch.arange(idx.shape[1], device=idx.device))  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        x = self.ln_f(x)
        logits = self.lm_head(x)  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens tokens to each row of idx (B, T), one after the other."""
        self.eval()  # without dropout
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size:])  # the last window
            probs = logits[:, -1].softmax(dim=-1)  # (B, V): the last position has seen all
            idx_next = torch.multinomial(probs, num_samples=1)  # (B, 1)
            idx = torch.cat((idx, idx_next), dim=1)  # (B, T+1)
        return idx

# ---- training ----
@torch.no_grad()
def estimate_loss(model, data):
    """Return the mean loss over all of data, cut into adjacent windows of block_size tokens.

    An incomplete window at the end is left out."""
    model.eval()  # without dropout
    starts = range(0, len(data) - block_size, block_size)
    total = 0.0
    for i in range(0, len(starts), batch_size):
        x, y = get_batch(data, starts[i:i + batch_size])
        _, loss = model(x, y)
        total += loss.item() * len(x)
    return total / len(starts)

def make_optimizers(model):
    """Return the optimizers of model: AdamW, or Muon for the matrices and AdamW for the rest."""
    if not muon:
        return [torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)]
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [Muon(matrices, muon_learning_rate, momentum=0.9, weight_decay=muon_weight_decay),
            torch.optim.AdamW(others, muon_learning_rate, weight_decay=0.0)]

def lr_factor(step):
    """Return the learning rate of a step, as a share of the one in the settings."""
    warmup = min(1, (step + 1) / (warmup_iters + 1))
    return warmup * (1 - step / max_iters)  # after the warm-up, a straight line to 0

@torch.no_grad()
def probe(model):
    """Return a fingerprint of the model: its logits (T, V) for the tokens 0, 1, 2, ...

    The fingerprint is saved with the weights. If the same weights give other logits later, in
    restore or in sample.py, then the code of the model has changed."""
    model.eval()  # without dropout
    idx = torch.arange(model.config.block_size, device=device) % model.config.vocab_size  # (T,)
    logits, _ = model(idx[None])  # (1, T, V)
    return logits[0].cpu()

def save(name, checkpoint):
    """Write a temporary file, then rename it: a crash of the script cannot damage the old file."""
    temporary = f'{out_dir}/{name}.{os.getpid()}.tmp'  # another name in each process
    torch.save(checkpoint, temporary)
    os.replace(temporary, f'{out_dir}/{name}')

def restore(model, optimizers, fixed):
    """Load latest.pt into model and optimizers. Return the step of latest.pt, and best_loss.

    An error says what does not fit latest.pt: the text, the config, the batch size, the optimizers,
    what the model computes, or a max_iters that latest.pt has already passed."""
    if not os.path.exists(f'{out_dir}/latest.pt'):
        sys.exit(f'There is no {out_dir}/latest.pt to continue from: set resume = False.')
    latest = torch.load(f'{out_dir}/latest.pt', 'cpu')
    for name in fixed:
        assert fixed[name] == latest['fixed'].get(name), f'latest.pt was saved with another {name}'
    model.load_state_dict(latest['model'])
    same = torch.allclose(probe(model), latest['probe'], rtol=1e-3, atol=1e-3)
    assert same, 'latest.pt comes from a model with other code: its logits were different'
    assert latest['step'] <= max_iters, f'latest.pt is at step {latest["step"]}, beyond max_iters'
    for optimizer, state in zip(optimizers, latest['optimizers']):
        # Learning rate and weight decay stay those of the settings.
        optimizer.load_state_dict(optimizer.state_dict() | {'state': state})
    torch.set_rng_state(latest['rng'])
    # Without ckpt.pt, the next model is the best so far.
    best_loss = latest['best_loss'] if os.path.exists(f'{out_dir}/ckpt.pt') else torch.inf
    return latest['step'], best_loss

def train():
    """Build or restore the model, train it, print a sample, and return the best validation loss.

    With muon and even_windows False, training is that of Karpathy's lecture "Let's reproduce
    GPT-2", except that
    - a batch is much smaller, and the learning rate is higher,
    - the settings for a GPU have dropout,
    - the learning rate falls in a straight line to 0,
    - gradients are not clipped,
    - weight decay acts on all parameters,
    - beta2 of AdamW is 0.999 and not 0.95,
    - windows are random and not in the order of the text."""
    meta, train_data, val_data = load_data()
    config = SimpleNamespace(vocab_size=len(meta['chars']), block_size=block_size, n_layer=n_layer,
                             n_head=n_head, n_embd=n_embd, dropout=dropout, rotary=rotary)
    torch.manual_seed(seed)
    model = GPT(config).to(device)
    optimizers = make_optimizers(model)
    # fixed holds what must be the same when the run is resumed. dropout may change.
    kinds = [type(optimizer).__name__ for optimizer in optimizers]
    fixed = {'text': meta, 'batch_size': batch_size, 'kind of optimizer': kinds} | vars(config)
    del fixed['dropout']
    begin, best_loss = 0, torch.inf
    if resume:
        begin, best_loss = restore(model, optimizers, fixed)
    # A scheduler counts its own steps, from 0 on, also in a resumed run.
    schedulers = [LambdaLR(optimizer, lambda i: lr_factor(begin + i)) for optimizer in optimizers]
    os.makedirs(out_dir, exist_ok=True)
    n = sum(p.numel() for p in model.parameters())
    print(f'{n:,} parameters on {device}, steps {begin} to {max_iters}')

    def evaluate(step, best_loss):
        """Print the losses. Save the model, except at step 0. Return the best validation loss."""
        train_loss = estimate_loss(model, train_data[:len(val_data)])  # as much as val_data
        val_loss = estimate_loss(model, val_data)
        print(f'step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}')
        assert np.isfinite(val_loss), f'{val_loss=} at {step=}: this model is not saved'
        if step == 0:
            return best_loss
        best_loss = min(val_loss, best_loss)
        checkpoint = dict(
            config=vars(config), model=model.state_dict(), probe=probe(model), fixed=fixed,
            chars=meta['chars'], step=step, val_loss=val_loss, best_loss=best_loss,
            optimizers=[optimizer.state_dict()['state'] for optimizer in optimizers],
            rng=torch.get_rng_state())  # of the CPU only: a GPU's generator is not saved
        save('latest.pt', checkpoint)
        if val_loss == best_loss:
            save('ckpt.pt', checkpoint)
        return best_loss

    for step in range(begin, max_iters):
        if step % eval_interval == 0:
            best_loss = evaluate(step, best_loss)
        if even_windows:
            starts = even_starts(step, len(train_data) - block_size)  # see the end of this file
        else:
            starts = torch.randint(len(train_data) - block_size, (batch_size,)).tolist()
        x, y = get_batch(train_data, starts)
        model.train()  # with dropout
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            _, loss = model(x, y)
        loss.backward()
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if (step + 1) % 50 == 0:
            print(f'step {step + 1} of {max_iters}: batch loss {loss.item():.4f}')
    evaluate(max_iters, best_loss)

    best = torch.load(f'{out_dir}/ckpt.pt', device)
    model.load_state_dict(best['model'])
    idx = torch.zeros(1, 1, dtype=torch.long, device=device)  # the first character of chars
    tokens = model.generate(idx, max_new_tokens)[0].tolist()
    print(decode(tokens, meta['chars']))
    print(f'best: step {best["step"]}, val loss {best["val_loss"]:.4f}, saved in {out_dir}/ckpt.pt')
    return best['val_loss']

# ---- beyond GPT-2 ----
def rotate(x):
    """Rotate queries or keys x (B, H, T, D): rotary positions, arxiv.org/abs/2104.09864.

    Channels i and i + D/2 are the coordinates of a point in a plane. The point is turned around the
    origin by an angle that grows with the position: fast for the first i, very slowly for the last.
    The score of a query and a key then depends on what the two hold and on how far apart they
    stand. (The paper pairs neighboring channels, which is the same in another order.)"""
    T, D = x.shape[-2:]
    speed = 10000 ** (-torch.arange(0, D, 2, device=x.device) / D)  # (D/2): radians per position
    angle = torch.outer(torch.arange(T, device=x.device), speed)  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    a, b = x.split(D // 2, dim=-1)  # (B, H, T, D/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (B, H, T, D)

def even_starts(step, n):
    """Return B offsets from 0 to n - 1, at which the windows of this step start.

    The multiples of the golden ratio have fractional parts (0.62, 0.24, 0.85, 0.47, ...) that never
    bunch up: each new one falls into one of the widest gaps between the others. (Such fractions are
    a low-discrepancy sequence.) So all parts of the text are seen about equally often, no matter
    when training stops."""
    golden_ratio = (5 ** 0.5 + 1) / 2
    shift = np.random.default_rng(seed).random()  # each seed has other offsets
    i = np.arange(step * batch_size, (step + 1) * batch_size)
    fraction = (shift + i * golden_ratio) % 1  # (B,)
    return (fraction * n).astype(int)

def newton_schulz(G):
    """Return a matrix with the singular vectors of G, but with singular values of about 1.

    The singular values end between 0.68 and 1.21, except those that are almost 0. Each pass turns a
    singular value s into 3.4445 s - 4.775 s^3 + 2.0315 s^5. These numbers, which are from
    kellerjordan.github.io/posts/muon, let small values grow fast."""
    if G.shape[0] > G.shape[1]:
        return newton_schulz(G.mT).mT  # X @ X.mT is smaller if X has fewer rows than columns
    X = G.bfloat16() if bfloat16 else G
    X = X / (X.norm() + 1e-7)  # now no singular value is above 1
    for _ in range(5):  # addmm is a product and a sum in one call
        A = X @ X.mT
        P = torch.addmm(A, A, A, beta=-4.7750, alpha=2.0315)  # -4.7750 A + 2.0315 A A
        X = torch.addmm(X, P, X, beta=3.4445)  # 3.4445 X + P X
    return X

class Muon(torch.optim.Optimizer):
    """Momentum with steps of equally strong directions: kellerjordan.github.io/posts/muon.

    The gradient of a matrix is a sum of directions (pairs of singular vectors), a few of which are
    so strong that they drown out the others. The author of Muon supposes that rare but important
    directions are learned better if all directions are equally strong.

    With the same arguments, torch.optim.Muon(adjust_lr_fn='match_rms_adamw') takes the same steps,
    apart from rounding. But torch.optim.Muon always computes in bfloat16, which is slow on CPUs
    that lack the format."""

    def __init__(self, params, lr, momentum, weight_decay):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            momentum = group['momentum']
            for p in group['params']:
                if p.grad is None:
                    continue
                if 'mean' not in self.state[p]:
                    self.state[p]['mean'] = torch.zeros_like(p)
                mean = self.state[p]['mean']  # a running mean of the gradients
                mean.mul_(momentum).add_(p.grad, alpha=1 - momentum)
                ahead = momentum * mean + (1 - momentum) * p.grad  # Nesterov: one step ahead
                scale = 0.2 * max(p.shape) ** 0.5  # for entries of about 0.2, as in a step of AdamW
                p.mul_(1 - group['lr'] * group['weight_decay'])
                p.sub_(group['lr'] * scale * newton_schulz(ahead))

if __name__ == '__main__':
    if hasattr(sys.stdout, 'reconfigure'):  # a notebook's output has no such method
        sys.stdout.reconfigure(errors='replace', line_buffering=True)
    train()
