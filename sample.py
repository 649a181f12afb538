"""Let the trained GPT write.

    python sample.py

continues `start` with the weights in ckpt.pt. The model is that of gpt.py, as functions of these
weights, and with a cache: keys and values of past positions never change, so they are kept, and a
new character costs the work of one position, not of a window (S = block_size positions)."""
import os
import sys
import torch
from torch.nn import functional as F

# ---- settings ----
start = ''  # the text to continue, perhaps open('name', encoding='utf-8').read()
num_samples = 1  # the first is printed while it is written, the others when all are done
max_new_tokens = 500  # characters to write
temperature = 0.8  # below 1 prefers likely characters even more, above 1 less; 0: the likeliest
top_k = 200  # choose among the k likeliest characters only
top_p = 1.0  # choose among the smallest set of likeliest characters with this probability
seed = 1337  # the same seed gives the same text on the same machine
show = ''  # 'attention': a picture of where each character of start looks
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- model ----
def norm(x):
    return F.layer_norm(x, x.shape[-1:])

def rotate(x, angle):
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x.chunk(2, -1)  # (.., T, D/2) each
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), -1)  # (.., T, D)

def attention(x, w, angle, cache, pos):
    """For x (B, T, C) at positions pos to pos + T. cache (2, B, H, S, D): all keys, all values."""
    T = x.shape[1]
    qkv = (x @ w['attn.qkv']).unflatten(2, (3, -1, cache.shape[-1])).permute(2, 0, 3, 1, 4)
    q, k = rotate(norm(qkv[:2]), angle)  # of qkv (3, B, H, T, D): both at once, (B, H, T, D) each
    cache[..., pos:pos + T, :] = torch.stack((k, qkv[2]))
    keys, values = cache[..., :pos + T, :]  # (B, H, pos+T, D) each
    w['last'] = q, keys  # for print_attention
    # a new position needs no mask: it is the last, and all others are its past
    y = F.scaled_dot_product_attention(q, keys, values, is_causal=pos == 0)  # (B, H, T, D)
    return y.transpose(1, 2).flatten(2) @ w['attn.c_proj']  # (B, T, C)

def mlp(x, w):
    return F.gelu(x @ w['mlp.c_fc']) @ w['mlp.c_proj']

def block(x, w, angle, cache, pos):
    x = x + attention(norm(x), w, angle, cache, pos)
    return x + mlp(norm(x), w)

def gpt(idx, model, cache, pos=0):
    """The logits (B, T, V) after each of idx (B, T), which stand at positions pos to pos + T. A
    call at pos = 0 takes all of idx (prefill); a later one, one new character (decode)."""
    x = model['wte'][idx]  # (B, T, C)
    angle = model['angle'][pos:pos + idx.shape[1]]  # (T, D/2)
    for w, block_cache in zip(model['blocks'], cache):
        x = block(x, w, angle, block_cache, pos)
    return norm(x) @ model['wte'].mT

def new_cache(model, B):
    H, S, C = model['n_head'], model['block_size'], model['n_embd']
    return torch.zeros(model['n_layer'], 2, B, H, S, C // H, device=device)

def load_model():
    """Settings, chars and weights by name, those of each block in a dict of their own."""
    if not os.path.exists('ckpt.pt'):
        sys.exit('no ckpt.pt yet: run python gpt.py')
    ckpt = torch.load('ckpt.pt', device)  # loads tensors, numbers and strings only, no code
    model = ckpt['config'] | ckpt['model'] | {'blocks': []}
    parts = ('attn.query', 'attn.key', 'attn.value', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj')
    for i in range(model['n_layer']):
        try:  # (in, out) each, for x @ w
            w = {part: model[f'blocks.{i}.{part}.weight'].t().contiguous() for part in parts}
        except KeyError as e:
            sys.exit(f'ckpt.pt has no {e}: change sample.py as gpt.py was changed')
        # GPT-2's fused projection: one product, (C, 3C), is faster than three
        w['attn.qkv'] = torch.cat((w['attn.query'], w['attn.key'], w['attn.value']), 1)
        model['blocks'].append(w)
    D = model['n_embd'] // model['n_head']
    speed = 10000 ** (-torch.arange(0, D, 2) / D)  # (D/2)
    model['angle'] = torch.outer(torch.arange(model['block_size']), speed).to(device)  # (S, D/2)
    idx, logits = ckpt['probe']
    if not torch.allclose(gpt(idx, model, new_cache(model, 1)), logits, 1e-2, 1e-2):
        sys.exit('ckpt.pt is of another model: change sample.py as gpt.py was changed')
    return model

# ---- sampling ----
def choose(logits):
    """Sample one token (B, 1) for each row of logits (B, V)."""
    logits, order = logits.topk(min(top_k, logits.shape[1]))  # (B, top_k) each, likeliest first
    probs = (logits / max(temperature, 1e-9)).softmax(-1)
    before = probs.cumsum(-1) - probs  # the probability of those that are likelier
    probs[before >= top_p] = 0
    return order.gather(1, torch.multinomial(probs, 1))

def generate(idx, model):
    """Yield the tokens (B, 1) that continue idx (B, T), one after the other. When the window is
    full, its last half becomes the first half of a new one, computed anew."""
    cache = new_cache(model, len(idx))
    S = model['block_size']
    pos = 0
    for _ in range(max_new_tokens):
        if idx.shape[1] > S:
            idx, pos = idx[:, -S // 2:], 0
        idx_next = choose(gpt(idx[:, pos:], model, cache, pos)[:, -1])  # (B, 1)
        yield idx_next
        pos = idx.shape[1]
        idx = torch.cat((idx, idx_next), 1)  # (B, T+1)

def print_attention(idx, model, text):
    """For each head a triangle: line t is reddest where the t-th character of text looks most."""
    gpt(idx, model, new_cache(model, 1))
    for i, w in enumerate(model['blocks']):
        q, keys = w['last']
        scores = q @ keys.mT / q.shape[-1] ** 0.5  # (1, H, T, T)
        for j, head in enumerate(scores[0]):
            print(f'block {i + 1}, head {j + 1}')
            for t, row in enumerate(head, 1):
                attended = row[:t].softmax(-1)
                for char, pale in zip(text, 255 - 155 * attended / attended.max()):
                    print(f'\x1b[30;48;2;255;{pale:.0f};{pale:.0f}m{char}', end='')
                print('\x1b[0m')

# ---- main ----
@torch.inference_mode()
def main():
    torch.backends.mkldnn.enabled = False  # oneDNN is slow when each call has another shape
    torch.set_num_threads(1)  # one position is too little work for more, and they would wait
    model = load_model()
    chars, S = model['chars'], model['block_size']
    if not set(start) <= set(chars):
        sys.exit(f'start has {set(start) - set(chars)}, which the training text does not have')
    text = start or chars[0]  # in Shakespeare a line end
    idx = torch.tensor([[chars.index(char) for char in text]], device=device)  # (1, T)
    if show == 'attention':
        print_attention(idx[:, -S:], model, text[-S:].replace('\n', ' '))
    torch.manual_seed(seed)
    print(text, end='')
    written = [idx.expand(num_samples, -1)]  # (B, T)
    for idx_next in generate(written[0], model):
        written.append(idx_next)
        print(chars[idx_next[0]], end='', flush=True)
    print()
    for sample in torch.cat(written, 1)[1:]:
        print(f'{"-" * 40}\n' + ''.join(chars[i] for i in sample))

if __name__ == '__main__':
    getattr(sys.stdout, 'reconfigure', dict)(errors='replace')  # what a terminal lacks: ?
    main()
