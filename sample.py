# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""Let the trained GPT write.

    python sample.py

The script continues the text `start` with the weights in ckpt.pt. The classes are those of gpt.py,
line by line, but they have no dropout, no flash, no initialization, no loss and no generate.
A change of the model must be made in both files.

The classes also have a cache, and comments mark where. Each attention layer keeps the keys and
values of all positions so far, because these never change. A new character then costs the work of
one position. generate in gpt.py has no cache and computes the whole window again. The argument pos
is the position of the first new character. Each layer has one cache, so a block cannot be used
twice. The attention weights wei are kept for print_attention."""
import os
import sys
from types import SimpleNamespace
import torch
from torch import nn
from torch.nn import functional as F

# ---- settings ----
out_dir = '.'  # the folder where gpt.py has put ckpt.pt
# start is the text to continue, and '' begins a new text. To continue the text of a file, write
# open('name', encoding='utf-8-sig').read() instead of ''.
start = ''
num_samples = 1  # the first is printed while it is written, the others at the end
max_new_tokens = 500  # characters to write
temperature = 0.8  # below 1, likely characters become even likelier; 0 takes the likeliest only
top_k = None  # None, or a number: choose among this many of the likeliest characters
top_p = 1.0  # choose among the fewest characters with a total probability above this; 1.0 is all
seed = 1337  # on the same machine, the same seed gives the same text
show = ''  # 'attention': print a picture of where each character of start looks
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- the model of gpt.py, with a cache ----
class CausalSelfAttention(nn.Module):
    """Communication: each position gathers what it needs from itself and earlier positions."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # for q, k and v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)  # mixes the heads
        if config.rotary:  # cache: the angles of all positions, which gpt.py computes in each call
            self.register_buffer('cos_sin', rotary_table(config), persistent=False)

    def forward(self, x, pos):
        B, T, C = x.shape
        H, D = self.config.n_head, C // self.config.n_head
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D): what a position looks for
        k = k.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D): what it can be found by
        v = v.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D): what it gives when it is found
        if self.config.rotary:
            cos_sin = self.cos_sin[:, pos:pos + T]  # (2, T, D/2): each position has its own angles
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        if pos == 0:  # cache: make room for the keys and values of a window
            self.keys = x.new_empty(B, H, self.config.block_size, D)
            self.values = x.new_empty(B, H, self.config.block_size, D)
        self.keys[:, :, pos:pos + T] = k  # cache: add the new keys and values
        self.values[:, :, pos:pos + T] = v
        k = self.keys[:, :, :pos + T]  # (B, H, pos+T, D). cache: use all so far
        v = self.values[:, :, :pos + T]
        # k.mT is k with its last two dimensions swapped: (B, H, D, pos+T).
        wei = q @ k.mT / D ** 0.5  # (B, H, T, pos+T): scores; the division keeps them small
        if T > 1:  # cache: one new position alone has no future to hide
            tril = torch.ones(T, pos + T, device=x.device).tril(pos)  # row t: 1 up to pos + t
            wei = wei.masked_fill(tril == 0, -torch.inf)
        wei = wei.softmax(dim=-1)  # each row: weights from 0 to 1 that sum to 1
        self.wei = wei  # for print_attention
        y = wei @ v  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side
        return self.c_proj(y)

class MLP(nn.Module):
    """Computation: each position works by itself on what it has gathered."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        x = F.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.c_proj(x)  # (B, T, C)

class Block(nn.Module):
    """Communication, then computation. Both parts add their result to x: a residual connection."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, pos):
        x = x + self.attn(self.ln_1(x), pos)
        x = x + self.mlp(self.ln_2(x))
        return x

class GPT(nn.Module):
    """Compute, for each character, a logit (score) for every character that may follow."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # a vector for each character
        if not config.rotary:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)  # a vector for each position
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight  # tied: one table for input and output

    def forward(self, idx, pos):
        """Return the logits (B, T, V) for what follows each token of idx (B, T).

        The first token stands at pos. Earlier calls have cached what stands before pos."""
        x = self.wte(idx)  # (B, T, C)
        if not self.config.rotary:
            x = x + self.wpe(torch.arange(pos, pos + idx.shape[1], device=idx.device))  # (B, T, C)
        for block in self.blocks:
            x = block(x, pos)  # (B, T, C)
        x = self.ln_f(x)
        return self.lm_head(x)  # (B, T, V)

def rotate(x, cos_sin):
    """Rotate queries or keys x (B, H, T, D) by the angles of their positions: see gpt.py."""
    cos, sin = cos_sin  # (T, D/2) each
    a, b = x.split(x.shape[-1] // 2, dim=-1)  # (B, H, T, D/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (B, H, T, D)

def rotary_table(config):
    """Return the cosines and sines of the angles of all positions: (2, block_size, D/2)."""
    D = config.n_embd // config.n_head
    speed = 10000 ** (-torch.arange(0, D, 2) / D)  # (D/2): radians per position
    angle = torch.outer(torch.arange(config.block_size), speed)  # (block_size, D/2)
    return torch.stack((angle.cos(), angle.sin()))

def load_model():
    """Return the model in ckpt.pt and its characters."""
    if not os.path.exists(f'{out_dir}/ckpt.pt'):
        sys.exit(f'There is no {out_dir}/ckpt.pt yet: run python gpt.py first.')
    ckpt = torch.load(f'{out_dir}/ckpt.pt', device)  # torch.load refuses files that contain code
    model = GPT(SimpleNamespace(**ckpt['config'])).to(device).eval()
    model.load_state_dict(ckpt['model'])
    for module in model.modules():
        if isinstance(module, nn.Linear):  # weights stored by columns are faster for short inputs
            module.weight.data = module.weight.t().contiguous().t()
    # The tokens are those of probe in gpt.py. As in generate, the model reads many tokens at once
    # and then, with the cache, a single one.
    S = model.config.block_size
    idx = torch.arange(S, device=device)[None] % model.config.vocab_size  # (1, S)
    first = model(idx[:, :-1], 0)
    last = model(idx[:, -1:], S - 1)
    logits = torch.cat((first, last), dim=1)  # (1, S, V)
    if not torch.allclose(logits[0], ckpt['probe'], rtol=1e-3, atol=1e-3):
        sys.exit('ckpt.pt comes from another model: make your changes to gpt.py in sample.py too.')
    return model, ckpt['chars']

# ---- sampling ----
def encode(text, chars):
    """Turn text into tokens: a token is the index of a character in chars."""
    unknown = set(text) - set(chars)
    if unknown:
        sys.exit(f'start has {sorted(unknown)}, which the training text does not have.')
    return [chars.index(char) for char in text]

def decode(tokens, chars):
    """Turn tokens into text."""
    return ''.join(chars[token] for token in tokens)

def choose(logits):
    """Sample one token (B, 1) for each row of logits (B, V)."""
    logits, tokens = logits.sort(descending=True)  # (B, V) each, the likeliest first
    if top_k is not None:
        logits, tokens = logits[:, :top_k], tokens[:, :top_k]
    divisor = max(temperature, 1e-9)  # a temperature of 0 must not divide by 0
    probs = (logits / divisor).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # the probability of all likelier tokens together
    probs[before > top_p] = 0  # the likelier tokens alone exceed top_p
    choice = torch.multinomial(probs, num_samples=1)  # (B, 1): drawn in proportion to probs
    return tokens.gather(1, choice)

def generate(model, idx):
    """Yield the tokens (B, 1) that continue idx (B, T), one after the other.

    The model reads the last S = block_size characters of a long idx. Whenever the window is full,
    the last S / 2 characters begin a new window, and the model reads them at new positions."""
    S = model.config.block_size
    idx = idx[:, -S:]
    pos = 0
    for _ in range(max_new_tokens):
        logits = model(idx[:, pos:], pos)  # (B, T, V): first all tokens, then only the newest
        idx_next = choose(logits[:, -1])  # (B, 1)
        yield idx_next
        pos = idx.shape[1]
        idx = torch.cat((idx, idx_next), dim=1)  # (B, T+1)
        if idx.shape[1] > S:
            keep = max(1, S // 2)
            idx = idx[:, -keep:]
            pos = 0

def print_attention(model, idx, chars):
    """Print a triangle for each head: line t is reddest where the t-th character looks most."""
    model(idx, 0)
    text = decode(idx[0].tolist(), chars).replace('\n', ' ')
    for i, block in enumerate(model.blocks):
        for j, head in enumerate(block.attn.wei[0]):  # (T, T)
            print(f'block {i + 1}, head {j + 1}')
            for t, row in enumerate(head):
                for char, strength in zip(text[:t + 1], row[:t + 1] / row.max()):
                    pale = 255 - round(155 * strength.item())
                    print(f'\x1b[30;48;2;255;{pale};{pale}m{char}', end='')  # black on red
                print('\x1b[0m')

@torch.inference_mode()
def main():
    model, chars = load_model()
    text = start or chars[0]  # a new text begins after chars[0], often a line end
    idx = torch.tensor([encode(text, chars)], device=device)  # (1, T)
    if show == 'attention':
        print_attention(model, idx[:, -model.config.block_size:], chars)
    torch.manual_seed(seed)
    prompt = idx.expand(num_samples, -1)  # (B, T)
    written = [prompt]
    print(text, end='')
    for idx_next in generate(model, prompt):
        written.append(idx_next)
        print(decode(idx_next[0].tolist(), chars), end='', flush=True)
    print()
    for tokens in torch.cat(written, dim=1)[1:].tolist():  # all samples but the first
        print('-' * 40)
        print(decode(tokens, chars))

if __name__ == '__main__':
    if hasattr(sys.stdout, 'reconfigure'):  # a notebook's output has no such method
        sys.stdout.reconfigure(errors='replace')  # a character that cannot be shown becomes a ?
    torch.backends.mkldnn.enabled = False  # mkldnn is slow when shapes keep changing
    torch.set_num_threads(1)  # one position is too little work to share
    main()
