# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""Let the trained GPT write: how a GPT is run, with attention written out.

    python sample.py

continues `start` with the weights in ckpt.pt, which python gpt.py makes, one character after the other.
"""
import math
import os
import sys

import torch
from torch.nn import functional as F

start = '\n'  # what to continue: a text, or 'FILE:name' for the text in a file
num_samples = 1  # how many times; one is printed while it is written, several after
max_new_tokens = 500  # characters to write
temperature = 0.8  # below 1 the likely gets likelier, above 1 less so; 0 always takes the likeliest
top_k = 200  # choose among this many of the likeliest characters
top_p = 1.0  # choose among the likeliest that together reach this probability
seed = 1337  # the same seed gives the same text on the same machine
show = ''  # 'surprise' colours each character by its probability, 'attention' shows where the heads look
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- model ----
class Model:
    """The GPT of gpt.py as it runs: weights in, logits out, keys and values of the past in a cache."""
    def __init__(self, ckpt):
        w, config = ckpt['model'], ckpt['config']
        self.chars, self.block_size, self.n_head = ckpt['chars'], config['block_size'], config['n_head']
        self.wte, self.wpe, self.ln_f = w['wte.weight'], w['wpe.weight'], w['ln_f.weight']
        layout = lambda p: p.T.contiguous() if p.ndim == 2 else p  # a row times this runs fastest on a CPU
        self.blocks = [[layout(w[f'blocks.{i}.{name}.weight']) for name in (
            'ln_1', 'c_attn', 'attn_proj', 'ln_2', 'c_fc', 'mlp_proj')] for i in range(config['n_layer'])]
        self.lm_head = layout(self.wte)
        self.D = config['n_embd'] // config['n_head']  # channels in a head
        angle = torch.outer(torch.arange(self.block_size), 10000 ** -(torch.arange(0, self.D, 2) / self.D))
        self.cos = angle.cos().repeat(1, 2)[:, None].to(device)  # (block_size, 1, D)
        self.sin = torch.cat((-angle.sin(), angle.sin()), dim=1)[:, None].to(device)

    def new_cache(self, B):
        """Room for the keys and values of B windows, in each block."""
        return [torch.empty(2, B * self.n_head, self.block_size, self.D, device=device) for _ in self.blocks]

    def forward(self, idx, cache, pos=0):
        """Logits (B, T, V) for what follows each of idx (B, T), which stand in the window from pos on.

        A prompt at pos 0 is prefill: it fills the cache. One character after it is decode: the cache holds
        all it needs of those before. Leaves each block's attention weights in self.looks.
        """
        B, T = idx.shape
        self.looks = []
        x = (self.wte[idx] + self.wpe[pos:pos + T]).view(B * T, -1)  # (B*T, C)
        cos, sin = self.cos[pos:pos + T], self.sin[pos:pos + T]
        for (ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj), kv in zip(self.blocks, cache):
            qkv = (F.layer_norm(x, ln_1.shape, ln_1) @ c_attn).view(B, T, -1, self.D)  # (B, T, 3H, D)
            x = x + self.attn(qkv, cos, sin, kv, pos).view(B * T, -1) @ attn_proj
            x = x + F.gelu(F.layer_norm(x, ln_2.shape, ln_2) @ c_fc) @ mlp_proj
        return (F.layer_norm(x, self.ln_f.shape, self.ln_f) @ self.lm_head).view(B, T, -1)

    def attn(self, qkv, cos, sin, kv, pos):
        """softmax(q @ k.T / sqrt(D)) @ v: each character's q against all k up to its own."""
        B, T, H = *qkv.shape[:2], self.n_head
        qk, v = qkv.split((2 * H, H), dim=2)
        qk = F.layer_norm(qk, (self.D,))
        qk = qk * cos + qk.roll(self.D // 2, dims=-1) * sin  # rotary positions
        q, k, v = (heads.transpose(1, 2).reshape(B * H, T, self.D) for heads in (*qk.chunk(2, dim=2), v))
        kv[0, :, pos:pos + T], kv[1, :, pos:pos + T] = k, v
        k, v = kv[:, :, :pos + T]  # (B*H, pos+T, D)
        att = q @ k.transpose(1, 2) / math.sqrt(self.D)  # (B*H, T, pos+T)
        if T > 1:  # none looks at what comes after it
            att = att.masked_fill(torch.ones(T, pos + T, device=device).triu(pos + 1) == 1, -math.inf)
        self.looks.append(att := att.softmax(dim=-1))
        return (att @ v).view(B, H, T, self.D).transpose(1, 2).reshape(B, T, -1)  # (B, T, C)

def load_model():
    try:
        return Model(torch.load('ckpt.pt', map_location=device, weights_only=True))
    except FileNotFoundError:
        sys.exit('no ckpt.pt here: run python gpt.py first')
    except Exception as e:  # whatever is wrong with it
        sys.exit(f'ckpt.pt is damaged or not of gpt.py ({type(e).__name__}): run python gpt.py for a new one')

# ---- sampling ----
def choose(logits):
    """One token for each row of logits (B, V)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits / temperature).softmax(dim=-1)
    if top_k < probs.shape[1] or top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        ordered[:, top_k:] = 0
        ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0  # those that come after enough others
        probs = torch.zeros_like(probs).scatter(1, order, ordered)
    return torch.multinomial(probs, num_samples=1)[:, 0]

def generate(model, idx):
    """Continue idx (B, T): yields, max_new_tokens times, tokens (B,) and the logits (B, V) they are from.

    When the window is full, its last half moves to the front and is prefilled again: however long the text,
    a character costs the same and is chosen in sight of half a window.
    """
    window, cache = idx[:, -model.block_size:], model.new_cache(len(idx))
    new, pos = window, 0  # prefill
    for _ in range(max_new_tokens):
        logits = model.forward(new, cache, pos)[:, -1]  # (B, V)
        token = choose(logits)
        yield token, logits
        window = torch.cat((window, token[:, None]), dim=1)
        new, pos = token[:, None], window.shape[1] - 1  # decode
        if pos == model.block_size:
            new = window = window[:, -max(1, model.block_size // 2):]
            pos = 0  # prefill

# ---- pictures ----
def surprise(char, p):
    """char on green where the model gave it probability 1, over yellow, to red where it gave it 0."""
    return f'\x1b[30;48;2;{min(255, round(510 * (1 - p)))};{min(255, round(510 * p))};0m{char}\x1b[0m'

def print_attention(model, idx):
    """For each block and head the text idx (1, T), the brighter the more its last character looks there."""
    model.forward(idx, model.new_cache(1))
    text = [model.chars[i] if model.chars[i].isprintable() else ' ' for i in idx[0]]
    for i, att in enumerate(model.looks):
        for h, weights in enumerate(att[:, -1]):  # (T,)
            greys = (232 + 23 * weights / weights.max()).int().tolist()  # a terminal's greys, dark to bright
            cells = [f'\x1b[38;5;{252 if g < 244 else 16};48;5;{g}m{char}' for char, g in zip(text, greys)]
            print(f'block {i + 1} head {h + 1} ', *cells, '\x1b[0m', sep='')

# ---- main ----
@torch.inference_mode()
def main():
    for name, fine in (('top_k', top_k >= 1), ('top_p', 0 < top_p <= 1), ('temperature', temperature >= 0),
                       ('num_samples', num_samples >= 1), ('show', show in ('', 'surprise', 'attention'))):
        if not fine:
            sys.exit(f'{name} = {globals()[name]!r} is out of range: see the comment beside it')
    model = load_model()
    try:
        text = open(start[5:], encoding='utf-8', newline='').read() if start.startswith('FILE:') else start
    except (OSError, ValueError) as e:
        sys.exit(f'cannot read start = {start!r} ({e}): name a text file in UTF-8')
    for i, char in enumerate(text):
        if char not in model.chars:
            sys.exit(f'start has {char!r} at character {i + 1}, which the model has never seen: leave it out')
    tokens = [model.chars.find(char) for char in text or '\n']  # no text begins as a new line does
    idx = torch.tensor([tokens], device=device).clamp(min=0)
    colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR')
    if show == 'attention' and colour:
        print_attention(model, idx[:, -model.block_size:])
    torch.manual_seed(seed)
    samples = [text] * num_samples
    print(text if num_samples == 1 else '', end='', flush=True)
    for token, logits in generate(model, idx.expand(num_samples, -1)):
        chars = [model.chars[i] for i in token.tolist()]
        if show == 'surprise' and colour:
            probs = logits.softmax(dim=-1).gather(1, token[:, None])[:, 0]
            chars = [surprise(char, p) for char, p in zip(chars, probs.tolist())]
        if num_samples == 1:
            print(chars[0], end='', flush=True)
        samples = [sample + char for sample, char in zip(samples, chars)]
    print('' if num_samples == 1 else ('\n' + '-' * 40 + '\n').join(samples))

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # enough
        os._exit(130)
