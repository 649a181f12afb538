# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""Let the trained GPT write: the model of gpt.py, with a cache of keys and values, so that the next
character costs the work of one position and not of a whole window.

    python sample.py

continues `start`, one character at a time, with the weights that gpt.py left in ckpt.pt.

Shapes: B samples, T characters, C channels, H heads of D = C / H channels, V characters in the
vocabulary, S positions in a window.
"""
import os
import sys
import zipfile

import torch
from torch.nn import functional as F

start = ''  # what to continue: a text, or 'FILE:name' for the text in a file
num_samples = 1  # the first is printed while it is written, the others when all are done
max_new_tokens = 500  # characters to write
temperature = 0.8  # below 1 favours likely characters, above 1 unlikely ones; 0 takes the likeliest
top_k = 200  # choose among this many of the likeliest characters; None for all
top_p = 1.0  # choose among the likeliest that together reach this probability
seed = 1337  # the same seed gives the same text on the same machine
show = ''  # 'surprise' tints the unlikely, 'attention' what the last character of start looks at
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- model ----
def norm(x, weight=None):
    return torch.layer_norm(x, x.shape[-1:], weight)

def rotate(x, cos, sin):
    """Rotary positions, as in gpt.py."""
    x1, x2 = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)

class Model:
    """The GPT of gpt.py in use: takes the weights it knows out of a state_dict."""
    def __init__(self, weights, n_layer, n_head):
        self.wte, self.wpe = weights.pop('wte.weight'), weights.pop('wpe.weight')
        take = lambda name: weights.pop(f'{name}.weight').t().contiguous()  # for x @ weight
        parts = 'ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'
        self.blocks = [[take(f'blocks.{i}.{part}') for part in parts] for i in range(n_layer)]
        self.ln_f, self.lm_head = take('ln_f'), take('lm_head')
        self.n_head, (self.block_size, C) = n_head, self.wpe.shape
        self.D = C // n_head
        frequency = 10000 ** -(torch.arange(0, self.D, 2, device=device) / self.D)
        angle = torch.outer(torch.arange(self.block_size, device=device), frequency)  # (S, D/2)
        self.cos, self.sin = angle.cos(), angle.sin()

    def forward(self, idx, pos=0):
        """Logits (B, T, V) of what follows each of idx (B, T), the first of which is at pos. At 0
        this is prefill, which begins a new cache; then comes decode, one character a call."""
        B, T = idx.shape
        end = pos + T
        if pos == 0:  # for each block, room for keys and values (B, H, S, D)
            shape = 2, B, self.n_head, self.block_size, self.D
            self.cache = torch.zeros(len(self.blocks), *shape, device=device)
        x = (self.wte[idx] + self.wpe[pos:end]).view(B * T, -1)  # (B*T, C)
        cos, sin = self.cos[pos:end], self.sin[pos:end]
        future = torch.full((T, end), -torch.inf, device=device).triu(pos + 1)
        self.attention = []
        for block, (keys, values) in zip(self.blocks, self.cache):
            ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj = block
            qkv = (norm(x, ln_1) @ c_attn).view(B, T, 3, self.n_head, self.D)
            qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
            q, keys[:, :, pos:end] = rotate(norm(qkv[:2]), cos, sin)
            values[:, :, pos:end] = qkv[2]
            scores = (q / self.D ** 0.5) @ keys[:, :, :end].mT + future  # (B, H, T, end)
            self.attention.append(scores.softmax(dim=-1))
            y = self.attention[-1] @ values[:, :, :end]  # (B, H, T, D)
            x = x + y.transpose(1, 2).reshape(B * T, -1) @ attn_proj
            x = x + F.gelu(norm(x, ln_2) @ c_fc) @ mlp_proj
        return (norm(x, self.ln_f) @ self.lm_head).view(B, T, -1)

def load_model():
    """The model in ckpt.pt and its characters; exits unless it answers here as it did in gpt.py."""
    try:
        if zipfile.ZipFile('ckpt.pt').testzip():  # torch.load compares no checksums
            raise ValueError('the file is damaged')
        ckpt = torch.load('ckpt.pt', map_location=device, weights_only=True)
        model = Model(ckpt['model'], ckpt['n_layer'], ckpt['n_head'])
        idx, logits = ckpt['example']
        same = torch.allclose(model.forward(idx[None])[0, -1], logits, rtol=1e-3, atol=1e-3)
        if ckpt['model'] or not same:
            raise ValueError(f'{same=}, weights not used: {list(ckpt["model"])}')
        return model, ckpt['meta']['chars']
    except FileNotFoundError:
        sys.exit('there is no ckpt.pt: run python gpt.py to make one')
    except Exception as e:
        sys.exit('ckpt.pt has a model that this file does not compute: if gpt.py was changed, make '
                 f'the same change to Model. {e!r:.200}')

# ---- sampling ----
def choose(logits):
    """One token (B,) for each row of logits (B, V)."""
    probs = (logits / max(temperature, 1e-9)).softmax(dim=-1)
    probs, order = probs.sort(dim=-1, descending=True)
    probs[:, top_k or len(probs[0]):] = 0
    probs[probs.cumsum(dim=-1) - probs >= top_p] = 0  # the likelier ones already reach top_p
    return order.gather(1, torch.multinomial(probs, num_samples=1))[:, 0]

def generate(model, idx):
    """Continue idx (B, T): yields, max_new_tokens times, tokens (B,) and their probabilities (B,).
    When the window is full, its last half moves to the front and is prefilled again: so the cost of
    a character does not grow, and each sees half a window at least."""
    window, pos = idx[:, -model.block_size:], 0
    for _ in range(max_new_tokens):
        logits = model.forward(window[:, pos:], pos)[:, -1]  # (B, V)
        token = choose(logits)
        yield token, logits.softmax(dim=-1).gather(1, token[:, None])[:, 0]
        pos = window.shape[1]
        window = torch.cat((window, token[:, None]), dim=1)
        if pos == model.block_size:
            window, pos = window[:, pos // 2 + 1:], 0

# ---- pictures ----
def tint(char, strength):
    """The character on red, the deeper the nearer strength is to 1; plain below 0.1."""
    if strength < 0.1 or char == '\n' or not sys.stdout.isatty() or 'NO_COLOR' in os.environ:
        return char
    pale = int(230 * (1 - strength))
    return f'\x1b[30;48;2;255;{pale};{pale}m{char}\x1b[0m'

def print_attention(model, idx, text):
    """For each block and head the text of idx (1, T), tinted where its last character looks."""
    model.forward(idx)
    for i, att in enumerate(model.attention):
        for h, weights in enumerate(att[0, :, -1]):  # (T,)
            print(f'block {i + 1} head {h + 1} ', *map(tint, text, weights / weights.max()), sep='')

# ---- main ----
def check_settings():
    """Exit with one line if a global breaks one of these rules."""
    for rule in ('temperature >= 0', 'top_k is None or top_k > 0', 'top_p > 0', 'top_p <= 1',
                 'num_samples > 0', 'max_new_tokens >= 0', 'show in ("", "surprise", "attention")'):
        if not eval(rule):
            sys.exit(f'{rule.split()[0]} = {eval(rule.split()[0])!r} breaks {rule}')

def read_start(chars):
    """The tokens of start; an empty one becomes the first of chars, in most texts a newline."""
    stoi = {char: i for i, char in enumerate(chars)}
    try:
        text = start
        if start.startswith('FILE:'):
            text = open(start[5:], newline='', encoding='utf-8-sig').read()
        return [stoi[char] for char in text] or [0]
    except (OSError, ValueError, KeyError) as e:
        sys.exit(f'start = {start!r:.60} is no text file in UTF-8, or has a character that '
                 f'the model has never seen: {e!r}')

@torch.inference_mode()
def main():
    check_settings()
    torch.backends.mkldnn.enabled = False  # oneDNN prepares anew for each length of the past
    model, chars = load_model()
    idx = torch.tensor([read_start(chars)], device=device)  # (1, T)
    if sys.stdout.isatty():  # a terminal obeys control characters: show them escaped
        chars = [c if c.isprintable() or c in '\n\t' else repr(c)[1:-1] for c in chars]
    text = [chars[i] for i in idx[0]]
    if show == 'attention':
        print_attention(model, idx[:, -model.block_size:], text[-model.block_size:])
    torch.manual_seed(seed)
    print(*text, sep='', end='', flush=True)
    others = [''.join(text)] * (num_samples - 1)
    for token, probs in generate(model, idx.expand(num_samples, -1)):
        surprise = (1 - probs) * (show == 'surprise')  # (B,)
        first, *rest = [tint(chars[i], strength) for i, strength in zip(token, surprise)]
        print(first, end='', flush=True)
        others = [text + char for text, char in zip(others, rest)]
    print('', *others, sep='\n' + '-' * 40 + '\n', flush=True)

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # the reader has had enough
        os._exit(130)  # sys.exit would write to the closed pipe again
