# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""Let the trained GPT write: how a GPT is run, with attention written out.

    python sample.py                       after python gpt.py

continues `start`, one character after the other, with the weights in ckpt.pt.
"""
import math
import os
import sys

import torch
from torch.nn import functional as F

start = '\n'  # what to continue: a text, or 'FILE:name' for the text in a file
num_samples = 1  # how many times; one is printed while it is written, several go side by side
max_new_tokens = 500  # characters to write in each
temperature = 0.8  # below 1 the likely gets likelier, above 1 less so; 0 always takes the likeliest
top_k = 200  # choose among this many of the likeliest characters at most
top_p = 1.0  # choose among the likeliest that together reach this probability
seed = 1337  # the same seed gives the same text on the same machine
show = ''  # 'surprise' colours what is written by its probability, 'attention' shows where the heads look
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- model ----

class Model:
    """The GPT of gpt.py without its training: weights in, logits out, keys and values kept in a cache."""

    def __init__(self, ckpt):
        weights, config = ckpt['model'], ckpt['config']
        self.chars, self.block_size, self.n_head = ckpt['chars'], config['block_size'], config['n_head']
        self.wte, self.wpe, self.ln_f = (weights[f'{name}.weight'] for name in ('wte', 'wpe', 'ln_f'))
        names = ('ln_1', 'c_attn', 'attn_proj', 'ln_2', 'c_fc', 'mlp_proj')
        self.blocks = [[weights[f'blocks.{i}.{name}.weight'] for name in names] for i in range(config['n_layer'])]
        self.D = config['n_embd'] // config['n_head']  # channels in a head
        angle = torch.outer(torch.arange(self.block_size), 10000 ** -(torch.arange(0, self.D, 2) / self.D))
        cos, sin = angle.cos().diag_embed(), angle.sin().diag_embed()  # (block_size, D/2, D/2)
        self.rotation = torch.cat((torch.cat((cos, sin), 2), torch.cat((-sin, cos), 2)), 1).to(device)  # (.., D, D)

    def new_cache(self, B):
        """Room for a window of keys and values, in each block, for B texts."""
        return [torch.empty(2, B, self.n_head, self.block_size, self.D, device=device) for _ in self.blocks]

    def forward(self, idx, cache, pos=0, looks=None):
        """Logits (B, T, V) for what follows each of idx (B, T), the first of which stands at pos in the window.

        A whole prompt at pos 0 is prefill: it fills the cache. One character further on is decode: all it needs
        of those before it is in the cache. A list given as looks gets the attention weights of each block.
        """
        x = self.wte[idx] + self.wpe[pos:pos + idx.shape[1]]  # (B, T, C)
        for (ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj), kv in zip(self.blocks, cache):
            x = x + F.linear(self.attn(F.linear(F.layer_norm(x, ln_1.shape, ln_1), c_attn), kv, pos, looks), attn_proj)
            x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, ln_2.shape, ln_2), c_fc)), mlp_proj)
        return F.linear(F.layer_norm(x, self.ln_f.shape, self.ln_f), self.wte)

    def attn(self, qkv, kv, pos, looks):
        """softmax(q @ k.T / sqrt(D)) @ v, each character's q against every k and v up to its own."""
        B, T, H = *qkv.shape[:2], self.n_head
        qkv = qkv.view(B, T, 3 * H, self.D)
        qk = F.layer_norm(qkv[:, :, :2 * H], (self.D,)) @ self.rotation[pos:pos + T]  # turned by position
        q, kv[0, :, :, pos:pos + T] = qk.transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D) each
        kv[1, :, :, pos:pos + T] = qkv[:, :, 2 * H:].transpose(1, 2)
        k, v = kv[:, :, :, :pos + T]  # (B, H, pos+T, D) each
        att = q @ k.transpose(2, 3) / math.sqrt(self.D)  # (B, H, T, pos+T)
        if T > 1:  # what comes later has no weight
            att = att.masked_fill(torch.ones(T, pos + T, device=device).triu(pos + 1) > 0, -math.inf)
        att = att.softmax(dim=-1)
        if looks is not None:
            looks.append(att)
        return (att @ v).transpose(1, 2).reshape(B, T, -1)  # (B, T, C)

# ---- sampling ----

def choose(logits):
    """A token for each row of logits (B, V)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k < logits.shape[1]:
        logits[logits < logits.topk(top_k).values[:, -1:]] = -math.inf
    if top_p < 1:
        probs, order = logits.softmax(dim=-1).sort(descending=True)
        likelier = torch.empty_like(probs).scatter_(1, order, probs.cumsum(dim=-1) - probs)  # than each, in sum
        logits[likelier >= top_p] = -math.inf
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)[:, 0]

def generate(model, idx):
    """Continue idx (B, T): yields, max_new_tokens times, a token for each text (B,) and the logits (B, V) it is from.

    When the window is full, its last half moves to the front and is prefilled again: a character costs the same
    however long the text has grown, and always comes in sight of half a window at least.
    """
    window, cache = idx[:, -model.block_size:], model.new_cache(len(idx))
    new, pos = window, 0  # prefill
    for _ in range(max_new_tokens):
        logits = model.forward(new, cache, pos)[:, -1]  # (B, V)
        token = choose(logits)
        yield token, logits
        window = torch.cat((window, token[:, None]), dim=1)
        if window.shape[1] <= model.block_size:
            new, pos = token[:, None], window.shape[1] - 1  # decode
        else:
            window = window[:, -max(1, model.block_size // 2):]
            new, pos = window, 0  # prefill

# ---- pictures ----

def surprise(char, p):
    """char on green where the model gave it probability 1, over yellow, to red where it gave it 0."""
    return f'\x1b[30;48;2;{min(255, round(510 * (1 - p)))};{min(255, round(510 * p))};0m{char}\x1b[0m'

def print_attention(model, idx):
    """One line for each block and head: the text idx (1, T), brighter where its last character looks."""
    looks = []
    model.forward(idx, model.new_cache(1), looks=looks)
    text = [model.chars[i] if model.chars[i].isprintable() else ' ' for i in idx[0]]
    for i, att in enumerate(looks):
        for h, weights in enumerate(att[0, :, -1]):  # (T,)
            greys = (232 + 23 * weights / weights.max()).int().tolist()  # a terminal's, from black to white
            cells = ''.join(f'\x1b[38;5;{0 if grey > 243 else 250};48;5;{grey}m{c}' for c, grey in zip(text, greys))
            print(f'layer {i + 1} head {h + 1} {cells}\x1b[0m')

# ---- main ----

def load_model():
    try:
        return Model(torch.load('ckpt.pt', map_location=device, weights_only=True))
    except FileNotFoundError:
        sys.exit('no ckpt.pt here: run python gpt.py first')
    except Exception as e:  # whatever is wrong with it
        sys.exit(f'ckpt.pt is damaged or none of gpt.py ({type(e).__name__}): run python gpt.py to make a new one')

def read_start():
    if not start.startswith('FILE:'):
        return start
    try:
        with open(start[5:], encoding='utf-8', newline='') as f:
            return f.read()
    except (OSError, ValueError) as e:
        sys.exit(f'cannot read start = {start!r} ({e}): name a text file in UTF-8')

@torch.inference_mode()
def main():
    for name, value, right, rule in (('top_k', top_k, top_k >= 1, '1 or more'),
                                     ('top_p', top_p, 0 < top_p <= 1, 'above 0 and at most 1'),
                                     ('temperature', temperature, temperature >= 0, '0 or more'),
                                     ('num_samples', num_samples, num_samples >= 1, '1 or more')):
        if not right:
            sys.exit(f'{name} = {value}: set it to {rule}')
    model, text = load_model(), read_start()
    for i, char in enumerate(text):
        if char not in model.chars:
            sys.exit(f'start has {char!r} at character {i + 1}, which the model has never seen: leave it out')
    # With nothing to continue, begin as after the end of a line.
    idx = torch.tensor([[model.chars.index(char) for char in text] or [max(0, model.chars.find('\n'))]], device=device)
    colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR')
    if show == 'attention' and colour:
        print_attention(model, idx[:, -model.block_size:])
    torch.manual_seed(seed)
    samples = [text] * num_samples
    if num_samples == 1:
        print(text, end='', flush=True)
    for token, logits in generate(model, idx.expand(num_samples, -1)):
        chars = [model.chars[i] for i in token.tolist()]
        if show == 'surprise' and colour:
            probs = logits.softmax(dim=-1).gather(1, token[:, None])[:, 0].tolist()
            chars = [surprise(char, p) for char, p in zip(chars, probs)]
        if num_samples == 1:
            print(chars[0], end='', flush=True)
        samples = [sample + char for sample, char in zip(samples, chars)]
    print('' if num_samples == 1 else ('\n' + '-' * 40 + '\n').join(samples))

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
