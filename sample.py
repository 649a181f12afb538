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

os.environ.setdefault('GOMP_SPINCOUNT', '10000')  # idle threads give up their core sooner
import torch
from torch.nn import functional as F

start = ''  # what to continue, or open('name').read(); '': the first of chars, usually a newline
num_samples = 1  # the first is printed while it is written, the others when all are done
max_new_tokens = 500  # characters to write
temperature = 0.8  # below 1 sharpens the odds, above 1 flattens them; 0 takes the likeliest
top_k = 200  # choose among this many of the likeliest characters; None for all of them
top_p = 1.0  # choose among the likeliest that together reach this probability
seed = 1337  # the same seed gives the same text on the same machine
show = ''  # 'surprise' tints the unlikely, 'attention' first shows where start looks
device = 'cuda' if torch.cuda.is_available() else 'cpu'
color = 'NO_COLOR' not in os.environ and (sys.stdout.isatty() or 'FORCE_COLOR' in os.environ)

# ---- model ----
def rotate(x, angle):
    """Rotary positions, as in gpt.py."""
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x.chunk(2, -1)  # (.., T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), -1)  # (.., T, D)

class Model:
    """The GPT of gpt.py in use: takes the weights it knows out of a state_dict."""
    def __init__(self, weights, n_layer, n_head):
        def take(names, prefix=''):
            # (out, in) becomes (in, out) for x @ weight; several side by side: one product, faster
            weight = torch.cat([weights.pop(f'{prefix}{name}.weight')
                                for name in names.split()]).t()
            # copied, to lie in memory row by row, unless in > out: faster, too
            return weight if len(weight) > weight.shape[-1] else weight.contiguous()

        parts = ('ln_1', 'attn.query attn.key attn.value', 'attn.c_proj',
                 'ln_2', 'mlp.c_fc', 'mlp.c_proj')
        self.blocks = [[take(part, f'blocks.{i}.') for part in parts]
                       for i in range(n_layer)]
        self.ln_f, self.lm_head = take('ln_f'), take('lm_head')
        self.wte, self.wpe = weights.pop('wte.weight'), weights.pop('wpe')
        self.n_head = n_head
        D = self.wpe.shape[1] // n_head
        frequency = 10000 ** (-torch.arange(0, D, 2) / D)
        self.angle = torch.outer(torch.arange(len(self.wpe)), frequency).to(device)  # (S, D/2)

    def __call__(self, idx, pos=0):
        """Logits (B, T, V) of what follows each of idx (B, T), which starts at pos. pos = 0
        (prefill) starts a new cache; each later call (decode) continues it by one character."""
        (B, T), (S, C) = idx.shape, self.wpe.shape
        H, D = self.n_head, C // self.n_head
        angle = self.angle[pos:pos + T]  # (T, D/2)
        self.queries_keys = []  # of each block, for print_attention
        x = self.wte[idx] + self.wpe[pos:pos + T]  # (B, T, C)
        if pos == 0:  # for each block, room for keys and values (B, H, S, D), written below
            self.cache = x.new_zeros(len(self.blocks), 2, B, H, S, D)
        for block, (keys, values) in zip(self.blocks, self.cache[..., :pos + T, :]):
            ln_1, qkv, attn_proj, ln_2, c_fc, mlp_proj = block
            y = F.layer_norm(x, [C], ln_1) @ qkv  # (B, T, 3C)
            y = y.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
            q, k = rotate(F.layer_norm(y[:2], [D]), angle)  # (B, H, T, D) each: QK-norm, rotate
            keys[:, :, pos:], values[:, :, pos:] = k, y[2]  # these are views of the cache
            self.queries_keys.append((q, keys))
            # softmax(q @ keys.mT / sqrt(D)) @ values; in decode, one query has no future to hide
            y = F.scaled_dot_product_attention(q, keys, values, is_causal=pos == 0)  # (B, H, T, D)
            x = x + y.transpose(1, 2).flatten(2) @ attn_proj
            x = x + F.gelu(F.layer_norm(x, [C], ln_2) @ c_fc) @ mlp_proj
        return F.layer_norm(x, [C], self.ln_f) @ self.lm_head

def load_model():
    """The model in ckpt.pt and its characters; exits if weights are missing or left over, or if its
    logits for the stored window differ from gpt.py's."""
    try:
        assert not zipfile.ZipFile('ckpt.pt').testzip(), 'damaged: a checksum is wrong'
        ckpt = torch.load('ckpt.pt', device)  # runs no code
        weights = ckpt['model']
        model = Model(weights, ckpt['n_layer'], ckpt['n_head'])
        window, logits = ckpt['probe']
        if weights or not torch.allclose(model(window), logits, 1e-3, 1e-3):  # left over, or other
            raise KeyError(*weights)
        return model, ckpt['meta']['chars']
    except KeyError as e:
        sys.exit('ckpt.pt was made by a model that this file does not compute: make the same '
                 f'change to Model as in gpt.py (missing or unknown weights: {e.args or "none"})')
    except Exception as e:
        sys.exit(f'cannot use ckpt.pt, which python gpt.py makes: {e!r:.200}')

# ---- sampling ----
def choose(logits):
    """One token for each row of logits (B, V): (B, 1)."""
    logits, order = logits.topk(min(top_k or sys.maxsize, logits.shape[1]))  # (B, top_k), sorted
    probs = (logits / max(temperature, 1e-9)).softmax(-1)
    if top_p < 1:
        probs[probs.cumsum(-1) - probs >= top_p] = 0  # the likelier ones already reach top_p
    return order.gather(1, torch.multinomial(probs, 1))

def generate(model, idx):
    """Continue idx (B, T): yield, max_new_tokens times, a token (B, 1) and its logits (B, V). When
    idx outgrows the window, half a window is prefilled anew: a character's cost stays bounded."""
    S, pos = len(model.wpe), 0
    for _ in range(max_new_tokens):
        if idx.shape[1] > S:
            idx, pos = idx[:, S // 2 - S:], 0  # the last half, rounded up
        logits = model(idx[:, pos:], pos)[:, -1]  # (B, V)
        token = choose(logits)
        yield token, logits
        pos = idx.shape[1]
        idx = torch.cat((idx, token), 1)  # (B, T+1)

# ---- pictures ----
def tint(char, strength):
    """The character on red, deeper as strength nears 1; plain below one half."""
    if strength < 0.5 or char == '\n' or not color:
        return char
    pale = 400 - 300 * strength
    return f'\x1b[30;48;2;255;{pale:.0f};{pale:.0f}m{char}\x1b[0m'

def print_attention(model, idx, text):
    """A triangle for each block and head: line t shows the first t characters of the text of
    idx (1, T), tinted by how much the last of them attends to each."""
    model(idx)
    for i, (q, keys) in enumerate(model.queries_keys, 1):
        scores = q @ keys.mT / q.shape[-1] ** 0.5  # (1, H, T, T)
        for j, head in enumerate(scores[0], 1):
            print(f'block {i}, head {j}')
            for t, row in enumerate(head, 1):
                weights = row[:t].softmax(-1)
                print(*map(tint, text[:t], weights / max(weights)), sep='')

# ---- main ----
def check_settings():
    """Before any work, exit on an impossible setting, with one line that says what is allowed."""
    assert min(num_samples, top_k or 1) > 0, f'{num_samples=}, {top_k=}: 1 or more (top_k: or None)'
    assert min(max_new_tokens, temperature) >= 0, f'{max_new_tokens=}, {temperature=}: 0 or more'
    assert 0 < top_p <= 1, f'{top_p=} must be above 0 and at most 1'
    assert show in ('', 'surprise', 'attention'), f"{show=} must be '', 'surprise' or 'attention'"
    assert start or show != 'attention', f"{show=} needs a start, such as 'O Romeo'"

@torch.inference_mode()
def main():
    check_settings()
    torch.backends.mkldnn.enabled = False  # oneDNN would plan anew for each cache length
    model, chars = load_model()
    assert set(start) <= set(chars), f'not in the training text: {set(start) - set(chars)}'
    idx = torch.tensor([[chars.index(char) for char in start] or [0]], device=device)  # (1, T)
    if sys.stdout.isatty():  # a terminal obeys control characters: show them escaped
        chars = [c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in chars]
    text = [chars[i] for i in idx[0]]
    if show:
        print('Red: unlikely, or, for attention, much looked at' if color else
              'No colors: not a terminal, or NO_COLOR is set', file=sys.stderr)
    if show == 'attention':
        print_attention(model, idx[:, -len(model.wpe):], text[-len(model.wpe):])
    torch.manual_seed(seed)
    print(''.join(text), end='', flush=True)
    written = []
    for token, logits in generate(model, idx.expand(num_samples, -1)):
        written.append(token)
        odds = (logits[0, token[0, 0]] - logits[0].max()).exp() if show == 'surprise' else 1
        print(tint(chars[token[0]], 1 - odds), end='', flush=True)
    print()
    for sample in range(1, num_samples):
        print('----------------------------------------\n' +
              ''.join(text + [chars[token[sample]] for token in written]))

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or | head has had enough
        os._exit(130)  # sys.exit would write to the closed pipe again
    except (AssertionError, OSError) as e:
        sys.exit(e)
