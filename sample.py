# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""Let the trained GPT write: inference with a key-value cache, and attention written out.

    python sample.py

continues `start`, one character at a time, with the weights that gpt.py left in ckpt.pt.
"""
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
show = ''  # in a terminal: 'surprise' colours by probability, 'attention' shows where start's end looks
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- model ----
class Model:
    """The GPT of gpt.py as it runs: weights in, logits out, keys and values of the past in a cache."""
    def __init__(self, ckpt):
        w, config = ckpt['model'], ckpt['config']
        S, C, H = config['block_size'], config['n_embd'], config['n_head']
        D = C // H  # channels in a head
        self.chars, self.qk_norm, self.block_size, self.H, self.D = ckpt['chars'], config['qk_norm'], S, H, D
        self.wte, self.wpe, self.ln_f = w['wte.weight'], w['wpe.weight'], w['ln_f.weight']  # wte: tied
        self.blocks = [[w[f'blocks.{i}.{name}.weight'] for name in (
            'ln_1', 'c_attn', 'attn_proj', 'ln_2', 'c_fc', 'mlp_proj')] for i in range(config['n_layer'])]
        for block in self.blocks:
            # Rotary turns channels i and i + D/2 of q and k as one complex number: here they move together.
            qk, v = block[1].split((2 * C, C))  # c_attn
            block[1] = torch.cat((qk.view(-1, 2, D // 2, C).transpose(1, 2).reshape(2 * C, C), v))
            block[:] = [p.T.contiguous() if p.ndim == 2 else p for p in block]  # fastest where x has one row
        angle = torch.outer(config['rotary'] * torch.arange(S), 10000 ** -(torch.arange(0, D, 2) / D))
        self.sqrt_D = torch.tensor(D ** 0.5)  # a number would be made a tensor in each call
        self.turn = torch.polar(torch.ones_like(angle), angle).to(device)  # (S, D/2)
        self.mask = torch.full((S, S), -torch.inf, device=device).triu(1)  # none looks at what comes after it

    def new_cache(self, B):
        """Room in each block for the keys, as columns, and the values, as rows, of B windows."""
        room = lambda *shape: torch.zeros(B, self.H, *shape, device=device)
        return [(room(self.D, self.block_size), room(self.block_size, self.D)) for _ in self.blocks]

    def forward(self, idx, cache, pos=0):
        """Logits (B, T, V) for what follows each of idx (B, T), which stand from pos on in the window.
        A prompt at 0 is prefill: it fills the cache. One character after it is decode: the cache has all that
        it needs of the past. Leaves each block's attention weights in self.looks."""
        B, T = idx.shape
        H, D, here = self.H, self.D, slice(pos, pos + T)
        turn, mask, self.looks = self.turn[here], self.mask[here], []
        x = (self.wte[idx] + self.wpe[here]).view(B * T, -1)  # (B*T, C)
        for (ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj), (keys, values) in zip(self.blocks, cache):
            qkv = torch.layer_norm(x, ln_1.shape, ln_1) @ c_attn  # (B*T, 3*C)
            qkv = qkv.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
            qk = torch.layer_norm(qkv[:2], (D,)) if self.qk_norm else qkv[:2]
            q, k = (qk.view(torch.complex64) * turn).view(torch.float32)  # rotary: (B, H, T, D) each
            keys[..., here], values[:, :, here] = k.mT, qkv[2]
            att = (q @ keys).div_(self.sqrt_D).add_(mask).softmax(dim=-1)  # (B, H, T, S)
            self.looks.append(att)
            x = x + (att @ values).transpose(1, 2).reshape(B * T, -1) @ attn_proj  # heads side by side
            x = x + F.gelu(torch.layer_norm(x, ln_2.shape, ln_2) @ c_fc) @ mlp_proj
        return F.linear(torch.layer_norm(x, self.ln_f.shape, self.ln_f), self.wte).view(B, T, -1)

def load_model():
    try:
        return Model(dict(torch.load('ckpt.pt', map_location=device, weights_only=True)))
    except Exception as e:  # whatever is wrong with it, or none there
        sys.exit(f'cannot use ckpt.pt ({type(e).__name__}): run python gpt.py to make one')

# ---- sampling ----
def choose(logits):
    """One token for each row of logits (B, V)."""
    if temperature < 1e-30:  # 0, or too small to divide by
        return logits.argmax(dim=-1)
    probs = (logits / temperature).softmax(dim=-1)
    if top_k < probs.shape[1] or top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        ordered[:, top_k:] = 0
        ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0  # those whose likelier ones reach top_p
        probs = torch.zeros_like(probs).scatter(1, order, ordered)
    return (probs / torch.empty_like(probs).exponential_()).argmax(dim=-1)  # i with probability probs[:, i]

def generate(model, idx):
    """Continue idx (B, T): yields, max_new_tokens times, tokens (B,) and the logits (B, V) they are from.
    When the window is full, its last half moves to the front and is prefilled again: a character costs the
    same on average however long the text is, and, once a window has been full, sees at least half of one."""
    window, pos, cache = idx[:, -model.block_size:], 0, model.new_cache(len(idx))  # first, prefill
    for _ in range(max_new_tokens):
        logits = model.forward(window[:, pos:], cache, pos)[:, -1]  # (B, V)
        token = choose(logits)
        yield token, logits
        window, pos = torch.cat((window, token[:, None]), dim=1), window.shape[1]  # then, decode
        if pos == model.block_size:
            window, pos = window[:, -max(1, pos // 2):], 0  # full: prefill

def print_attention(model, idx):
    """Print the text idx (1, T) for each block and head, brighter where its last character looks more."""
    model.forward(idx, model.new_cache(1))
    text = [model.chars[i] if model.chars[i].isprintable() else ' ' for i in idx[0]]
    for i, att in enumerate(model.looks):
        for h, weights in enumerate(att[0, :, -1]):  # (S,), of which text is the first T
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
    torch.empty(2**23 - 2**14)  # to free 32 MB once makes glibc reuse memory (man mallopt)
    model = load_model()
    torch.set_float32_matmul_precision('medium')  # float32 products on the fastest units the machine has
    if num_samples * model.wte.shape[1] ** 2 <= 2**17:  # too small to gain by oneDNN and threads
        torch.backends.mkldnn.enabled = False
        torch.set_num_threads(1)
    try:
        text = open(start[5:], newline='', encoding='utf-8-sig').read() if start[:5] == 'FILE:' else start
    except (OSError, ValueError) as e:
        sys.exit(f'cannot read start = {start!r} ({e}): name a text file in UTF-8')
    tokens = [model.chars.find(char) for char in text]
    if -1 in tokens:
        i = tokens.index(-1)
        sys.exit(f'start has {text[i]!r} at character {i + 1}, which the model has never seen: leave it out')
    idx = torch.tensor([tokens or [max(0, model.chars.find('\n'))]], device=device)  # no text: as after '\n'
    colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR')
    if show == 'attention' and colour:
        print_attention(model, idx[:, -model.block_size:])
    torch.manual_seed(seed)
    written = [[text] * num_samples]  # the start of every sample, then its characters one by one
    if num_samples == 1:
        print(text, end='', flush=True)
    for token, logits in generate(model, idx.expand(num_samples, -1)):
        chars = [model.chars[i] for i in token.tolist()]
        if show == 'surprise' and colour:
            probs = logits.softmax(dim=-1).gather(1, token[:, None])[:, 0]
            chars = [f'\x1b[30;48;2;{min(255, int(510 - 510 * p))};{min(255, int(510 * p))};0m{char}\x1b[0m'
                     .replace('\n', ' \x1b[0m\n') for char, p in zip(chars, probs.tolist())]  # green if sure
        written.append(chars)
        if num_samples == 1:
            print(chars[0], end='', flush=True)
    print('' if num_samples == 1 else ('\n' + '-' * 40 + '\n').join(map(''.join, zip(*written))), flush=True)

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # the reader has had enough
        os._exit(130)  # sys.exit would write to the closed pipe again
