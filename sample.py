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
    x1, x2 = x.chunk(2, -1)  # (B, H, T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)

class Model:
    """The GPT of gpt.py in use: takes the weights it knows out of a state_dict."""
    def __init__(self, weights, n_layer, n_head):
        take = lambda name: weights.pop(f'{name}.weight').t().contiguous()  # for x @ weight
        parts = 'ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'
        self.blocks = [[take(f'blocks.{i}.{part}') for part in parts] for i in range(n_layer)]
        self.ln_f, self.lm_head = take('ln_f'), take('lm_head')
        self.wte, self.wpe = weights.pop('wte.weight'), weights.pop('wpe')
        self.n_head = n_head
        S, C = self.wpe.shape
        frequency = 10000 ** -(torch.arange(0, C // n_head, 2, device=device) / (C // n_head))
        self.angle = torch.outer(torch.arange(S, device=device), frequency)  # (S, D/2)

    def forward(self, idx, pos=0):
        """Logits (B, T, V) of what follows each of idx (B, T), the first of which is at pos. At 0
        this is prefill, which begins a new cache; then comes decode, one character a call."""
        (B, T), (S, C) = idx.shape, self.wpe.shape
        H, D = self.n_head, C // self.n_head
        if pos == 0:  # for each block, room for keys and values (B, H, S, D)
            self.cache = torch.zeros(len(self.blocks), 2, B, H, S, D, device=device)
        future = torch.full((T, T), -torch.inf, device=device).triu(1)
        angle = self.angle[pos:pos + T]  # (T, D/2)
        cos, sin = angle.cos(), angle.sin()
        self.attention = []
        x = self.wte[idx] + self.wpe[pos:pos + T]  # (B, T, C)
        for block, (keys, values) in zip(self.blocks, self.cache[..., :pos + T, :]):
            ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj = block
            qkv = (norm(x, ln_1) @ c_attn).view(B, T, 3, H, D)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
            q = rotate(norm(q), cos, sin)
            keys[:, :, pos:] = rotate(norm(k), cos, sin)
            values[:, :, pos:] = v
            scores = q @ keys.mT / D ** 0.5  # (B, H, T, pos+T)
            scores[..., pos:] += future
            self.attention.append(scores.softmax(-1))
            y = self.attention[-1] @ values  # (B, H, T, D)
            x = x + y.transpose(1, 2).reshape(B, T, C) @ attn_proj
            x = x + F.gelu(norm(x, ln_2) @ c_fc) @ mlp_proj
        return norm(x, self.ln_f) @ self.lm_head

def load_model():
    """The model in ckpt.pt and its characters; exits unless it answers here as it did in gpt.py."""
    try:
        if zipfile.ZipFile('ckpt.pt').testzip():  # torch.load compares no checksums
            raise ValueError('it is damaged')
        ckpt = torch.load('ckpt.pt', map_location=device, weights_only=True)
        model = Model(ckpt['model'], ckpt['n_layer'], ckpt['n_head'])
        window, logits = ckpt['example']
        if ckpt['model'] or not torch.allclose(model.forward(window), logits, rtol=1e-3, atol=1e-3):
            raise KeyError(*ckpt['model'])
        return model, ckpt['meta']['chars']
    except KeyError as e:
        sys.exit('ckpt.pt was made by a model that this file does not compute: make the same '
                 f'change to Model here as in gpt.py (missing or unknown weights: {e.args})')
    except Exception as e:
        sys.exit(f'cannot use ckpt.pt, which python gpt.py makes: {e!r:.200}')

# ---- sampling ----
def choose(logits):
    """One token for each row of logits (B, V): (B, 1)."""
    logits, order = logits.topk(min(top_k or sys.maxsize, logits.shape[1]))  # (B, top_k), sorted
    probs = (logits / max(temperature, 1e-9)).softmax(-1)
    probs[probs.cumsum(-1) - probs >= top_p] = 0  # the likelier ones already reach top_p
    return order.gather(1, torch.multinomial(probs, 1))

def generate(model, idx):
    """Continue idx (B, T): yields, max_new_tokens times, tokens (B, 1) and the logits (B, V) that
    they are chosen by. When the window is full, its last half moves to the front, is prefilled, and
    so the cost of a character does not grow; each sees half a window at least."""
    pos = 0
    for _ in range(max_new_tokens):
        if idx.shape[1] > len(model.wpe):
            idx, pos = idx[:, -len(model.wpe) // 2:], 0
        logits = model.forward(idx[:, pos:], pos)[:, -1]  # (B, V)
        token = choose(logits)
        yield token, logits
        pos = idx.shape[1]
        idx = torch.cat((idx, token), dim=1)  # (B, T+1)

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
            print(f'block {i + 1} head {h + 1} ', *map(tint, text, weights / max(weights)), sep='')

# ---- main ----
def check_settings():
    """Exit with one line if a rule is false. Rules are Python, so that they can be printed."""
    for rule in ('temperature >= 0', 'top_k is None or top_k > 0', 'top_p > 0', 'top_p <= 1',
                 'num_samples in range(1, 10**6)', 'max_new_tokens in range(10**9)',
                 'show in ("", "surprise", "attention")'):
        name = rule.split()[0]
        if not eval(rule):
            sys.exit(f'{name} = {globals()[name]!r} breaks {rule}')

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
        chars = [c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in chars]
    text = [chars[i] for i in idx[0]]
    if show == 'attention':
        print_attention(model, idx[:, -len(model.wpe):], text[-len(model.wpe):])
    torch.manual_seed(seed)
    print(''.join(text), end='', flush=True)
    tokens = []
    for token, logits in generate(model, idx.expand(num_samples, -1)):
        tokens.append(token)
        char = chars[token[0]]
        if show == 'surprise':
            char = tint(char, 1 - logits[0].softmax(-1)[token[0]])
        print(char, end='', flush=True)
    print()
    for sample in range(1, num_samples):
        print('-' * 40, ''.join(text + [chars[token[sample]] for token in tokens]), sep='\n')

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # the reader has had enough
        os._exit(130)  # sys.exit would write to the closed pipe again
