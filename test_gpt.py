"""The first half is a walk through the ideas of a GPT, to be read beside gpt.py. The second half
tests what the scripts promise. Functions that many tests use stand at the top and between the two
halves.

Each test is named after the fact that it checks. The tests need no network and no data."""
import hashlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from pydoc_data import topics
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
import bigram
import gpt
import prepare
import sample

os.environ['OMP_NUM_THREADS'] = '1'  # models this small gain nothing from more threads
torch.set_num_threads(1)
HERE = Path(__file__).parent
TEXT = 'The quick brown fox jumps over the lazy dog; the dog, being lazy, lets it.\n' * 40
TINY = dict(  # settings of gpt.py with which a model trains in a second
    device='cpu', out_dir='.', resume=False, seed=1337, batch_size=8, block_size=16, max_iters=12,
    eval_interval=6, n_layer=2, n_head=2, n_embd=32, dropout=0.0, learning_rate=1e-2,
    weight_decay=0.1, warmup_iters=0, max_new_tokens=20, flash=False, bfloat16=False, rotary=True,
    even_windows=True, muon=True, muon_learning_rate=1e-2, muon_weight_decay=0.3)
WRITE = dict(  # settings of sample.py
    device='cpu', out_dir='.', start='', num_samples=1, max_new_tokens=30, temperature=1.0,
    top_k=None, top_p=1.0, seed=1337, show='')

def set_globals(monkeypatch, script, **globals):
    """Edit the globals of a script, for this test."""
    for name, value in globals.items():
        monkeypatch.setattr(script, name, value)

@pytest.fixture(autouse=True)
def small_and_seeded(monkeypatch, tmp_path):
    """Every test starts in an empty folder, with the same seed and with small settings."""
    monkeypatch.chdir(tmp_path)
    set_globals(monkeypatch, gpt, **TINY)
    set_globals(monkeypatch, sample, **WRITE)
    set_globals(monkeypatch, bigram, device='cpu', batch_size=8, block_size=16, max_iters=300,
                eval_interval=300, eval_iters=100, learning_rate=0.1)
    torch.manual_seed(0)

def tiny(**changes):
    """The config of a small model, for the classes of gpt.py and of sample.py."""
    config = dict(vocab_size=10, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.0,
                  rotary=True)
    return SimpleNamespace(**config | changes)

def count(model):
    """Return the number of parameters of a model."""
    return sum(p.numel() for p in model.parameters())

# ---- a walk through GPT, one idea a test: text, tokens, loss ----
def test_a_token_is_an_index_into_the_sorted_distinct_characters():
    text = 'hello world'
    chars = ''.join(sorted(set(text)))
    assert chars == ' dehlorw'
    tokens = prepare.encode(text, chars)
    assert tokens.tolist() == [3, 2, 4, 4, 5, 0, 7, 5, 6, 4, 1]
    assert gpt.decode(tokens, chars) == text  # decoding undoes encoding

def test_nine_characters_hold_eight_examples(monkeypatch):
    monkeypatch.setattr(gpt, 'block_size', 8)
    tokens = np.array([18, 47, 56, 57, 58, 1, 15, 47, 58])  # "First Cit" in Tiny Shakespeare
    x, y = gpt.get_batch(tokens, [0])  # (1, 8) each
    for t in range(8):  # one example for each length of context
        context = x[0, :t + 1]
        target = y[0, t]
        assert context.tolist() == tokens[:t + 1].tolist()
        assert target == tokens[t + 1]

def test_a_bigram_knows_the_last_character_only_and_writes_what_follows_it():
    x, y = bigram.get_batch(np.arange(100))
    assert torch.equal(y, x + 1)
    model = bigram.Bigram(3)
    model.table.weight.data = 100 * torch.eye(3).roll(1, dims=1)  # 1 follows 0, 2 follows 1, ...
    written = model.generate(torch.tensor([[0], [2]]), 4)
    assert written.tolist() == [[0, 1, 2, 0, 1], [2, 0, 1, 2, 0]]
    nn.init.zeros_(model.table.weight)  # all characters are equally likely
    assert set(model.generate(torch.tensor([[0]]), 50)[0].tolist()) == {0, 1, 2}
    assert bigram.estimate_loss(model, np.arange(100) % 3) == pytest.approx(np.log(3))

def test_the_loss_is_minus_the_log_of_the_probability_given_to_what_came():
    logits = torch.randn(1, 65)
    probs = logits.softmax(dim=-1)
    assert_close(F.cross_entropy(logits, torch.tensor([7])), -probs[0, 7].log())

def test_before_training_the_loss_is_nearly_that_of_a_blind_guess():
    idx = torch.randint(65, (4, 17))
    _, loss = gpt.GPT(tiny(vocab_size=65))(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(np.log(65), rel=0.05)  # each of 65 characters is as likely

def test_a_trained_bigram_predicts_the_shares_that_were_counted():
    tokens = torch.tensor([0, 1, 0, 2, 0, 1, 1, 0, 0])
    counts = torch.zeros(3, 3)
    for now, then in zip(tokens, tokens[1:]):
        counts[now, then] += 1
    model = bigram.Bigram(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(300):
        _, loss = model(tokens[None, :-1], tokens[None, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = counts / counts.sum(dim=1, keepdim=True)
    assert_close(model.table.weight.softmax(dim=-1), shares, rtol=0, atol=0.01)

def test_a_batch_is_a_noisy_estimate_of_the_loss_of_a_split():
    model = gpt.GPT(tiny())
    tokens = np.random.default_rng(0).integers(10, size=4001)
    losses = []
    for i in range(0, 4000, 160):
        x, y = gpt.get_batch(tokens, range(i, i + 160, 16))
        _, loss = model(x, y)
        losses.append(loss.item())
    assert np.std(losses) > 1e-3  # batches differ
    assert gpt.estimate_loss(model, tokens) == pytest.approx(np.mean(losses), rel=1e-5)

# ---- attention ----
def test_three_ways_to_average_the_past_are_one():
    B, T, C = 2, 5, 3
    x = torch.randn(B, T, C)
    by_loop = torch.zeros(B, T, C)
    for b in range(B):
        for t in range(T):
            by_loop[b, t] = x[b, :t + 1].mean(dim=0)
    tril = torch.tril(torch.ones(T, T))
    by_product = (tril / tril.sum(dim=1, keepdim=True)) @ x
    by_softmax = torch.zeros(T, T).masked_fill(tril == 0, -torch.inf).softmax(dim=-1) @ x
    assert_close(by_loop, by_product)
    assert_close(by_loop, by_softmax)

def attend(q, k, v):
    """Return softmax(q k^T / sqrt(D)) v without the future. q and k are (.., T, D)."""
    T, D = q.shape[-2:]
    wei = q @ k.mT / D ** 0.5  # (.., T, T)
    wei = wei.masked_fill(torch.tril(torch.ones(T, T)) == 0, -torch.inf)
    return wei.softmax(dim=-1) @ v

def test_with_equal_scores_attention_is_the_average_of_the_past():
    # With other scores, the weights of the average depend on the text.
    v = torch.randn(5, 3)
    y = attend(torch.zeros(5, 8), torch.randn(5, 8), v)  # queries of zero give equal scores
    for t in range(5):
        assert_close(y[t], v[:t + 1].mean(dim=0))

class Head(nn.Module):
    """One head of self-attention, as in Karpathy's lecture "Let's build GPT"."""

    def __init__(self, n_embd, head_size):
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)  # what a position looks for
        self.key = nn.Linear(n_embd, head_size, bias=False)  # what it can be found by
        self.value = nn.Linear(n_embd, head_size, bias=False)  # what it gives when it is found

    def forward(self, x):
        return attend(self.query(x), self.key(x), self.value(x))  # (B, T, head_size)

def test_queries_are_not_keys_since_what_a_position_looks_for_is_not_what_it_is():
    # A vowel may look for consonants, but it is found as a vowel. If queries and keys were the
    # same, position i would give position j the same score that j gives i.
    x = torch.randn(10, 32)
    head = Head(32, 8)
    scores = head.query(x) @ head.key(x).mT
    assert not torch.allclose(scores, scores.mT, atol=0.1)
    head.key = head.query
    scores = head.query(x) @ head.key(x).mT
    assert_close(scores, scores.mT)

def test_queries_and_keys_decide_the_weights_and_values_are_what_is_averaged():
    x = torch.randn(10, 32)
    head = Head(32, 32)
    # If the values are the rows of the identity matrix, attention returns the weights themselves.
    weights = attend(head.query(x), head.key(x), torch.eye(10))  # (T, T)
    assert_close(head(x), weights @ head.value(x))
    assert not torch.allclose(head(x), weights @ x, atol=0.1)  # x itself is not given away
    assert_close(head(x)[0], head.value(x)[0])  # the first position has only itself to ask

def test_attention_is_a_directed_graph_in_which_every_edge_points_from_the_past():
    T = 6
    q, k = torch.randn(2, T, 8)
    edges = attend(q, k, torch.eye(T))  # (T, T): row t has the weights of position t, as above
    for t in range(T):
        assert (edges[t, :t + 1] > 0).all()  # from each position so far to t, and from t to t
        assert (edges[t, t + 1:] == 0).all()  # no edge from a later position
        assert edges[t].sum().item() == pytest.approx(1)

def test_one_product_with_a_mask_replaces_many_small_ones():
    q, k, v = torch.randn(3, 10, 8)
    rows = []
    for t in range(10):
        shares = (k[:t + 1] @ q[t] / 8 ** 0.5).softmax(dim=0)
        rows.append(shares @ v[:t + 1])
    assert_close(attend(q, k, v), torch.stack(rows))

def test_the_division_by_the_root_of_D_keeps_scores_small_whatever_D():
    for D in (16, 64, 256):
        q, k = torch.randn(2, 4000, D)
        scores = (q * k).sum(dim=1)
        assert scores.std().item() == pytest.approx(D ** 0.5, rel=0.1)
        assert (scores / D ** 0.5).std().item() == pytest.approx(1, rel=0.1)

def test_the_softmax_of_large_scores_is_bad_since_it_listens_to_one_position_and_cannot_learn():
    largest, gradients = [], []
    for factor in (1, 16):  # 16 is the spread of scores without the division, at D = 256
        scores = (factor * torch.tensor([0.1, -0.2, 0.3, -0.2, 0.5])).requires_grad_()
        weights = scores.softmax(dim=0)
        (weights * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
        largest.append(weights.max().item())
        gradients.append(scores.grad.norm().item())
    assert largest[0] < 0.3 and largest[1] > 0.9  # nearly one-hot
    assert gradients[1] < gradients[0] / 5

class MultiHead(nn.Module):
    """Several heads side by side, then a projection, as in the same lecture."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // n_head) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))  # (B, T, C)

def test_heads_are_small_and_several_since_one_mixes_all_it_finds_with_the_same_weights():
    # Position 2 wants one feature of position 0 and another of position 1. One head that looks at
    # both positions gets their mean. Two heads of half the size get both features whole.
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    q = torch.tensor([[0.0], [0.0], [50.0]])  # so large that position 2 itself gets no weight
    first = torch.tensor([[1.0], [0.0], [0.0]])
    second = torch.tensor([[0.0], [1.0], [0.0]])
    one_head = attend(q, first + second, v)
    two_heads = torch.cat((attend(q, first, v[:, :1]), attend(q, second, v[:, 1:])), dim=1)
    assert_close(one_head[2], torch.tensor([0.5, 0.5]))
    assert_close(two_heads[2], torch.tensor([1.0, 1.0]))
    assert count(MultiHead(32, 4)) == count(MultiHead(32, 1))  # as many parameters

def test_the_attention_of_gpt_py_is_the_plain_heads_side_by_side():
    attention = gpt.CausalSelfAttention(tiny(rotary=False))  # 32 channels, 2 heads
    heads = MultiHead(32, 2)
    heads.proj.weight = attention.c_proj.weight
    query, key, value = attention.c_attn.weight.split(32)  # one layer makes all three
    for i, head in enumerate(heads.heads):
        head.query.weight.data = query[16 * i:16 * (i + 1)]
        head.key.weight.data = key[16 * i:16 * (i + 1)]
        head.value.weight.data = value[16 * i:16 * (i + 1)]
    x = torch.randn(3, 10, 32)
    assert_close(attention(x), heads(x))

def test_pytorch_has_attention_in_one_call(monkeypatch):
    attention = gpt.CausalSelfAttention(tiny())
    x = torch.randn(3, 10, 32)
    written_out = attention(x)
    monkeypatch.setattr(gpt, 'flash', True)
    assert_close(attention(x), written_out)

# ---- positions ----
SHUFFLED = [3, 0, 8, 5, 1, 7, 2, 6, 4, 9]  # the last position stays in its place

def test_without_positions_one_layer_of_attention_does_not_know_the_order_of_the_past():
    x = torch.randn(1, 10, 32)
    attention = gpt.CausalSelfAttention(tiny(rotary=False))
    assert_close(attention(x)[0, 9], attention(x[:, SHUFFLED])[0, 9])
    # Two layers know the order. The mask lets each position see a different past, so the results of
    # the first layer depend on the order.
    two = nn.Sequential(attention, gpt.CausalSelfAttention(tiny(rotary=False)))
    assert not torch.allclose(two(x)[0, 9], two(x[:, SHUFFLED])[0, 9], atol=1e-4)

def test_learned_positions_add_a_vector_for_the_position_to_the_vector_for_the_character():
    model = gpt.GPT(tiny(rotary=False))
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    idx = torch.tensor([[3, 3, 7]])
    model(idx)
    assert_close(seen[0][0, 0], model.wte.weight[3] + model.wpe.weight[0])
    assert_close(seen[0][0, 1], model.wte.weight[3] + model.wpe.weight[1])
    assert_close(seen[0][0, 2], model.wte.weight[7] + model.wpe.weight[2])
    assert model.wpe.weight.std().item() == pytest.approx(0.02, rel=0.2)  # small at first

def test_rotary_positions_make_a_score_depend_on_the_distance():
    q, k = torch.randn(2, 16)  # (D,) each
    rotated_q = gpt.rotate(q.expand(10, 16))  # the same query at 10 positions
    rotated_k = gpt.rotate(k.expand(10, 16))
    scores = rotated_q @ rotated_k.mT
    assert_close(scores[3:, 3:], scores[:-3, :-3])  # query and key both move by three
    assert scores[0].std() > 0.1  # a different distance gives a different score
    assert_close(scores.diagonal(), (q @ k).expand(10))  # at distance 0, nothing has changed
    assert_close(rotated_q.norm(dim=1), q.norm().expand(10))  # a rotation keeps the length

def test_with_rotary_positions_attention_knows_the_order_without_more_parameters():
    x = torch.randn(1, 10, 32)
    attention = gpt.CausalSelfAttention(tiny(rotary=True))
    assert not torch.allclose(attention(x)[0, 9], attention(x[:, SHUFFLED])[0, 9], atol=1e-3)
    assert not hasattr(gpt.GPT(tiny(rotary=True)), 'wpe')
    assert count(attention) == count(gpt.CausalSelfAttention(tiny(rotary=False)))

# ---- the block ----
def test_attention_mixes_positions_and_the_mlp_treats_each_alone():
    # The result of attention for a position depends on all that the position sees. The MLP treats
    # each position by itself, and all positions in the same way.
    x = torch.randn(1, 10, 32)
    changed = x.clone()
    changed[0, 0] += 1
    attention, mlp = gpt.CausalSelfAttention(tiny()), gpt.MLP(tiny())
    assert not torch.allclose(attention(changed)[0, 9], attention(x)[0, 9], atol=1e-3)
    assert_close(mlp(changed)[0, 1:], mlp(x)[0, 1:])
    assert_close(mlp(x)[:, 4], mlp(x[:, 4]))

def test_without_gelu_the_mlp_would_be_no_more_than_one_matrix():
    linear = edited_gpt([('F.gelu(self.c_fc(x))', 'self.c_fc(x)')]).MLP(tiny())
    matrix = linear.c_proj.weight @ linear.c_fc.weight  # (C, C)
    x = torch.randn(10, 32)
    assert_close(linear(x), x @ matrix.mT)
    with_gelu = gpt.MLP(tiny())
    assert not torch.allclose(with_gelu(-x), -with_gelu(x), atol=0.01)  # no matrix does this

def test_layernorm_normalizes_each_position_and_does_not_care_who_else_is_in_the_batch():
    ln = gpt.Block(tiny()).ln_1
    x = torch.randn(8, 32)
    y = ln(3 * x + 2)
    assert_close(y.mean(dim=1), torch.zeros(8), atol=1e-5, rtol=0)
    assert_close(y.var(dim=1, correction=0), torch.ones(8), atol=1e-3, rtol=0)
    assert_close(ln(x)[:4], ln(x[:4]))
    batch_norm = nn.BatchNorm1d(32)
    assert not torch.allclose(batch_norm(x)[:4], batch_norm(x[:4]), atol=0.01)

def test_a_block_is_two_branches_off_a_residual_stream_each_behind_its_norm():
    block = gpt.Block(tiny())
    for ln in (block.ln_1, block.ln_2):
        nn.init.normal_(ln.weight)  # so that the two differ
    x = torch.randn(1, 10, 32)
    y = x + block.attn(block.ln_1(x))
    assert_close(block(x), y + block.mlp(block.ln_2(y)))  # post-norm would be ln_1(x + attn(x))

def test_residuals_let_gradients_reach_the_start_and_layernorm_keeps_them_from_vanishing():
    def share_that_reaches_the_start(layers, residual):
        x = start = torch.randn(1, 10, 32, requires_grad=True)
        for layer in layers:
            x = residual * x + layer(x)
        gradient = torch.randn_like(x)  # as if it came from the loss
        x.backward(gradient)
        return (start.grad.norm() / gradient.norm()).item()

    mlps = [gpt.MLP(tiny()) for _ in range(12)]
    assert 0.5 < share_that_reaches_the_start(mlps, residual=1) < 2
    assert share_that_reaches_the_start(mlps, residual=0) < 1e-5
    # Each MLP shrinks its input. LayerNorm scales the input up again, and with it the gradient.
    with_norms = [nn.Sequential(nn.LayerNorm(32), mlp) for mlp in mlps]
    assert share_that_reaches_the_start(with_norms, residual=0) > 0.1

def test_dropout_acts_in_training_only_and_on_both_branches():
    x = torch.randn(1, 10, 32)
    block = gpt.Block(tiny(dropout=0.5))
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
    assert torch.equal(gpt.Block(tiny(dropout=1.0))(x), x)  # nothing is left of either branch

# ---- the whole model ----
@pytest.mark.parametrize('rotary', [True, False])
def test_the_future_cannot_change_the_past(rotary):
    model = gpt.GPT(tiny(rotary=rotary))
    idx = torch.randint(10, (1, 16))
    changed = idx.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 10
    before, _ = model(idx)
    after, _ = model(changed)
    assert_close(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9], after[0, 9])

def test_the_windows_of_a_batch_do_not_see_each_other():
    model = gpt.GPT(tiny())
    idx = torch.randint(10, (4, 16))
    all_logits, _ = model(idx)
    first_logits, _ = model(idx[:1])
    assert_close(all_logits[:1], first_logits)

def test_the_last_position_is_enough_to_write_since_it_sees_all_others():
    model = gpt.GPT(tiny())
    idx = torch.randint(10, (1, 16))
    before, _ = model(idx)
    for t in range(16):
        changed = idx.clone()
        changed[0, t] = (changed[0, t] + 1) % 10
        after, _ = model(changed)
        assert not torch.equal(before[0, -1], after[0, -1])

def loss_after_training(model, batches):
    """Train on batches (N, B, T+1), one after the other. Return the loss of the last batch."""
    optimizers = gpt.make_optimizers(model)
    for idx in batches:
        _, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()

def test_without_the_mask_the_loss_falls_below_what_is_possible():
    batches = torch.randint(10, (150, 16, 17))  # nobody can predict random characters
    assert loss_after_training(gpt.GPT(tiny()), batches) > np.log(10) - 0.05
    unmasked = edited_gpt([('wei.masked_fill(tril == 0, -torch.inf)', 'wei')])
    assert loss_after_training(unmasked.GPT(tiny()), batches) < np.log(10) - 1  # the model saw them

def test_weights_are_tied_since_characters_alike_when_read_are_alike_when_written():
    model = gpt.GPT(tiny())
    assert model.lm_head.weight is model.wte.weight  # one table, trained from both sides
    model.wte.weight.data[7] = model.wte.weight.data[3]  # let 3 and 7 be read in the same way
    logits, _ = model(torch.tensor([[3, 1], [7, 1]]))
    assert_close(logits[0], logits[1])
    assert_close(logits[..., 3], logits[..., 7])  # then they are as likely to be written

def test_the_last_norm_stands_between_the_blocks_and_the_logits():
    model = gpt.GPT(tiny())
    idx = torch.randint(10, (1, 16))
    x = model.wte(idx)
    for block in model.blocks:
        x = block(x)
    assert_close(model(idx)[0], F.layer_norm(x, (32,)) @ model.wte.weight.mT)

def test_with_learned_positions_the_model_is_the_transformer_that_comes_with_pytorch():
    # An encoder with a mask is the lecture's decoder, which has no cross-attention.
    model = gpt.GPT(tiny(rotary=False))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)  # so that no two norms are the same
    layer = nn.TransformerEncoderLayer(32, nhead=2, dim_feedforward=128, dropout=0.0,
                                       activation='gelu', batch_first=True, norm_first=True,
                                       bias=False)
    layers = nn.TransformerEncoder(layer, 2, norm=model.ln_f, enable_nested_tensor=False)
    for theirs, ours in zip(layers.layers, model.blocks):
        theirs.norm1 = ours.ln_1
        theirs.self_attn.in_proj_weight = ours.attn.c_attn.weight
        theirs.self_attn.out_proj.weight = ours.attn.c_proj.weight
        theirs.norm2 = ours.ln_2
        theirs.linear1.weight = ours.mlp.c_fc.weight
        theirs.linear2.weight = ours.mlp.c_proj.weight
    idx = torch.randint(10, (4, 16))
    x = model.wte(idx) + model.wpe.weight
    x = layers(x, mask=nn.Transformer.generate_square_subsequent_mask(16))
    logits, _ = model(idx)
    assert_close(logits, x @ model.wte.weight.mT)

def test_the_parameters_are_tables_and_twelve_squares_a_layer():
    for n_layer, C in ((2, 32), (4, 32), (2, 64)):  # linear in depth, quadratic in width
        model = gpt.GPT(tiny(vocab_size=65, block_size=16, n_layer=n_layer, n_embd=C, rotary=False))
        tables = 65 * C + 16 * C  # wte and wpe; lm_head is the table wte again
        norms = (2 * n_layer + 1) * 2 * C  # a gain and a bias for each channel
        matrices = n_layer * (4 + 8) * C ** 2  # attention 4, MLP 8
        assert count(model) == tables + norms + matrices

def flops(model, *args):
    """Return how many multiplications and additions the products in a model take."""
    with FlopCounterMode(display=False) as counter:
        model(*args)
    return counter.get_total_flops()

def test_attention_is_quadratic_in_T_and_the_rest_is_linear():
    n_layer, C, V = 2, 128, 10
    multiply_and_add = 2
    with torch.device('meta'):  # shapes without numbers, so that a long window needs no memory
        model = gpt.GPT(tiny(block_size=100_000, n_layer=n_layer, n_embd=C))
        for T in (64, 128, 100_000):
            attention = n_layer * 2 * T * T * C  # q @ k.mT and wei @ v
            matrices = n_layer * 12 * T * C * C
            logits = T * C * V
            total = flops(model, torch.zeros(1, T, dtype=torch.long))
            assert total == multiply_and_add * (attention + matrices + logits)
    rest = multiply_and_add * (matrices + logits)  # at T = 100,000
    assert (total - rest) / rest == pytest.approx(130, rel=0.01)

# ---- training ----
@pytest.mark.parametrize('script', [bigram, gpt])
def test_a_model_predicts_text_that_it_has_trained_on_better_than_other_text(
        script, monkeypatch, capsys):
    write_data('ab' * 900 + 'aabb' * 50)
    set_globals(monkeypatch, script, max_iters=100, eval_interval=75)
    capsys.readouterr()
    script.train()
    out = capsys.readouterr().out
    losses = re.findall(r'step (\d+): train loss (.*), val loss (.*)', out)
    assert [step for step, _, _ in losses] == ['0', '75', '100']
    _, train_loss, val_loss = losses[-1]
    assert float(train_loss) < 0.15
    assert float(val_loss) > float(train_loss) + 0.1
    script.train()
    assert capsys.readouterr().out == out  # the same seed
    set_globals(monkeypatch, script, seed=2, max_iters=1)
    script.train()
    step_0 = re.compile('step 0: .*')
    assert step_0.search(capsys.readouterr().out)[0] != step_0.search(out)[0]

def test_each_step_of_the_bigram_uses_the_gradient_of_one_batch(monkeypatch):
    write_data()
    sums = []

    def step(optimizer):
        [table] = optimizer.param_groups[0]['params']
        sums.append(table.grad.abs().sum().item())

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    bigram.train()
    assert len(sums) == 300
    assert max(sums) < 2  # the gradients of the logits of one example add up to less than 2

def test_gradients_add_up_until_they_are_set_to_zero():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    (w ** 2).sum().backward()
    assert w.grad.tolist() == [2, 4]
    (w ** 2).sum().backward()
    assert w.grad.tolist() == [4, 8]  # hence zero_grad after each step
    torch.optim.AdamW([w]).zero_grad()
    assert w.grad is None

def test_the_first_step_of_adamw_is_as_large_for_every_gradient_but_0_and_decay_shrinks_all():
    w = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    w.grad = torch.tensor([0.001, -100.0, 0.0])
    torch.optim.AdamW([w], lr=0.1, weight_decay=0.0).step()
    assert_close(w.detach(), torch.tensor([0.9, 1.1, 1.0]), rtol=1e-4, atol=0)
    w.grad = torch.zeros(3)
    before = w.detach().clone()
    torch.optim.AdamW([w], lr=0.1, weight_decay=0.5).step()
    assert_close(w.detach(), before * (1 - 0.1 * 0.5))  # even without a gradient

def test_newton_schulz_keeps_the_directions_and_makes_them_about_equally_strong():
    for rows, columns in ((32, 32), (32, 128), (40, 7)):
        U, S, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
        G = gpt.newton_schulz(U @ torch.linspace(1, 0.05, len(S)).diag() @ Vh)
        after = U.mT @ G @ Vh.mT
        assert_close(after, after.diagonal().diag(), rtol=0, atol=1e-3)
        assert 0.65 < after.diagonal().min() and after.diagonal().max() < 1.2
    assert not gpt.newton_schulz(torch.zeros(3, 5)).any()  # zeros stay zeros: no nan

def test_even_windows_are_spread_evenly_however_many_have_been_taken(monkeypatch):
    n = 10_000
    for steps in (1, 10, 100):
        starts = np.sort(np.concatenate([gpt.even_starts(step, n) for step in range(steps)]))
        assert len(starts) == steps * gpt.batch_size
        assert 0 <= starts.min() and starts.max() < n
        gaps = np.diff(starts)
        even = n / len(starts)
        assert 0.35 * even < gaps.min() + 1 and gaps.max() < 2 * even + 1
    first = gpt.even_starts(0, n)
    monkeypatch.setattr(gpt, 'seed', 1338)
    assert not set(first) & set(gpt.even_starts(0, n))  # another seed, other offsets

# ---- writing ----
@torch.no_grad()
def test_to_write_is_to_predict_sample_append_and_predict_again():
    model = gpt.GPT(tiny())
    idx = torch.randint(10, (1, 3))
    lengths = []
    hook = model.register_forward_pre_hook(lambda model, args: lengths.append(args[0].shape[1]))
    torch.manual_seed(0)
    written = model.generate(idx, 20)
    hook.remove()
    assert lengths == [min(3 + i, 16) for i in range(20)]
    torch.manual_seed(0)
    for _ in range(20):
        logits, _ = model(idx[:, -16:])  # no more than a window
        probs = logits[:, -1].softmax(dim=-1)  # of what follows the last character
        idx = torch.cat((idx, torch.multinomial(probs, 1)), dim=1)
    assert torch.equal(written, idx)

def assert_same_logits(model, cached):
    """A model of gpt.py and one of sample.py, which has a cache, must agree."""
    idx = torch.randint(10, (2, 12))
    expected, _ = model(idx)
    assert_close(cached(idx[:, :8], 0), expected[:, :8])  # the whole prompt at once
    for t in range(8, 12):  # then character by character
        assert_close(cached(idx[:, t:t + 1], t), expected[:, t:t + 1])

@torch.no_grad()
@pytest.mark.parametrize('rotary', [True, False])
def test_a_cache_of_keys_and_values_saves_computing_the_past_again(rotary):
    # The mask hides later positions from the earlier ones, so the keys and values of the earlier
    # ones never change. The second argument of cached is the position of the first token given.
    model, cached = gpt_and_sample(tiny(rotary=rotary))
    assert_same_logits(model, cached)
    idx = torch.randint(10, (1, 16))
    cached(idx[:, :15], 0)
    assert 16 * flops(cached, idx[:, 15:], 15) == flops(model, idx)  # one position, not 16

@pytest.mark.parametrize('settings, expected', [
    ({}, [0.1, 0.4, 0.3, 0.2]),
    ({'temperature': 0.5}, [1 / 30, 16 / 30, 9 / 30, 4 / 30]),  # squares the odds
    ({'temperature': 0}, [0, 1, 0, 0]),
    ({'top_k': 2}, [0, 4 / 7, 3 / 7, 0]),
    ({'top_p': 0}, [0, 1, 0, 0]),
    ({'top_p': 0.69}, [0, 4 / 7, 3 / 7, 0]),  # two characters have 0.4 + 0.3 = 0.7
    ({'top_p': 0.71}, [0, 4 / 9, 3 / 9, 2 / 9]),  # so three are needed
    ({'temperature': 0.5, 'top_p': 0.5}, [0, 1, 0, 0]),  # the temperature acts first: 16 / 30
    ({'top_k': 2, 'top_p': 0.5}, [0, 1, 0, 0])])  # top_k acts first: 4 / 7
def test_temperature_top_k_and_top_p_favor_the_likelier(monkeypatch, settings, expected):
    set_globals(monkeypatch, sample, **settings)
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(20000, 4)
    share = torch.bincount(sample.choose(logits)[:, 0], minlength=4) / 20000
    assert share.tolist() == pytest.approx(expected, abs=0.02)

# ---- the ladder: from a bigram to gpt.py, in the order of "Let's build GPT" ----
class Residual(nn.Module):
    """Add the output of a layer to its input."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)

class Rung(nn.Module):
    """A vector for each character plus one for each position, then some layers, then logits."""

    def __init__(self, config, *layers):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.layers = nn.Sequential(*layers)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))  # (B, T, C)
        logits = self.lm_head(self.layers(x))  # (B, T, V)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

def rungs(vocab_size):
    """Return for each rung its name, config and model, and the best of two to four learning rates.

    From the rung 'feed-forward' on, gpt.py's attention replaces MultiHead, because it is faster. A
    test above shows that the two compute the same. The last two rungs are wider and have longer
    windows, since the lecture, too, ends with a larger model."""
    small = tiny(vocab_size=vocab_size, block_size=8, n_head=4, rotary=False)
    large = tiny(vocab_size=vocab_size, block_size=16, n_embd=64, n_head=4, rotary=False)
    rotary = SimpleNamespace(**vars(large) | {'rotary': True})
    C = small.n_embd
    return [
        ('bigram', small, bigram.Bigram(vocab_size), 4e-2),
        ('one head', small, Rung(small, Head(C, C)), 4e-2),
        ('four heads', small, Rung(small, MultiHead(C, 4)), 4e-2),
        ('feed-forward', small, Rung(small, gpt.CausalSelfAttention(small), gpt.MLP(small)), 4e-2),
        ('residuals, twice as deep', small, Rung(
            small, Residual(gpt.CausalSelfAttention(small)), Residual(gpt.MLP(small)),
            Residual(gpt.CausalSelfAttention(small)), Residual(gpt.MLP(small))), 2e-2),
        ('LayerNorm', small, Rung(
            small, gpt.Block(small), gpt.Block(small), nn.LayerNorm(C)), 2e-2),
        ('gpt.py, larger, switches off', large, gpt.GPT(large), 5e-3),
        ('gpt.py, larger, switches on', rotary, gpt.GPT(rotary), 2e-2)]

def train_rung(i, seed=1):
    """Train rung i. Return its name, parameters and validation loss.

    train_rung changes the settings of gpt.py, so each call needs a process of its own."""
    torch.set_num_threads(1)
    text = '\n'.join(topics.topics.values())  # of Python's help()
    chars = ''.join(sorted(set(text)))
    tokens = prepare.encode(text, chars)
    train_data, val_data = tokens[:400_000], tokens[400_000:432_768]
    torch.manual_seed(seed)
    name, config, model, rate = rungs(len(chars))[i]
    switches = config.rotary
    batch_size = 512 // config.block_size  # each step reads 512 characters
    settings = TINY | dict(batch_size=batch_size, block_size=config.block_size, seed=seed,
                           muon=switches, max_iters=600, warmup_iters=49, learning_rate=rate,
                           muon_learning_rate=rate)
    for setting, value in settings.items():
        setattr(gpt, setting, value)
    optimizers = gpt.make_optimizers(model)
    schedulers = [LambdaLR(optimizer, gpt.lr_factor) for optimizer in optimizers]
    torch.manual_seed(seed)
    for step in range(gpt.max_iters):
        if switches:
            starts = gpt.even_starts(step, len(train_data) - config.block_size)
        else:
            starts = torch.randint(len(train_data) - config.block_size, (batch_size,))
        x, y = gpt.get_batch(train_data, starts)
        _, loss = model(x, y)
        loss.backward()
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return name, count(model), gpt.estimate_loss(model, val_data)

def test_each_rung_of_the_ladder_is_better_than_the_one_below_except_layernorm():
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        slowest_first = list(pool.map(train_rung, reversed(range(8))))
    ladder = slowest_first[::-1]
    below = None
    losses = {}
    for name, n, loss in ladder:
        print(f'{name:30}{n:8,} parameters   val loss {loss:.3f}')
        losses[name] = loss
        if name == 'LayerNorm':
            # In a model so small, the rung with LayerNorm nearly ties with the rung below.
            assert loss < below + 0.1
        elif below is not None:
            assert loss < below - 0.03  # more than three seeds differ, on the text of Python 3.11
        below = loss
    # The larger model must win back whatever the rung with LayerNorm has lost.
    assert losses['gpt.py, larger, switches off'] < losses['residuals, twice as deep']

# ---- functions that the tests use ----
def edited(script, edits=(), **globals):
    """Return the source of a script, with (old, new) edits of its text and with other globals."""
    source = (HERE / script).read_text(encoding='utf-8')
    for name, value in globals.items():
        line = f'{name} = {value!r}'.replace('\\', r'\\')
        source, n = re.subn(rf'^{name} = .*', line, source, flags=re.M)
        assert n == 1, f'{script} has {n} lines for {name}, not one'
    for old, new in edits:
        assert source.count(old) == 1, f'{script} must have this exactly once: {old}'
        source = source.replace(old, new)
    return source

def edited_script(script, edits=(), **globals):
    """Return an edited script as a module. The tests' settings fill in what is not given."""
    module = types.ModuleType('edited')
    defaults = {'gpt.py': TINY, 'sample.py': WRITE}[script]
    exec(edited(script, edits, **defaults | globals), vars(module))
    return module

def edited_gpt(edits, **globals):
    return edited_script('gpt.py', edits, **globals)

def run(script, *command, **edits):
    """Run an edited copy of a script. Return its status, its output and its errors."""
    Path(script).write_text(edited(script, **edits), encoding='utf-8')
    done = subprocess.run([sys.executable, *command, script], text=True, errors='replace',
                          capture_output=True, timeout=300)
    return done.returncode, done.stdout, done.stderr

@torch.no_grad()
def gpt_and_sample(config, gpt=gpt, sample=sample):
    """Return a model of gpt.py with random weights, and what sample.py makes of its checkpoint."""
    model = gpt.GPT(config).eval()
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    gpt.save('ckpt.pt', dict(config=vars(config), chars='abcdefghij', model=model.state_dict(),
                             probe=gpt.probe(model)))
    return model, sample.load_model()[0]

def write_data(text=TEXT):
    Path('input.txt').write_text(text, encoding='utf-8', newline='')
    prepare.prepare()

def read_data():
    chars = json.loads(Path('meta.json').read_text())['chars']
    return chars, *(np.fromfile(f'{split}.bin', np.uint16) for split in ('train', 'val'))

def weights(path='latest.pt'):
    return torch.load(path)['model']

# ---- prepare.py ----
@pytest.mark.parametrize('text', ['Быть или не быть! ' * 2, '生存还是毁灭' * 9,
                                  '👩\u200d🚀 and a \0 and more', 'é日😀' * 400_000 + 'z',
                                  ''.join(map(chr, range(0x3400, 0x3400 + 40_000)))])
def test_encoding_loses_nothing_however_long_the_text(text, capsys):
    write_data(text)
    chars, train, val = read_data()
    assert list(chars) == sorted(set(text))
    assert gpt.decode([*train, *val], chars) == text
    assert len(train) == int(0.9 * len(text))  # nine tenths are for training
    assert capsys.readouterr().out == (
        f'{len(train):,} characters for training, {len(val):,} for validation\n'
        f'{len(chars):,} different characters: {chars!r}\n')
    checksum = json.loads(Path('meta.json').read_text())['sha256']
    assert checksum == hashlib.sha256(text.encode()).hexdigest()
    assert sorted(os.listdir()) == ['input.txt', 'meta.json', 'train.bin', 'val.bin']

def test_a_mark_at_the_start_and_the_kind_of_line_ends_change_nothing():
    write_data('\ufeff' + TEXT.replace('\n', '\r\n'))
    chars, train, val = read_data()
    assert gpt.decode([*train, *val], chars) == TEXT

@pytest.mark.parametrize('content, words', [
    (b'', '0 characters'), (b'too short', '9 characters'),
    (b'nineteen characters', '19 characters'), (b'caf\xe9 noir' * 9, "UTF-8.*after b'caf'"),
    (b'cut in a character \xc3', 'UTF-8')])
def test_prepare_tells_what_is_wrong_with_a_text(content, words):
    Path('input.txt').write_bytes(content)
    with pytest.raises(SystemExit, match=words):
        prepare.prepare()
    assert os.listdir() == ['input.txt']

def test_a_full_disk_cuts_no_text():
    resource = pytest.importorskip('resource')  # not on Windows
    write_data()
    old = read_data()
    Path('input.txt').write_text('ab' * 4000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_500, hard))  # bytes; the tokens need 16,000
    try:
        with pytest.raises(OSError):
            prepare.prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for before, after in zip(old, read_data()):
        assert list(before) == list(after)

def test_a_crash_between_two_files_does_not_leave_data_of_two_texts(monkeypatch):
    write_data()
    replace = os.replace

    def crash(old, new):
        if new == 'val.bin':
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, 'replace', crash)
    with pytest.raises(KeyboardInterrupt):
        write_data(TEXT[::-1])
    with pytest.raises(SystemExit, match='run python prepare.py'):
        gpt.train()

def test_a_crash_before_all_files_are_written_changes_nothing(monkeypatch):
    write_data()
    old = read_data()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, 'dump', crash)
    with pytest.raises(KeyboardInterrupt):
        write_data(TEXT[::-1])
    for before, after in zip(old, read_data()):
        assert list(before) == list(after)

def test_a_download_is_used_only_if_it_is_the_right_one(monkeypatch, capsys):
    Path('remote').write_text(TEXT, encoding='utf-8', newline='')
    monkeypatch.setattr(prepare, 'url', Path('remote').absolute().as_uri())
    with pytest.raises(SystemExit, match='another text'):
        prepare.download()
    assert not Path('input.txt').exists()
    monkeypatch.setattr(prepare, 'sha256', hashlib.sha256(TEXT.encode()).hexdigest())
    prepare.download()
    assert Path('input.txt').read_text(encoding='utf-8') == TEXT
    os.remove('remote')  # the download now fails
    prepare.download()
    out = capsys.readouterr().out
    assert 'could not be downloaded' in out and 'not write like\nShakespeare' in out
    assert Path('input.txt').stat().st_size > 100_000

def test_a_download_that_breaks_off_leaves_no_half_text(monkeypatch):
    def break_off(*_, **__):
        raise http.client.IncompleteRead(b'half')

    monkeypatch.setattr(prepare, 'urlopen', break_off)
    with monkeypatch.context() as patch, pytest.raises(http.client.IncompleteRead):
        patch.setattr(os, 'replace', break_off)
        prepare.download()
    assert not Path('input.txt').exists()
    prepare.download()
    assert Path('input.txt').stat().st_size > 100_000

def test_prepare_downloads_a_text_that_is_not_there():
    Path('remote').write_text(TEXT, encoding='utf-8', newline='')
    status, out, err = run('prepare.py', url=Path('remote').absolute().as_uri(),
                           sha256=hashlib.sha256(TEXT.encode()).hexdigest())
    assert status == 0, err
    assert out.startswith('2,700 characters for training, 300 for validation\n')

# ---- optimizers, windows and heads ----
def test_a_head_of_odd_size_is_refused_by_rotary():
    with pytest.raises(ValueError):
        gpt.GPT(tiny(n_embd=6))(torch.zeros(1, 5, dtype=torch.long))  # three channels are no pairs

def test_muon_takes_the_steps_of_torch_optim_Muon():
    for shape in ((32, 32), (96, 32), (32, 128)):
        ours = nn.Parameter(torch.randn(shape))
        theirs = nn.Parameter(ours.detach().clone())
        muon = gpt.Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.05)
        reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.05,
                                     adjust_lr_fn='match_rms_adamw')
        for _ in range(3):
            before = ours.detach().clone()
            theirs.data.copy_(before)
            ours.grad = theirs.grad = torch.randn(shape)
            muon.step()
            reference.step()
            step, other = ours.detach() - before, theirs.detach() - before
            assert F.cosine_similarity(step.flatten(), other.flatten(), dim=0) > 0.995
            assert step.norm().item() == pytest.approx(other.norm().item(), rel=0.02)  # bfloat16

def test_muon_trains_the_matrices_of_the_blocks_and_adamw_every_other_parameter():
    with_bias = edited_gpt([('3 * config.n_embd, bias=False', '3 * config.n_embd, bias=True')])
    model = with_bias.GPT(tiny())
    muon, adamw = gpt.make_optimizers(model)
    trained = {p: optimizer for optimizer in (muon, adamw)
               for p in optimizer.param_groups[0]['params']}
    for name, p in model.named_parameters():
        is_matrix = 'attn.c_' in name or 'mlp.c_' in name
        assert trained[p] is (muon if is_matrix and 'bias' not in name else adamw), name
    assert muon.param_groups[0]['weight_decay'] == 0.3
    assert muon.param_groups[0]['momentum'] == 0.9
    assert adamw.param_groups[0]['weight_decay'] == 0
    assert adamw.param_groups[0]['betas'] == (0.9, 0.999)
    before = [p.detach().clone() for p in model.parameters()]
    muon.step()  # without gradients
    assert all(map(torch.equal, before, model.parameters()))

def test_the_rate_is_that_of_the_optimizers_in_use_and_rises_then_falls_to_nothing(monkeypatch):
    write_data()
    rates = []

    def step(optimizer, *_):
        rates.append(optimizer.param_groups[0]['lr'])

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    monkeypatch.setattr(gpt.Muon, 'step', step)
    shape = [1 / 2, 3 / 4, 1 / 2, 1 / 4]  # one step of warm-up, then a straight line to 0
    set_globals(monkeypatch, gpt, max_iters=4, warmup_iters=1, learning_rate=0.1,
                muon_learning_rate=0.01)
    gpt.train()
    assert rates == pytest.approx([0.01 * share for share in shape for _ in range(2)])
    rates.clear()
    monkeypatch.setattr(gpt, 'muon', False)
    gpt.train()
    assert rates == pytest.approx([0.1 * share for share in shape])
    [adamw] = gpt.make_optimizers(gpt.GPT(tiny()))
    assert adamw.param_groups[0]['weight_decay'] == 0.1
    assert adamw.param_groups[0]['betas'] == (0.9, 0.999)

def test_groups_of_parameters_may_have_rates_of_their_own(monkeypatch):
    write_data()
    rates = []

    def make_optimizers(model):
        first, *rest = model.parameters()
        groups = [dict(params=[first], lr=0.01), dict(params=rest, lr=0.001)]
        return [torch.optim.AdamW(groups)]

    def step(optimizer, *_):
        rates.append([group['lr'] for group in optimizer.param_groups])

    monkeypatch.setattr(gpt, 'make_optimizers', make_optimizers)
    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    gpt.train()
    assert rates[0] == pytest.approx([0.01, 0.001])
    assert rates[11] == pytest.approx([0.01 / 12, 0.001 / 12])  # in the last of 12 steps

@pytest.mark.parametrize('even', [True, False])
def test_the_switch_decides_between_even_and_random_windows(monkeypatch, even):
    write_data()
    get_batch = gpt.get_batch
    taken = []

    def record(data, starts):
        taken.append([int(i) for i in starts])
        return get_batch(data, starts)

    set_globals(monkeypatch, gpt, get_batch=record, even_windows=even)
    gpt.train()
    _, train, _ = read_data()
    for step in range(12):
        assert (gpt.even_starts(step, len(train) - gpt.block_size).tolist() in taken) == even

def test_random_windows_start_everywhere(monkeypatch):
    write_data()
    np.zeros(18, np.uint16).tofile('train.bin')  # room for two windows and their targets
    get_batch = gpt.get_batch
    taken = set()

    def record(data, starts):
        if torch.is_grad_enabled():  # in training
            taken.update(starts)
        return get_batch(data, starts)

    set_globals(monkeypatch, gpt, get_batch=record, even_windows=False)
    gpt.train()
    assert taken == {0, 1}

@pytest.mark.parametrize('setting, dtype', [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_computed_in_bfloat16_if_the_setting_says_so(monkeypatch, setting, dtype):
    write_data()
    monkeypatch.setattr(gpt, 'bfloat16', setting)
    cross_entropy = F.cross_entropy
    dtypes = set()

    def record(logits, targets):
        if logits.requires_grad:  # in training
            dtypes.add(logits.dtype)
        return cross_entropy(logits, targets)

    monkeypatch.setattr(F, 'cross_entropy', record)
    gpt.train()
    assert dtypes == {dtype}
    assert gpt.newton_schulz(torch.ones(2, 2)).dtype == dtype

# ---- training ----
def test_a_run_says_what_it_does_and_leaves_what_sample_needs(monkeypatch, capsys):
    write_data()
    set_globals(monkeypatch, gpt, dropout=0.5, out_dir='some/folder', max_iters=60,
                eval_interval=40)
    best_loss = gpt.train()
    out = capsys.readouterr().out
    n = count(gpt.GPT(tiny(vocab_size=len(read_data()[0]))))
    assert f'\n{n:,} parameters on cpu, steps 0 to 60\n' in out
    assert len(re.findall(r'step 50 of 60: batch loss [\d.]+\n', out)) == 1
    step_0 = re.search(r'step 0: train loss ([\d.]+), val loss ([\d.]+)\n', out)
    assert [float(loss) for loss in step_0.groups()] == pytest.approx([np.log(32)] * 2, rel=0.1)
    assert re.search(r'step 60: train loss [\d.]+, val loss [\d.]+\n', out)
    ckpt = torch.load('some/folder/ckpt.pt')
    assert ckpt['val_loss'] == best_loss
    last = f"best: step {ckpt['step']}, val loss {best_loss:.4f}, saved in some/folder/ckpt.pt"
    assert out.splitlines()[-1] == last
    assert sorted(os.listdir('some/folder')) == ['ckpt.pt', 'latest.pt']
    monkeypatch.setattr(sample, 'out_dir', 'some/folder')
    _, chars = sample.load_model()
    assert chars == read_data()[0]

def test_losses_and_texts_are_made_without_dropout():
    model = gpt.GPT(tiny(dropout=0.5))
    data = np.random.default_rng(0).integers(10, size=200)
    losses, texts = [], []
    for training in (True, False):
        model.train(training)
        losses.append(gpt.estimate_loss(model, data))
        torch.manual_seed(0)
        model.train(training)
        texts.append(model.generate(torch.zeros(1, 1, dtype=torch.long), 30))
    assert losses[0] == losses[1]
    assert torch.equal(texts[0], texts[1])

def test_dropout_acts_in_every_step_of_training(monkeypatch):
    write_data()
    forward = gpt.GPT.forward
    modes = []

    def record(model, idx, targets=None):
        if torch.is_grad_enabled():
            modes.append(model.training)
        return forward(model, idx, targets)

    monkeypatch.setattr(gpt.GPT, 'forward', record)
    gpt.train()
    assert modes == [True] * 12

def test_the_loss_of_a_long_validation_split_is_estimated_on_its_first_tokens(monkeypatch):
    write_data()
    tokens = np.arange(300_000).astype(np.uint16)
    for split in ('train', 'val'):
        tokens.tofile(f'{split}.bin')
    for script, n in ((gpt, 2 ** 18), (bigram, 300_000)):
        _, train_data, val_data = script.load_data()
        assert np.array_equal(train_data, tokens)
        assert np.array_equal(val_data, tokens[:n])

def test_the_sample_at_the_end_is_by_the_best_weights_after_step_0(monkeypatch, capsys):
    write_data('a' + TEXT)  # the first and the last characters of the training split differ
    _, train, val = read_data()
    losses = iter([9.0, 1.0, 9.0, 2.0, 9.0, 3.0])  # train and val at steps 0, 6, 12
    splits = iter([train[:len(val)], val] * 3)

    def estimate_loss(model, data):
        assert np.array_equal(data, next(splits))
        return next(losses)

    monkeypatch.setattr(gpt, 'estimate_loss', estimate_loss)
    used = []

    def generate(model, idx, n):
        used.append(model.state_dict()['wte.weight'].clone())
        assert idx.tolist() == [[0]] and n == 20
        return idx

    monkeypatch.setattr(gpt.GPT, 'generate', generate)
    gpt.train()
    assert torch.equal(used[0], weights('ckpt.pt')['wte.weight'])
    assert not torch.equal(used[0], weights('latest.pt')['wte.weight'])
    assert 'step 6, val loss 2.0000' in capsys.readouterr().out.splitlines()[-1]

# ---- nothing is lost, and every error is reported ----
@pytest.mark.parametrize('rotary', [True, False])
@pytest.mark.parametrize('even_windows', [True, False])
@pytest.mark.parametrize('muon', [True, False])
@pytest.mark.parametrize('bfloat16', [True, False])
def test_a_resumed_run_is_the_run_that_never_stopped(
        monkeypatch, capsys, rotary, even_windows, muon, bfloat16):
    write_data()
    set_globals(monkeypatch, gpt, dropout=0.3, rotary=rotary, even_windows=even_windows, muon=muon,
                bfloat16=bfloat16)
    gpt.train()
    whole = torch.load('latest.pt')

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        losses = iter([9.0, 9.0, 9.0, 9.0])  # train and val at steps 0 and 6
        patch.setattr(gpt, 'estimate_loss', lambda *_: next(losses, None) or interrupt())
        gpt.train()
    assert torch.load('latest.pt')['step'] == 6
    torch.manual_seed(999)  # another process would have other random numbers
    monkeypatch.setattr(gpt, 'resume', True)
    gpt.train()
    assert torch.load('latest.pt')['val_loss'] == whole['val_loss']
    for name, weight in whole['model'].items():
        assert torch.equal(weight, weights()[name]), name
    capsys.readouterr()
    sample.main()
    assert len(capsys.readouterr().out) == 1 + 30 + 1  # the start, 30 characters, a line end

def test_rates_and_decay_come_from_the_settings_and_the_momenta_from_latest(monkeypatch):
    write_data()
    gpt.train()
    latest = torch.load('latest.pt')
    set_globals(monkeypatch, gpt, muon_learning_rate=0.5, muon_weight_decay=0.25)
    model = gpt.GPT(SimpleNamespace(**latest['config']))
    optimizers = gpt.make_optimizers(model)
    gpt.restore(model, optimizers, latest['fixed'])
    for optimizer, state in zip(optimizers, latest['optimizers']):
        assert optimizer.param_groups[0]['lr'] == 0.5
        assert_close(optimizer.state_dict()['state'], state, rtol=0, atol=0)
    assert optimizers[0].param_groups[0]['weight_decay'] == 0.25

@pytest.mark.parametrize('text, change, words', [
    (TEXT[::-1], {}, 'another text'), (TEXT, dict(n_head=4), 'another n_head'),
    (TEXT, dict(rotary=False), 'another rotary'), (TEXT, dict(batch_size=4), 'another batch_size'),
    (TEXT, dict(block_size=8), 'another block_size'),
    (TEXT, dict(muon=False), 'another kind of optimizer'),
    (TEXT, dict(max_iters=6), 'step 12, beyond')])
def test_a_run_is_not_resumed_with_another_text_model_batch_size_or_optimizer(
        monkeypatch, text, change, words):
    write_data()
    gpt.train()
    write_data(text)
    set_globals(monkeypatch, gpt, **dict(resume=True, max_iters=18) | change)
    with pytest.raises(AssertionError, match=words):
        gpt.train()

def test_a_run_may_be_resumed_with_another_dropout(monkeypatch):
    write_data()
    gpt.train()
    set_globals(monkeypatch, gpt, resume=True, max_iters=18, dropout=0.5)
    gpt.train()
    assert torch.load('latest.pt')['step'] == 18

def test_a_run_is_not_resumed_when_the_code_of_the_model_has_changed():
    write_data()
    gpt.train()
    with pytest.raises(AssertionError, match='other code'):
        edited_gpt([('F.gelu', 'F.relu')], resume=True, max_iters=18).train()

@pytest.mark.parametrize('difference, same', [(5e-4, True), (8e-3, False)])
def test_logits_may_differ_from_the_stored_ones_by_rounding_only(monkeypatch, difference, same):
    write_data()
    gpt.train()
    for name in ('ckpt.pt', 'latest.pt'):
        checkpoint = torch.load(name)
        checkpoint['probe'] += difference
        torch.save(checkpoint, name)
    set_globals(monkeypatch, gpt, resume=True, max_iters=18)
    for load in (sample.load_model, gpt.train):
        if same:
            load()
        else:
            with pytest.raises((AssertionError, SystemExit), match='other code|another model'):
                load()

def test_the_best_is_kept_and_comes_back_when_it_is_moved_away(monkeypatch):
    write_data()
    losses = iter([9.0, 9.0, 9.0, 2.0, 9.0, 3.0, 9.0, 3.0, 9.0, 2.5,
                   9.0, 3.0, 9.0, 4.0])  # train and val
    set_globals(monkeypatch, gpt, out_dir='run', estimate_loss=lambda *_: next(losses))
    gpt.train()  # at steps 0, 6, 12
    assert torch.load('run/ckpt.pt')['val_loss'] == torch.load('run/latest.pt')['best_loss'] == 2.0
    set_globals(monkeypatch, gpt, resume=True, max_iters=18)
    gpt.train()  # at steps 12 and 18
    assert torch.load('run/ckpt.pt')['val_loss'] == torch.load('run/latest.pt')['best_loss'] == 2.0
    assert torch.load('run/latest.pt')['val_loss'] == 2.5
    os.remove('run/ckpt.pt')
    monkeypatch.setattr(gpt, 'max_iters', 24)
    gpt.train()  # at steps 18 and 24
    assert torch.load('run/ckpt.pt')['val_loss'] == 3.0

def test_a_new_run_that_stops_between_its_two_files_is_resumed_as_that_run(monkeypatch):
    write_data()
    set_globals(monkeypatch, gpt, seed=2, out_dir='whole')
    gpt.train()
    set_globals(monkeypatch, gpt, seed=1, out_dir='.')
    gpt.train()  # an older run
    save = gpt.save

    def save_and_stop(name, checkpoint):
        save(name, checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpt, 'seed', 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gpt, 'save', save_and_stop)
        gpt.train()
    monkeypatch.setattr(gpt, 'resume', True)
    gpt.train()
    for name in ('ckpt.pt', 'latest.pt'):
        assert torch.load(name)['val_loss'] == torch.load(f'whole/{name}')['val_loss']

def test_a_save_that_breaks_off_leaves_the_old_file(monkeypatch):
    os.mkdir('run')
    monkeypatch.setattr(gpt, 'out_dir', 'run')
    gpt.save('latest.pt', {'step': 1})

    def break_off(checkpoint, path):
        assert Path(path).parent == Path('run')  # files are moved in one step within one folder
        assert str(os.getpid()) in path  # another process has another temporary file
        Path(path).write_bytes(b'half a file')
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'save', break_off)
    with pytest.raises(OSError, match='no space'):
        gpt.save('latest.pt', {'step': 2})
    assert torch.load('run/latest.pt') == {'step': 1}

def test_a_loss_that_is_not_finite_stops_the_run_and_replaces_nothing(monkeypatch):
    write_data()
    gpt.train()
    old = Path('latest.pt').read_bytes()
    set_globals(monkeypatch, gpt, muon_learning_rate=1e30)
    with pytest.raises(AssertionError, match='step=6'):
        gpt.train()
    assert Path('latest.pt').read_bytes() == old

@pytest.mark.parametrize('loss', [np.inf, np.nan])
def test_no_model_is_saved_whose_validation_loss_is_not_finite(monkeypatch, loss):
    write_data()
    losses = iter([1.0, 1.0, 1.0, loss])  # train and val at steps 0 and 6
    monkeypatch.setattr(gpt, 'estimate_loss', lambda *_: next(losses))
    with pytest.raises(AssertionError, match='step=6'):
        gpt.train()
    assert not Path('latest.pt').exists() and not Path('ckpt.pt').exists()

class Hostile:
    """An object that makes a folder when pickle loads it."""

    def __reduce__(self):
        return os.mkdir, ('it-ran',)

def test_a_hostile_file_runs_nothing(monkeypatch):
    write_data()
    monkeypatch.setattr(gpt, 'resume', True)
    for path, load in (('latest.pt', gpt.train), ('ckpt.pt', sample.load_model)):
        torch.save({'model': Hostile()}, path)
        with pytest.raises(Exception, match='weights_only'):
            load()
    assert not Path('it-ran').exists()

def test_what_is_not_there_yet_or_too_short_is_reported_in_one_line(monkeypatch):
    for script in (gpt, bigram):
        with pytest.raises(SystemExit, match='run python prepare.py'):
            script.train()
    with pytest.raises(SystemExit, match='run python gpt.py'):
        sample.main()
    write_data('a short poem\n' * 5)
    for script in (gpt, bigram):
        monkeypatch.setattr(script, 'block_size', 7)
        with pytest.raises(SystemExit, match='block_size=7: at most 6'):
            script.train()
        monkeypatch.setattr(script, 'block_size', 6)
        script.train()
    os.remove('latest.pt')
    monkeypatch.setattr(gpt, 'resume', True)
    with pytest.raises(SystemExit, match='no ./latest.pt .* set resume = False'):
        gpt.train()

# ---- sample.py ----
@torch.no_grad()
@pytest.mark.parametrize('rotary', [True, False])
@pytest.mark.parametrize('length', [1, 2, 5, 16, 17, 40])
def test_a_long_prompt_counts_with_its_last_window_and_a_full_window_is_halved(
        monkeypatch, rotary, length):
    set_globals(monkeypatch, sample, temperature=0, max_new_tokens=40)
    model, cached = gpt_and_sample(tiny(rotary=rotary))
    idx = torch.randint(10, (2, length))
    context = idx[:, -16:]
    for idx_next in sample.generate(cached, idx):
        logits, _ = model(context)
        assert torch.equal(idx_next[:, 0], logits[:, -1].argmax(dim=-1))
        context = torch.cat((context, idx_next), dim=1)
        if context.shape[1] > 16:
            context = context[:, -8:]

@torch.no_grad()
def test_a_window_may_be_a_single_character():
    _, cached = gpt_and_sample(tiny(block_size=1))
    assert len(list(sample.generate(cached, torch.tensor([[3]])))) == 30

@torch.no_grad()
def test_after_the_prompt_the_model_reads_one_character_at_a_time():
    _, cached = gpt_and_sample(tiny())
    lengths = []
    cached.register_forward_pre_hook(lambda model, args: lengths.append(args[0].shape[1]))
    tokens = sample.generate(cached, torch.randint(10, (1, 3)))
    for _ in range(6):
        next(tokens)
    assert lengths == [3, 1, 1, 1, 1, 1]

def test_start_is_continued_by_samples_that_depend_on_the_seed(monkeypatch, capsys):
    gpt_and_sample(tiny())

    def written(**globals):
        set_globals(monkeypatch, sample, **WRITE | globals)
        sample.main()
        return capsys.readouterr().out

    first = written(start='badge')
    assert first.startswith('badge') and len(first) == 5 + 30 + 1
    assert written(start='badge') == first
    assert written(start='badge', seed=2) != first
    assert len(written(start='abc' * 20)) == 60 + 30 + 1
    assert written()[0] == 'a'  # the first character of chars
    three = [text.strip('\n') for text in written(num_samples=3).split('-' * 40)]
    assert len(set(three)) == 3
    assert all(len(text) == 31 for text in three)
    with pytest.raises(SystemExit, match="'z'"):
        written(start='zz')
    pictures = written(start='badge' * 5, show='attention', max_new_tokens=0)
    assert pictures.count('head') == 4  # two in each block
    assert pictures.endswith('badge' * 5 + '\n')
    *_, last_line, _ = re.sub('\x1b.*?m', '', pictures).splitlines()
    assert last_line == ('badge' * 5)[-16:]  # the last window

@torch.no_grad()
def test_the_picture_of_attention_shows_the_weights_of_each_head(capsys):
    _, model = gpt_and_sample(tiny())
    idx = torch.tensor([sample.encode('badge', 'abcdefghij')])
    sample.print_attention(model, idx, 'abc\nefghij')
    line = capsys.readouterr().out.split('block 2, head 2\n')[1].splitlines()[2]
    assert re.sub('\x1b.*?m', '', line) == 'ba '  # a line end would break the triangle
    assert line.endswith('\x1b[0m')  # what follows is not red
    weights_of_d = model.blocks[1].attn.wei[0, 1, 2, :3]
    assert weights_of_d.sum().item() == pytest.approx(1)
    reds = [int(red) for red in re.findall(r'255;(\d+);', line)]
    shares = weights_of_d / weights_of_d.max()
    assert reds == pytest.approx((255 - 155 * shares).tolist(), abs=0.6)

# ---- the scripts ----
@pytest.mark.parametrize('script', ['bigram', 'gpt', 'prepare', 'sample'])
def test_each_script_is_complete_on_its_own_and_says_nothing_when_imported(script, capsys):
    source = (HERE / f'{script}.py').read_text(encoding='utf-8')
    assert not re.search(r'^ *(from|import) (bigram|gpt|prepare|sample)\b', source, flags=re.M)
    assert source.startswith('# /// script\n')  # what uv needs to know
    exec(source, {'__name__': script})
    assert capsys.readouterr() == ('', '') and not list(Path().iterdir())

def test_the_whole_path_from_a_text_to_a_sample_where_not_every_character_can_be_shown(monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    Path('input.txt').write_text('Быть или не быть. “Être” 日本 😀 ' * 50, encoding='utf-8')
    for script, globals in (('prepare.py', {}), ('bigram.py', dict(max_iters=10, eval_iters=2)),
                            ('gpt.py', TINY), ('sample.py', dict(device='cpu'))):
        status, out, err = run(script, **globals)
        assert status == 0, err
        assert '?' in out
    assert 'Быть' in Path('input.txt').read_text(encoding='utf-8')  # prepare.py keeps what is there

@pytest.mark.parametrize('script', ['prepare.py', 'bigram.py', 'gpt.py', 'sample.py'])
def test_each_script_runs_where_the_output_cannot_be_reconfigured_as_in_a_notebook(
        monkeypatch, script):
    write_data()
    gpt_and_sample(tiny())  # a checkpoint for sample.py
    settings = {'bigram.py': dict(max_iters=2, eval_iters=2), 'gpt.py': TINY, 'sample.py': WRITE}
    monkeypatch.setattr(torch.backends.mkldnn, 'enabled', True)  # set back after the test
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    exec(edited(script, **settings.get(script, {})), {'__name__': '__main__'})
    assert sys.stdout.getvalue()

def test_gpt_py_prints_each_line_at_once(monkeypatch):
    write_data()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO()))  # as in a pipe
    exec(edited('gpt.py', **TINY), {'__name__': '__main__'})
    assert sys.stdout.line_buffering

@torch.no_grad()
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('flash', [False, True])
def test_a_gpu_computes_what_a_cpu_computes(monkeypatch, flash):
    model = gpt.GPT(tiny())
    idx = torch.randint(10, (4, 16))
    expected, _ = model(idx)
    monkeypatch.setattr(gpt, 'flash', flash)
    logits, _ = model.to('cuda')(idx.to('cuda'))
    assert_close(logits.to('cpu'), expected, rtol=1e-3, atol=1e-3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('bfloat16', [False, True])
def test_a_gpu_trains_resumes_and_writes(bfloat16):
    write_data()
    cuda = TINY | dict(device='cuda', dropout=0.2, flash=True, bfloat16=bfloat16)
    for script, settings in (('gpt.py', cuda), ('sample.py', {}),
                             ('gpt.py', cuda | dict(resume=True, max_iters=18))):
        status, _, err = run(script, **settings)
        assert status == 0, err

# ---- README ----
def section(heading):
    """Return README's text under a heading, up to the next heading."""
    text = (HERE / 'README.md').read_text(encoding='utf-8').split(f'# {heading}\n')[1]
    return re.split(r'^##+ ', text, flags=re.M)[0]

def table(heading):
    """Return the rows of the table under a heading as lists of cells, without the header."""
    rows = re.findall(r'^\| .*\|$', section(heading), flags=re.M)
    return [[cell.strip() for cell in row.strip('|').split(' | ')] for row in rows[1:]]

def diffs(heading):
    """Return {name: [(old, new), ...]} of the diffs under a heading, each after a bold name.

    An empty line ends an edit. Lines without a sign are in old and in new."""
    found = {}
    named = re.compile(r'^\*\*([^*\n]+)\*\*[^\n]*\n```diff\n(.*?)```', flags=re.S | re.M)
    lines_with = lambda signs, edit: ''.join(
        line[1:] + '\n' for line in edit.splitlines() if line[0] in signs)
    for name, diff in named.findall(section(heading)):
        edits = diff.split('\n\n')
        found[name] = [(lines_with('- ', edit), lines_with('+ ', edit)) for edit in edits]
    return found

def edits_of_the_model():
    """Return {name: [(old, new), ...]} of the rows of the table and of the diffs below it."""
    found = {}
    for name, old, new, *_ in table('The parts'):
        found[name] = [(old.strip('`'), new.strip('`'))]
    return found | diffs('The parts')

def for_sample_py(edits):
    """Return the same edits for sample.py, where self.attn has a second argument."""
    call = re.compile(r'self\.attn\((x|self\.ln_1\(x\))\)')
    with_pos = lambda lines: call.sub(r'self.attn(\1, pos)', lines)
    return [(with_pos(old), with_pos(new)) for old, new in edits]

EDITS = edits_of_the_model()

def test_each_name_in_the_readme_exists():
    rows = table('From the lecture to here')
    scripts = {path.name: path.read_text(encoding='utf-8') for path in HERE.glob('*.py')}
    models = ''.join(scripts[name] for name in ('prepare.py', 'bigram.py', 'gpt.py'))
    assert len(rows) >= 12
    for _, ours in rows:
        for name in re.findall(r'`(\w+)`', ours):
            used = rf'\b(def|class) {name}\b|\b{name} = |\b{name}, .* = |self\.{name}\b'
            assert re.search(used, models), name
    readme = (HERE / 'README.md').read_text(encoding='utf-8')
    tests = re.findall(r'`(test_\w+)`', readme)
    assert len(tests) >= 9
    for name in tests:
        assert f'def {name}(' in scripts['test_gpt.py'], name
    settings = re.findall(r'`(\w+) = [^`]+`', section('Things to try'))
    assert len(settings) >= 10
    for name in settings:
        assert re.search(rf'^{name} = ', scripts['gpt.py'] + scripts['sample.py'], flags=re.M), name
    assert len(EDITS) >= 11 and 'no residuals' in EDITS

def test_the_defaults_are_those_that_the_readme_names():
    default = types.ModuleType('default')
    exec(edited('gpt.py', device='cpu'), vars(default))
    column = {name: cell for name, *_, cell in table('The model')}
    sizes = default.n_layer, default.n_head, default.n_embd, default.block_size
    assert column['layers, heads, channels, window'] == ', '.join(map(str, sizes))
    assert column['tokens in a step'] == f'{default.batch_size * default.block_size:,}'
    assert column['steps'] == f'{default.max_iters:,}'
    assert column['dropout'] == 'none' and default.dropout == 0
    assert default.rotary and default.even_windows and default.muon and not default.flash
    assert (default.muon_learning_rate, default.muon_weight_decay) == (1e-2, 0.3)
    assert (default.learning_rate, default.weight_decay) == (3e-3, 0.1)
    assert (default.seed, default.eval_interval, default.warmup_iters) == (1337, 500, 100)

def test_the_sizes_in_the_readme_have_the_parameters_that_it_says():
    rows = table('The sizes')
    assert len(rows) >= 3
    for sizes, parameters, *_ in rows:
        n_layer, n_head, n_embd = map(int, re.findall(r'\d+', sizes)[:3])
        model = gpt.GPT(tiny(vocab_size=65, n_layer=n_layer, n_head=n_head, n_embd=n_embd))
        assert count(model) == int(parameters.replace(',', ''))

@torch.no_grad()
@pytest.mark.parametrize('name', EDITS)
def test_an_edit_of_the_model_is_the_same_edit_in_both_files(name):
    config = tiny(rotary=True)
    edited_sample = edited_script('sample.py', for_sample_py(EDITS[name]))
    if name == 'no mask':  # then a new character changes earlier keys and values
        with pytest.raises(SystemExit, match='another model'):
            gpt_and_sample(config, edited_gpt(EDITS[name]), edited_sample)
        return
    model, cached = gpt_and_sample(config, edited_gpt(EDITS[name]), edited_sample)
    assert_same_logits(model, cached)

@torch.no_grad()
def test_sample_py_refuses_a_mask_that_single_positions_skip():
    # Each position sees itself and the three before it. sample.py has no mask for one position.
    windowed = edited_gpt([('.tril()', '.tril().triu(-3)')])
    edits = [('.tril(pos)', '.tril(pos).triu(pos - 3)')]
    with pytest.raises(SystemExit, match='another model'):
        gpt_and_sample(tiny(), windowed, edited_script('sample.py', edits))
    edits.append(('if T > 1:', 'if True:'))
    model, cached = gpt_and_sample(tiny(), windowed, edited_script('sample.py', edits))
    assert_same_logits(model, cached)

@pytest.mark.parametrize('name', EDITS)
def test_an_edited_model_trains_and_sample_py_refuses_it_until_it_is_edited_too(name):
    write_data()
    edited_gpt(EDITS[name]).train()
    assert torch.load('latest.pt')['step'] == 12
    with pytest.raises(SystemExit, match='another model'):
        sample.load_model()

def test_the_lines_in_the_readme_train_three_seeds(capsys):
    write_data()
    lines = re.search(r'```python\n(.*?)```', section('Things to try'), flags=re.S)[1]
    exec(lines)
    out = capsys.readouterr().out
    for seed in (1337, 1, 2):
        best = torch.load(f'seed-{seed}/ckpt.pt')['val_loss']
        assert f'seed {seed} validation loss {best}\n' in out
    assert len(set(re.findall('step 0: .*', out))) == 3  # the models start with other weights
    assert not torch.equal(weights('seed-1/latest.pt')['lm_head.weight'],
                           weights('seed-2/latest.pt')['lm_head.weight'])

def test_two_processes_train_the_same_model_as_one_after_the_edits_in_the_readme(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    write_data()
    gpt.train()
    one = torch.load('latest.pt')
    edits = diffs('Several processes')['The edits']
    status, _, err = run('gpt.py', '-m', 'torch.distributed.run', '--nproc_per_node=2',
                         edits=edits, **{k: v for k, v in TINY.items() if k != 'device'})
    assert status == 0, err
    assert torch.load('latest.pt')['val_loss'] == pytest.approx(one['val_loss'], rel=1e-4)
    for name, weight in one['model'].items():
        assert_close(weight, weights()[name], rtol=1e-3, atol=1e-3)
