# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""The baseline: guess the next character from the one before it, and from nothing else.

    python bigram.py

learns a table of vocab_size x vocab_size logits from what prepare.py made, and then prints a
sample. On Tiny Shakespeare it reaches val loss 2.49 in seconds.
"""
import json
import sys
from hashlib import sha256

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

batch_size = 32  # windows of text in one step
block_size = 32  # characters in a window
max_iters = 5000  # steps of training
eval_interval = 1000  # steps between two estimates of the loss
eval_iters = 400  # batches that an estimate averages over
learning_rate = 1e-2  # each row of the table learns on its own, so it tolerates a high rate
max_new_tokens = 300  # characters in the sample at the end
seed = 1337  # the same seed gives the same run
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- data ----

def load_data():
    """What prepare.py made: the characters and, for each split, the array of its tokens."""
    try:
        meta = json.load(open('meta.json'))
        data = {split: np.memmap(f'{split}.bin', np.uint16, 'r') for split in ('train', 'val')}
        if meta['sha256'] != [sha256(data[split]).hexdigest() for split in ('train', 'val')]:
            raise ValueError('damaged, or from different texts')
        return meta['chars'], data
    except Exception as e:  # whatever is wrong with these files, writing them anew fixes it
        sys.exit(f'cannot use train.bin, val.bin, meta.json ({e}): run python prepare.py')

def get_batch(data):
    """Inputs (B, T): random windows of data. Targets (B, T): the character after each."""
    starts = torch.randint(len(data) - block_size, (batch_size, 1)).numpy()  # (B, 1)
    windows = torch.from_numpy(data[starts + np.arange(block_size + 1)])  # (B, T+1)
    windows = windows.long().to(device)
    return windows[:, :-1], windows[:, 1:]

# ---- model ----

class Bigram(nn.Module):
    """A table whose row for a character holds the logits of the character that follows it."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx, targets=None):
        """Logits (B, T, V) of what follows each of idx (B, T); their mean loss against targets."""
        logits = self.table(idx)  # (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens sampled tokens to each row of idx (B, T)."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -1:])  # (B, 1, V): a bigram looks at the last character alone
            idx_next = torch.multinomial(logits[:, -1].softmax(-1), num_samples=1)  # (B, 1)
            idx = torch.cat((idx, idx_next), dim=1)  # (B, T+1)
        return idx

# ---- training ----

@torch.no_grad()
def estimate_loss(model, data):
    """The mean loss over eval_iters random batches of data."""
    model.eval()
    losses = [model(*get_batch(data))[1].item() for _ in range(eval_iters)]
    model.train()
    return np.mean(losses)

def check_settings(shortest):
    """Exit before any work if a setting cannot work; shortest: length of the shorter split."""
    assert 0 < batch_size < 10**6, f'{batch_size=} must be 1 or more and below a million'
    assert 0 < block_size < shortest, f'{block_size=} must be from 1 to {shortest - 1}'
    assert max_iters > 0, f'{max_iters=} must be 1 or more'
    assert eval_interval > 0, f'{eval_interval=} must be 1 or more'
    assert eval_iters > 0, f'{eval_iters=} must be 1 or more'
    assert max_new_tokens >= 0, f'{max_new_tokens=} must be 0 or more'
    assert device == 'cpu' or torch.accelerator.is_available(), f'{device=}: there is none here'

def train():
    """Train from scratch, print a sample and return the model."""
    chars, data = load_data()
    check_settings(min(map(len, data.values())))
    torch.manual_seed(seed)
    model = Bigram(len(chars)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(1, max_iters + 1):
        _, loss = model(*get_batch(data['train']))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % eval_interval == 0 or step == max_iters:
            losses = {split: estimate_loss(model, data[split]) for split in data}
            print(f'step {step}: train loss {losses["train"]:.4f}, '
                  f'val loss {losses["val"]:.4f}', flush=True)
    idx = model.generate(torch.zeros((1, 1), dtype=torch.long, device=device), max_new_tokens)
    text = ''.join(chars[i] for i in idx[0])
    print(''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text))
    return model

if __name__ == '__main__':
    try:
        train()
    except AssertionError as e:
        if not e.args:
            raise  # an edit's own, without a message
        sys.exit(e)
    except (KeyboardInterrupt, UnicodeError) as e:
        sys.exit(f'stopped ({e!r})')
