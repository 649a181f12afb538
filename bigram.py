# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""The baseline: predict the next character from the current one, and from nothing else.

    python bigram.py

The script trains on the files that prepare.py made and prints a sample. On Tiny Shakespeare, the
model reaches a validation loss of 2.48 in seconds. A shape such as (B, T) means B windows of T
characters. The text has V different characters."""
import json
import os
import sys
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# ---- settings ----
batch_size = 32  # B: windows in a batch
block_size = 32  # T: characters in a window; each of them is an example
max_iters = 5000  # steps of training
eval_interval = 1000  # steps between two estimates of the loss
eval_iters = 400  # batches in an estimate
learning_rate = 1e-2
seed = 1337  # the same seed gives the same run
device = 'cuda' if torch.cuda.is_available() else 'cpu'

# ---- data ----
def load_data():
    """Return what prepare.py made: the different characters, and the tokens of both splits."""
    if not os.path.exists('meta.json'):
        sys.exit('There is no data yet: run python prepare.py first.')
    chars = json.load(open('meta.json'))['chars']
    train_data = np.memmap('train.bin', np.uint16, 'r')
    val_data = np.memmap('val.bin', np.uint16, 'r')
    if block_size >= len(val_data):
        sys.exit(f'The text is too short for {block_size=}: at most {len(val_data) - 1} fits.')
    return chars, train_data, val_data

def get_batch(data):
    """Return random windows of data, and their targets. Both are (B, T)."""
    starts = torch.randint(len(data) - block_size, (batch_size,)).tolist()
    windows = [data[i:i + block_size + 1] for i in starts]
    idx = torch.tensor(np.stack(windows)).long().to(device)  # (B, T+1)
    return idx[:, :-1], idx[:, 1:]  # the target of each character is the next one

def decode(tokens, chars):
    """Turn tokens into text: a token is the index of a character in chars."""
    return ''.join(chars[token] for token in tokens)

# ---- the model ----
class Bigram(nn.Module):
    """A table (V, V) of logits. The row of a character says what follows it."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx, targets=None):
        """Return the logits (B, T, V) for what follows each token of idx (B, T), and the loss.

        Without targets (B, T), the loss is None."""
        logits = self.table(idx)  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens tokens to each row of idx (B, T), one after the other."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -1:])  # (B, 1, V): a bigram sees only the last character
            probs = logits[:, -1].softmax(dim=-1)  # (B, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (B, 1)
            idx = torch.cat((idx, idx_next), dim=1)  # (B, T+1)
        return idx

# ---- training ----
@torch.no_grad()
def estimate_loss(model, data):
    """Return the mean loss over eval_iters random batches of data."""
    model.eval()  # a good habit: a bigram has no dropout, but other models do
    losses = torch.zeros(eval_iters)
    for i in range(eval_iters):
        x, y = get_batch(data)
        _, loss = model(x, y)
        losses[i] = loss.item()
    model.train()
    return losses.mean().item()

def train():
    """Train from scratch, then print a sample."""
    chars, train_data, val_data = load_data()
    torch.manual_seed(seed)
    model = Bigram(len(chars)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    for step in range(max_iters + 1):
        if step % eval_interval == 0 or step == max_iters:
            train_loss = estimate_loss(model, train_data)
            val_loss = estimate_loss(model, val_data)
            print(f'step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}')
        if step == max_iters:
            break
        x, y = get_batch(train_data)
        _, loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    idx = torch.zeros(1, 1, dtype=torch.long, device=device)  # the first character of chars
    tokens = model.generate(idx, 300)[0].tolist()
    print(decode(tokens, chars))

if __name__ == '__main__':
    torch.set_num_threads(1)  # a second thread does not help so small a model
    if hasattr(sys.stdout, 'reconfigure'):  # a notebook's output has no such method
        sys.stdout.reconfigure(errors='replace')  # a character that cannot be shown becomes a ?
    train()
