"""The baseline: guess the next character from the one before it, and from nothing else.

    python bigram.py

trains on what prepare.py made and prints a sample. On Tiny Shakespeare: val loss 2.49 in seconds.
Shapes: B windows of T characters, V different characters."""
import json
import os
import sys
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# ---- settings ----
batch_size = 32  # windows of text in a step
block_size = 32  # characters in a window, each of which is an example
max_iters = 5000  # steps of training
eval_interval = 1000  # steps between two estimates of the loss
eval_iters = 400  # batches that an estimate averages over
learning_rate = 1e-2
seed = 1337  # the same seed gives the same run
device = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.set_num_threads(1)  # for so small a model a second thread is no help

# ---- data ----
def load_data():
    """What prepare.py made: the characters, and the tokens of train and val."""
    if not os.path.exists('meta.json'):
        sys.exit('no data yet: run python prepare.py')
    chars = json.load(open('meta.json'))['chars']
    train, val = [np.memmap(f'{split}.bin', np.uint16, 'r') for split in ('train', 'val')]
    if block_size >= len(val):
        sys.exit(f'the text is too short for {block_size=}: at most {len(val) - 1} fits')
    return chars, train, val

def get_batch(data):
    """Inputs (B, T): random windows of data. Targets (B, T): the next characters."""
    starts = torch.randint(len(data) - block_size, (batch_size,)).tolist()
    idx = torch.tensor(np.stack([data[i:i + block_size + 1] for i in starts])).long().to(device)
    return idx[:, :-1], idx[:, 1:]  # idx (B, T+1) without its last and without its first

# ---- model ----
class Bigram(nn.Module):
    """A table (V, V): the row of a character has the logits of the character that follows it, which
    a softmax turns into probabilities."""
    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
    def forward(self, idx, targets=None):
        """Logits (B, T, V) of what follows each of idx (B, T); given targets, their mean loss."""
        logits = self.table(idx)  # (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        """Append max_new_tokens sampled tokens to each row of idx (B, T)."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -1:])  # (B, 1, V): a bigram looks at the last character alone
            probs = logits[:, -1].softmax(-1)  # (B, V)
            idx = torch.cat((idx, torch.multinomial(probs, 1)), 1)  # (B, T+1)
        return idx

# ---- training ----
@torch.no_grad()
def estimate_loss(model, data):
    """The mean loss over eval_iters random batches of data."""
    return np.mean([model(*get_batch(data))[1].item() for _ in range(eval_iters)])

def train():
    """Train from scratch, then print a sample."""
    chars, train_data, val_data = load_data()
    torch.manual_seed(seed)
    model = Bigram(len(chars)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    for step in range(1, max_iters + 1):
        _, loss = model(*get_batch(train_data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % eval_interval == 0 or step == max_iters:
            train_loss = estimate_loss(model, train_data)
            val_loss = estimate_loss(model, val_data)
            print(f'step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}')
    idx = model.generate(torch.tensor([[0]], device=device), 300)  # from the first of chars on
    print(''.join(chars[i] for i in idx[0]))

if __name__ == '__main__':
    getattr(sys.stdout, 'reconfigure', dict)(errors='replace')  # what a terminal lacks: ?
    train()
