"""What the scripts promise, as tests that need no network and no input.txt and leave no trace.

    pytest

Each test is named after the fact it holds. The first part is a walk through the ideas of a GPT, to
be read beside gpt.py; then comes what the scripts promise.
"""
import functools
import hashlib
import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # the tests are about the configuration for a CPU
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import bigram
import gpt
import prepare
import sample

os.environ['OMP_NUM_THREADS'] = '1'  # models this small gain nothing from more threads
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent

def set_globals(monkeypatch, script, **globals):
    """Edit the globals of a script, for this test."""
    for name, value in globals.items():
        monkeypatch.setattr(script, name, value)

# ---- a walk through GPT: one idea a test, in the order of the lecture ----

def test_a_token_is_a_place_among_the_sorted_distinct_characters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'input.txt').write_text('hello world')
    prepare.prepare('.')
    chars = json.loads((tmp_path / 'meta.json').read_text())['chars']
    tokens = [*np.fromfile('train.bin', np.uint16), *np.fromfile('val.bin', np.uint16)]
    assert chars == ' dehlorw' == ''.join(sorted(set('hello world')))
    assert tokens == [3, 2, 4, 4, 5, 0, 7, 5, 6, 4, 1]
    assert ''.join(chars[i] for i in tokens) == 'hello world'  # decoding undoes encoding

def test_nine_characters_hold_eight_examples(monkeypatch):
    monkeypatch.setattr(gpt, 'block_size', 8)
    text = np.array([18, 47, 56, 57, 58, 1, 15, 47, 58])
    x, y = gpt.get_batch(text, np.array([0]))  # (1, 8) each
    for t in range(8):  # one example for each length of context
        context = x[0, :t + 1]
        target = y[0, t]
        assert context.tolist() == text[:t + 1].tolist()
        assert target == text[t + 1]

def test_the_loss_is_minus_the_log_of_the_probability_given_to_what_came():
    logits = torch.randn(1, 65)
    came = torch.tensor([7])
    probs = logits.softmax(-1)
    assert_close(F.cross_entropy(logits, came), -probs[0, 7].log())
    idx = torch.randint(65, (4, 33))
    _, loss = gpt.GPT(65)(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(np.log(65), rel=0.05)  # untrained, a guess among 65

def test_a_trained_bigram_is_a_table_of_counts():
    text = torch.tensor([0, 1, 0, 2, 0, 1, 1, 0, 1, 2, 0, 0, 1])
    counts = torch.zeros(3, 3)
    for now, then in zip(text, text[1:]):
        counts[now, then] += 1
    model = bigram.Bigram(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(300):
        _, loss = model(text[None, :-1], text[None, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = counts / counts.sum(dim=1, keepdim=True)
    assert_close(model.table.weight.softmax(-1), shares, rtol=0, atol=0.01)

def test_a_batch_is_a_noisy_estimate_of_the_loss_of_a_split(monkeypatch):
    monkeypatch.setattr(gpt, 'block_size', 16)
    model = gpt.GPT(10).eval()
    text = np.random.default_rng(0).integers(10, size=4001)
    losses = []
    for i in range(0, 4000, 160):
        x, y = gpt.get_batch(text, np.arange(i, i + 160, 16))
        losses.append(model(x, y)[1].item())
    assert np.std(losses) > 1e-3  # batches differ: what counts is their mean
    assert gpt.estimate_loss(model, text) == pytest.approx(np.mean(losses), rel=1e-5)

def test_three_ways_to_average_the_past_are_one():
    B, T, C = 2, 5, 3
    x = torch.randn(B, T, C)
    by_loop = torch.zeros(B, T, C)
    for b in range(B):
        for t in range(T):
            by_loop[b, t] = x[b, :t + 1].mean(dim=0)
    triangle = torch.tril(torch.ones(T, T))
    by_product = (triangle / triangle.sum(dim=1, keepdim=True)) @ x
    by_softmax = torch.zeros(T, T).masked_fill(triangle == 0, -torch.inf).softmax(-1) @ x
    assert_close(by_loop, by_product)
    assert_close(by_loop, by_softmax)

def head(x, W_q, W_k, W_v):
    """One head of self-attention on x (T, C), written out; the weights are (D, C)."""
    T, D = len(x), len(W_q)
    angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, D, 2) / D)  # (T, D/2)
    q = gpt.rotate(F.layer_norm(x @ W_q.T, [D]), angle)  # what I look for
    k = gpt.rotate(F.layer_norm(x @ W_k.T, [D]), angle)  # what I can be found by
    v = x @ W_v.T  # what I pass on (the tests qk_norm and rotary say why those)
    scores = q @ k.T / D ** 0.5  # (T, T)
    future = torch.ones(T, T).triu(1) == 1
    scores[future] = -torch.inf
    return scores.softmax(-1) @ v

def test_one_head_of_self_attention_is_this(monkeypatch):
    monkeypatch.setattr(gpt, 'n_head', 1)
    attention = gpt.CausalSelfAttention()
    attention.c_proj = torch.nn.Identity()
    x = torch.randn(1, 10, gpt.n_embd)
    weights = [linear.weight for linear in (attention.query, attention.key, attention.value)]
    assert_close(attention(x)[0], head(x[0], *weights))

def test_many_heads_are_single_heads_side_by_side_then_a_projection(monkeypatch):
    monkeypatch.setattr(gpt, 'n_head', 4)
    attention = gpt.CausalSelfAttention()
    x = torch.randn(1, 10, gpt.n_embd)
    weights = [linear.weight for linear in (attention.query, attention.key, attention.value)]
    heads = []
    for h in range(4):  # a head has a quarter of the rows of each
        heads.append(head(x[0], *[weight.chunk(4)[h] for weight in weights]))
    side_by_side = torch.cat(heads, dim=-1)
    assert_close(attention(x)[0], attention.c_proj(side_by_side))

def test_queries_are_not_keys_and_values_are_what_is_passed_on():
    x = torch.randn(10, 32)
    W_q, W_k, W_v = torch.randn(3, 8, 32)
    y = head(x, W_q, W_k, W_v)
    swapped = head(x, W_k, W_q, W_v)
    assert not torch.allclose(y, swapped, atol=0.1)
    assert_close(head(x, W_q, W_k, 2 * W_v), 2 * y)
    assert_close(y[0], W_v @ x[0])  # the first has only itself to ask

def test_scores_grow_with_D_and_the_softmax_of_large_scores_is_nearly_one_hot():
    for D in (16, 64, 256):
        q, k = torch.randn(2, 4000, D)
        scores = (q * k).sum(dim=1)
        assert scores.var().item() == pytest.approx(D, rel=0.2)
        assert (scores / D ** 0.5).var().item() == pytest.approx(1, rel=0.2)
    scores = torch.tensor([0.1, -0.2, 0.3, -0.2, 0.5])
    large = 20 * scores
    assert scores.softmax(-1).max() < 0.3
    assert large.softmax(-1).max() > 0.9

def test_qk_norm_bounds_every_score():
    q, k = 100 * torch.randn(2, 50, 64)  # however long queries and keys become
    q, k = F.layer_norm(q, [64]), F.layer_norm(k, [64])
    assert_close(q.norm(dim=1), torch.full((50,), 8.0))  # all have length sqrt(D)
    assert (q @ k.mT / 64 ** 0.5).abs().max() <= 8.001

def test_without_positions_attention_does_not_know_the_order_of_the_past(monkeypatch):
    attention = gpt.CausalSelfAttention()
    x = torch.randn(1, 10, gpt.n_embd)
    order = [3, 0, 8, 5, 1, 7, 2, 6, 4, 9]  # the last one stays the last
    shuffled = x[:, order]
    assert not torch.allclose(attention(x)[0, 9], attention(shuffled)[0, 9], atol=1e-3)
    monkeypatch.setattr(gpt, 'rotate', lambda x, angle: x)  # wpe, added before, tells it too
    assert_close(attention(x)[0, 9], attention(shuffled)[0, 9])

def test_rotary_positions_tell_how_far_apart_two_characters_are():
    q, k = torch.randn(2, 8)  # (D,) each
    angle = torch.arange(10)[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)  # (T, D/2)
    q = gpt.rotate(q.expand(10, 8), angle)  # the same query at 10 positions
    k = gpt.rotate(k.expand(10, 8), angle)
    scores = q @ k.mT
    assert_close(scores[3:, 3:], scores[:-3, :-3])
    assert scores[0].std() > 0.1  # at another distance, another score
    assert_close(q.norm(dim=1), q[:1].norm(dim=1).expand(10))

def test_the_future_cannot_change_the_past():
    model = gpt.GPT(10)
    idx = torch.randint(10, (1, 16))
    changed = idx.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 10
    before, _ = model(idx)
    after, _ = model(changed)
    assert_close(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9], after[0, 9])

def loss_after_training(model, batches):
    """The loss on the last of batches (N, B, T+1), before the step on it."""
    optimizers = gpt.make_optimizers(model)
    for idx in batches:
        _, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.param_groups[0]['lr'] = 0.01
            optimizer.step()
            optimizer.zero_grad()
    return loss

def test_without_the_mask_the_loss_falls_below_what_is_possible(monkeypatch):
    set_globals(monkeypatch, gpt, n_layer=1, n_embd=32, n_head=2, block_size=16)
    batches = torch.randint(10, (150, 16, 17))  # nobody can know the next of random characters
    assert loss_after_training(gpt.GPT(10), batches) > np.log(10) - 0.05
    monkeypatch.setattr(torch.Tensor, 'triu', lambda x, _: torch.zeros_like(x))  # no mask
    assert loss_after_training(gpt.GPT(10), batches) < np.log(10) - 1  # it has seen the answers

def test_pytorch_has_attention_in_one_call():
    attention = gpt.CausalSelfAttention()
    attention.c_proj = torch.nn.Identity()
    x = torch.randn(2, 10, gpt.n_embd)
    q, k, v = [linear(x).view(2, 10, gpt.n_head, -1).transpose(1, 2)
               for linear in (attention.query, attention.key, attention.value)]
    angle = torch.arange(10)[:, None] / 10000 ** (torch.arange(0, 64, 2) / 64)
    q, k = [gpt.rotate(F.layer_norm(u, [64]), angle) for u in (q, k)]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(attention(x), y.transpose(1, 2).reshape(2, 10, gpt.n_embd))

def test_the_mlp_sees_each_position_alone():
    mlp = gpt.MLP()
    x = torch.randn(1, 10, gpt.n_embd)
    assert_close(mlp(x)[:, 4], mlp(x[:, 4]))  # computation, after communication

def test_layernorm_normalizes_each_position_and_does_not_care_who_else_is_in_the_batch():
    norm = torch.nn.LayerNorm(32, bias=False)
    batch_norm = torch.nn.BatchNorm1d(32)
    x = torch.randn(8, 32)
    centered = x - x.mean(dim=1, keepdim=True)
    variance = centered.square().mean(dim=1, keepdim=True)
    by_hand = centered / (variance + 1e-5).sqrt()
    assert_close(norm(x), by_hand)
    assert_close(norm(x)[:4], norm(x[:4]))
    assert not torch.allclose(batch_norm(x)[:4], batch_norm(x[:4]), atol=0.01)

def test_a_block_is_two_branches_off_a_residual_stream_each_behind_its_norm():
    block = gpt.Block().eval()
    x = torch.randn(1, 10, gpt.n_embd)
    y = x + block.attn(block.ln_1(x))
    assert_close(block(x), y + block.mlp(block.ln_2(y)))  # pre-norm
    after = block.ln_1(x + block.attn(x))
    post_norm = block.ln_2(after + block.mlp(after))  # as the first Transformer had it
    assert not torch.allclose(block(x), post_norm, atol=0.1)

def test_residuals_let_gradients_reach_the_start():
    def gradient(residual):
        """How much of a gradient at the end of 12 layers reaches the beginning."""
        start = torch.randn(1, 10, gpt.n_embd, requires_grad=True)
        x = start
        for _ in range(12):
            x = residual * x + gpt.MLP()(x)
        x.sum().backward()
        return start.grad.norm() / torch.ones_like(x).norm()
    assert 0.5 < gradient(residual=1) < 2
    assert gradient(residual=0) < 1e-5

def test_dropout_acts_in_training_only(monkeypatch):
    monkeypatch.setattr(gpt, 'dropout', 0.5)
    model = gpt.GPT(10)
    idx = torch.randint(10, (1, 16))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])

def test_tied_weights_are_one_tensor():
    model = gpt.GPT(10)
    assert model.lm_head.weight is model.wte.weight

def test_the_parameters_are_two_tables_and_twelve_squares_a_layer(monkeypatch):
    def count(n_layer, C, V=65, T=32):
        set_globals(monkeypatch, gpt, n_layer=n_layer, n_embd=C, n_head=1, block_size=T)
        n = sum(p.numel() for p in gpt.GPT(V).parameters())
        assert n == V * C + T * C + 12 * n_layer * C ** 2 + (2 * n_layer + 1) * C  # the norms
        return n
    assert count(4, C=256) / count(4, C=128) == pytest.approx(4, rel=0.03)
    assert count(8, C=128) / count(4, C=128) == pytest.approx(2, rel=0.03)

def test_attention_costs_T_squared_and_the_rest_T():
    def flops(T):
        with FlopCounterMode(display=False) as counter:
            gpt.GPT(65)(torch.zeros(1, T, dtype=torch.long))
        return counter.get_total_flops()
    attention = 2 * 2 * 64 ** 2 * gpt.n_embd * gpt.n_layer  # q @ k.mT and softmax @ v, T = 64
    assert flops(128) - 2 * flops(64) == (4 - 2) * attention  # what is linear cancels

@torch.no_grad()
def test_to_write_is_to_predict_sample_append_and_predict_again():
    model = gpt.GPT(10).eval()
    idx = torch.randint(10, (1, 3))
    torch.manual_seed(0)
    written = model.generate(idx, 5)
    torch.manual_seed(0)
    for _ in range(5):
        logits, _ = model(idx)
        probs = logits[:, -1].softmax(-1)  # of what follows the last character
        idx = torch.cat((idx, torch.multinomial(probs, 1)), dim=1)
    assert torch.equal(written, idx)

def test_a_text_can_be_learned_by_heart_and_only_val_shows_it(monkeypatch):
    set_globals(monkeypatch, gpt, n_layer=2, n_embd=32, n_head=2, block_size=16)
    model = gpt.GPT(10)
    text, other = torch.randint(10, (2, 4, 17))
    assert loss_after_training(model, text.expand(150, 4, 17)) < 0.1
    assert model(other[:, :-1], other[:, 1:])[1] > np.log(10)

@torch.no_grad()
def test_a_cache_of_keys_and_values_saves_computing_the_past_again():
    model = gpt.GPT(10).eval()
    idx = torch.randint(10, (2, 12))
    cached = sample.Model(model.state_dict(), gpt.n_layer, gpt.n_head)
    cached(idx[:, :8])  # prefill
    for t in range(8, 12):  # decode: one character in, the logits of the next out
        logits = cached(idx[:, t:t + 1], t)
        expected, _ = model(idx[:, :t + 1])
        assert_close(logits[:, -1], expected[:, -1])

def test_temperature_top_k_and_top_p_choose_among_the_likelier(monkeypatch):
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(20000, 4)
    torch.manual_seed(0)
    for settings, expected in [
            ({}, [0.1, 0.4, 0.3, 0.2]),
            ({'temperature': 0.5}, [1 / 30, 16 / 30, 9 / 30, 4 / 30]),  # squares the odds
            ({'temperature': 0}, [0, 1, 0, 0]),
            ({'temperature': 1e-40}, [0, 1, 0, 0]),
            ({'top_k': None}, [0.1, 0.4, 0.3, 0.2]),
            ({'top_k': 2}, [0, 4 / 7, 3 / 7, 0]),
            ({'top_p': 0.8}, [0, 4 / 9, 3 / 9, 2 / 9]),
            ({'top_p': 0.69}, [0, 4 / 7, 3 / 7, 0]),
            ({'top_p': 0.39}, [0, 1, 0, 0]),
            ({'top_p': 1e-9}, [0, 1, 0, 0])]:
        with monkeypatch.context() as patch:
            set_globals(patch, sample, **{'temperature': 1.0} | settings)
            share = torch.bincount(sample.choose(logits)[:, 0], minlength=4) / 20000
        assert share.tolist() == pytest.approx(expected, abs=0.02), settings

def test_top_p_takes_no_more_than_it_needs(monkeypatch):
    monkeypatch.setattr(sample, 'top_p', 0.5)
    chosen = sample.choose(torch.zeros(1000, 2))  # the first reaches one half, exactly
    assert len(set(chosen.flatten().tolist())) == 1

# ---- help ----

TEXT = 'The quick brown fox jumps over the lazy dog; the dog, being lazy, lets it.\n' * 40
TINY = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=8, max_iters=12,
            eval_interval=6, dropout=0.0, bfloat16=False, device='cpu')

def edit(script, folder, **globals):
    """Leave a copy of a script in folder, with globals edited as a user would edit them."""
    source = (HERE / script).read_text()
    for name, value in globals.items():
        source, n = re.subn(rf'^{name} = .*', lambda _: f'{name} = {value!r}', source, flags=re.M)
        assert n == 1, f'{script} has not one line for {name}'
    (folder / script).write_text(source)

def run(script, folder, *command, preexec_fn=None, **globals):
    edit(script, folder, **globals)
    return subprocess.run([sys.executable, *command, script], cwd=folder, capture_output=True,
                          text=True, timeout=100, preexec_fn=preexec_fn)

def assert_one_line(result, *words, status=1):
    """It failed as a user may expect: one line that says what is wrong, no traceback."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == status and len(lines) == 1, result.stderr
    assert 'Traceback' not in result.stderr
    for word in words:
        assert word in lines[0], lines[0]

def allow_ctrl_c():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it

def in_parallel(cases):
    """The results of some calls, made two at a time: most of a script's start is waiting."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda case: case(), cases))

@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """An empty folder as the current one, and gpt.py with a model that trains in a moment."""
    monkeypatch.chdir(tmp_path)
    set_globals(monkeypatch, gpt, **TINY)
    torch.manual_seed(0)
    return tmp_path

@pytest.fixture
def data(tiny):
    """The same with TEXT prepared in it."""
    write_data(TEXT)
    return tiny

def write_data(text):
    pathlib.Path('input.txt').write_text(text, encoding='utf-8', newline='')
    os.makedirs('new', exist_ok=True)
    prepare.prepare('new')
    os.rmdir('new')

def read_data():
    chars = json.loads(pathlib.Path('meta.json').read_text())['chars']
    return chars, *(np.fromfile(f'{split}.bin', np.uint16) for split in ('train', 'val'))

# ---- prepare.py ----

@pytest.mark.parametrize('text', [
    'Hello, world!\n', 'Быть или не быть\r\n', '生存还是毁灭，这是问题。', 'שלום עולם مرحبا',
    '👩\u200d🚀 and a \0 and a\rcarriage return', '\ufeff\ufeffa byte order mark, then one more'])
@pytest.mark.parametrize('chunk_size', [1, 7, 1 << 22])
def test_encoding_loses_nothing_however_it_is_read(text, chunk_size, tiny, monkeypatch):
    monkeypatch.setattr(prepare, 'chunk_size', chunk_size)
    write_data(text)
    chars, train, val = read_data()
    assert list(chars) == sorted(set(text.removeprefix('\ufeff')))
    assert ''.join(chars[i] for i in [*train, *val]) == text.removeprefix('\ufeff')

@pytest.mark.parametrize('chunk_size', [7, 1 << 22])
def test_the_first_nine_tenths_train(tiny, monkeypatch, chunk_size):
    monkeypatch.setattr(prepare, 'chunk_size', chunk_size)
    write_data('x' * 90 + 'y' * 10)
    _, train, val = read_data()
    assert train.tolist() == [0] * 90 and val.tolist() == [1] * 10

def test_prepare_tells_what_is_wrong_with_a_text(tmp_path):
    many = ''.join(map(chr, [*range(0xD800), *range(0xE000, 0x14000)])).encode()
    cases = {
        'empty': (b'', 'length=0'),
        'one': (b'x', 'length=1'),
        'many': (many, '65536'),
        'latin1': (b'caf\xe9 noir', 'UTF-8', '0xe9', 'position 3'),
        'cut': (b'caf\xc3', 'UTF-8'),
        'surrogate': (b'a\xed\xa0\x80', 'UTF-8', 'position 1'),
        'folder': (None, 'input.txt')}
    for name, (content, *words) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        if content is None:
            (folder / 'input.txt').mkdir()
        else:
            (folder / 'input.txt').write_bytes(content)
        assert_one_line(run('prepare.py', folder), *words)
        assert sorted(path.name for path in folder.iterdir()) == ['input.txt', 'prepare.py']

def test_a_split_is_never_empty(tmp_path):
    (tmp_path / 'input.txt').write_text(TEXT)
    for share in (0.0, 1.0, 1.5, -1.0):
        assert_one_line(run('prepare.py', tmp_path, train_share=share), f'train_share={share}')

def test_a_download_is_used_only_if_it_is_the_right_one(tmp_path):
    (tmp_path / 'theirs').write_text(TEXT)
    url = (tmp_path / 'theirs').as_uri()
    assert_one_line(run('prepare.py', tmp_path, url=url), 'sha256')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['prepare.py', 'theirs']
    right = hashlib.sha256(TEXT.encode()).hexdigest()
    assert run('prepare.py', tmp_path, url=url, sha256=right).returncode == 0
    assert (tmp_path / 'input.txt').read_text() == TEXT

def test_without_a_network_python_itself_is_the_text(tmp_path):
    result = run('prepare.py', tmp_path, url='http://127.0.0.1:9/input.txt')
    assert result.returncode == 0 and 'input.txt' in result.stdout
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['meta.json', 'prepare.py', 'train.bin', 'val.bin']

# ---- what a GPT is made of ----

@pytest.mark.parametrize('shape', [dict(n_layer=4, n_head=2, n_embd=128),
                                   dict(n_layer=6, n_head=6, n_embd=384)])
def test_before_training_every_character_is_as_likely(tiny, monkeypatch, shape):
    set_globals(monkeypatch, gpt, block_size=256, **shape)
    idx = torch.randint(65, (4, 257))
    _, loss = gpt.GPT(65)(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(np.log(65), rel=0.05)

def test_dropout_is_applied_to_both_branches_of_each_block(tiny, monkeypatch):
    calls, forward = [], torch.nn.Dropout.forward
    monkeypatch.setattr(torch.nn.Dropout, 'forward', lambda self, x: (
        calls.append(self.p), forward(self, x))[1])
    monkeypatch.setattr(gpt, 'dropout', 0.25)
    gpt.GPT(10)(torch.randint(10, (1, 16)))
    assert calls == [0.25] * 2 * gpt.n_layer

@pytest.mark.parametrize('bfloat16, rounding', [(False, 1e-3), (True, 0.1)])
def test_orthogonalize_keeps_the_directions_and_makes_them_about_equally_strong(
        monkeypatch, bfloat16, rounding):
    monkeypatch.setattr(gpt, 'bfloat16', bfloat16)
    for rows, columns in ((32, 32), (32, 128), (40, 7), (1, 9)):
        U, S, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
        S = torch.linspace(1, 0.05, len(S))
        orthogonal = gpt.orthogonalize(U @ S.diag() @ Vh)
        assert orthogonal.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
        after = U.mT @ orthogonal.float() @ Vh.mT  # diagonal, if U, Vh are kept
        assert 0.2 < after.diagonal().min() and after.diagonal().max() < 1.3
        assert (after - after.diagonal().diag()).abs().max() < rounding

def test_orthogonalize_maps_each_singular_value_by_a_cubic(tiny):
    G = torch.randn(20, 30)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    S = S / G.norm()
    for _ in range(5):
        S = 2.5 * S - 1.5 * S ** 3
    assert_close(gpt.orthogonalize(G), U @ S.diag() @ Vh, rtol=1e-3, atol=1e-4)

def test_a_step_of_muon_is_the_formula(tiny, monkeypatch):
    monkeypatch.setattr(gpt, 'weight_decay', 0.5)
    p = torch.nn.Parameter(torch.randn(8, 32))
    muon = gpt.Muon([p], {'lr': 0.1})
    momentum = torch.zeros(8, 32)
    for _ in range(3):
        before, p.grad = p.detach().clone(), torch.randn(8, 32)
        momentum = 0.9 * momentum + 0.1 * p.grad
        update = gpt.orthogonalize(0.1 * p.grad + 0.9 * momentum)
        muon.step()
        expected = (1 - 0.1 * 0.5) * before - 0.1 * 0.3 * 32 ** 0.5 * update
        assert_close(p.detach(), expected)
        assert 0.2 < update.square().mean().sqrt() * 0.3 * 32 ** 0.5 < 0.4  # the RMS

def test_every_parameter_is_in_exactly_one_optimizer_and_only_matrices_decay(tiny):
    model = gpt.GPT(10)
    optimizers = gpt.make_optimizers(model)
    muon, adam = optimizers.values()
    in_muon, in_adam = (o.param_groups[0]['params'] for o in (muon, adam))
    assert sorted(map(id, in_muon + in_adam)) == sorted(map(id, model.parameters()))
    assert all(p.shape in ((32, 32), (128, 32), (32, 128)) for p in in_muon)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]['weight_decay'] == 0
    assert adam.param_groups[0]['betas'] == (0.9, 0.999)

# ---- training ----

@pytest.mark.parametrize('script', [bigram, gpt])
def test_every_target_is_the_input_moved_by_one(data, script):
    chars, train, _ = read_data()
    starts = [np.array([0, 5])] if script is gpt else []  # bigram.py draws its own
    x, y = script.get_batch(train, *starts)
    assert x.shape == y.shape == (len(x), script.block_size)
    assert torch.equal(x[:, 1:], y[:, :-1])
    text = ''.join(chars[i] for i in train)
    for window, target in zip(x, y):
        assert ''.join(chars[i] for i in [*window, target[-1]]) in text

def test_an_epoch_takes_each_character_at_most_once_and_nearly_all(tiny, monkeypatch):
    monkeypatch.setattr(gpt, 'max_iters', 14)
    steps, batches = zip(*gpt.shuffle(range(1000), 0))  # 57 windows of 17: 7 batches of 8
    assert steps == tuple(range(1, 15))
    epochs = np.split(np.concatenate(batches), 2)
    for starts in epochs:
        seen = (starts[:, None] + np.arange(17)).flatten()
        assert len(starts) == 56 and len(set(seen)) == len(seen)
        assert seen.min() >= 0 and seen.max() < 1000
        assert (np.diff(starts) < 0).sum() > 15  # in random order
    assert not set(epochs[0]) & set(epochs[1])  # cut at other places
    resumed, rest = zip(*gpt.shuffle(range(1000), 10))
    assert resumed == steps[10:] and np.array_equal(rest, batches[10:])

def test_the_trained_bigram_is_the_best_by_counting(data, monkeypatch):
    set_globals(monkeypatch, bigram, max_iters=400, eval_interval=400, eval_iters=1,
                learning_rate=0.1)
    chars, train, _ = read_data()
    counts = np.zeros((len(chars), len(chars)))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    best = np.maximum(counts, 1e-9) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    learned = bigram.train().table.weight.detach().log_softmax(dim=1).numpy()
    loss_of = lambda log_probs: -(counts * log_probs)[counts > 0].sum() / counts.sum()
    assert loss_of(np.log(best)) <= loss_of(learned) < loss_of(np.log(best)) + 0.02

def test_the_bigram_writes_after_the_last_character():
    model = bigram.Bigram(5)
    with torch.no_grad():
        model.table.weight.copy_(100 * torch.eye(5).roll(1, dims=1))  # after i comes i + 1
    written = model.generate(torch.tensor([[2, 0]]), 4)
    assert written.tolist() == [[2, 0, 1, 2, 3, 4]]

def test_the_bigram_is_judged_by_text_that_it_has_not_seen(tiny, monkeypatch, capsys):
    set_globals(monkeypatch, bigram, max_iters=300, eval_interval=300, learning_rate=0.1)
    write_data('ab' * 900 + 'aabb' * 50)  # trained on: b after a, a after b; in val, half the time
    bigram.train()
    train_loss, val_loss = re.findall(r'loss ([\d.]+)', capsys.readouterr().out)
    assert float(train_loss) < 0.1 and float(val_loss) > 1

def test_training_finds_what_only_attention_can(tiny, monkeypatch):
    """Words of random letters stand twice: who looks back knows the second, a bigram never does."""
    set_globals(monkeypatch, gpt, block_size=32, n_embd=64, batch_size=32, max_iters=300,
                eval_interval=300)
    words = (''.join(random.Random(i).choices('abcdefgh', k=8)) for i in range(2500))
    write_data(''.join(word + word for word in words))
    gpt.train()
    half_guessed = np.log(8) / 2  # the first half of each pair can only be guessed
    assert torch.load('ckpt.pt')['val_loss'] < half_guessed + 0.35 < np.log(8) - 0.6

def test_evaluation_is_the_plain_mean_over_the_whole_split_without_dropout(data, monkeypatch):
    monkeypatch.setattr(gpt, 'dropout', 0.5)
    chars, _, val = read_data()
    model = gpt.GPT(len(chars))
    loss = gpt.estimate_loss(model, val)
    n = (len(val) - 1) // 16
    val = torch.from_numpy(val.astype(np.int64))
    x = val[:16 * n].view(n, 16)
    y = val[1:16 * n + 1].view(n, 16)
    model.eval()
    assert loss == pytest.approx(model(x, y)[1].item(), rel=1e-5)

def test_the_learning_rate_falls_in_a_line_to_nothing(data, monkeypatch):
    set_globals(monkeypatch, gpt, max_iters=4, learning_rate=0.1)
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, 'step', lambda self: (
        rates.append(self.param_groups[0]['lr']), step(self)))
    gpt.train()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])

def test_parameters_may_be_in_any_number_of_groups(data, monkeypatch):
    gpt.train()
    expected = torch.load('latest.pt', weights_only=True)['model']
    def make_optimizers(model):  # a group for each parameter
        matrices = [{'params': [p]} for p in model.blocks.parameters() if p.ndim == 2]
        others = [{'params': [p]} for p in model.parameters()
                  if not any(p is group['params'][0] for group in matrices)]
        return {'muon': gpt.Muon(matrices, defaults={}), 'adam': torch.optim.Adam(others)}
    monkeypatch.setattr(gpt, 'make_optimizers', make_optimizers)
    gpt.train()
    for name, weight in torch.load('latest.pt', weights_only=True)['model'].items():
        assert torch.equal(weight, expected[name]), name

def test_the_checkpoints_hold_all_that_they_should(data, capsys):
    gpt.train()
    meta = json.loads(pathlib.Path('meta.json').read_text())
    for path in ('ckpt.pt', 'latest.pt'):
        ckpt = torch.load(path, weights_only=True)
        assert ckpt['meta'] == meta and ckpt['step'] in (6, 12)
        assert (ckpt['n_layer'], ckpt['n_head']) == (2, 2)
        model = gpt.GPT(len(meta['chars']))
        model.load_state_dict(ckpt['model'])
        loss = gpt.estimate_loss(model, gpt.load_data()[1]['val'])
        assert loss == pytest.approx(ckpt['val_loss'], rel=1e-5)
        window, logits = ckpt['probe']
        assert_close(model(window)[0], logits)
    assert f"best {ckpt['best_loss']:.4f}" in capsys.readouterr().out

def test_gpt_ends_by_writing_a_little(data, capsys):
    gpt.train()
    written = re.split(r'best [\d.]+\n', capsys.readouterr().out)[-1]
    assert len(written) == 201 + 1 and set(written) <= set(TEXT)

def test_generate_looks_at_one_window_and_writes_what_the_model_says(tiny, monkeypatch):
    model = gpt.GPT(10).eval()
    with torch.no_grad():
        model.wte.weight.mul_(500)  # nearly all probability on one character
    idx = torch.randint(10, (2, 30))
    lengths, forward = [], gpt.GPT.forward
    monkeypatch.setattr(gpt.GPT, 'forward', lambda self, idx: (
        lengths.append(idx.shape[1]), forward(self, idx))[1])
    written = model.generate(idx, 20)
    assert lengths == [16] * 20
    assert torch.equal(written[:, :30], idx) and written.shape == (2, 50)
    for i in range(30, 50):
        logits, _ = model(written[:, i - 16:i])
        expected = logits[:, -1].argmax(dim=-1)
        assert torch.equal(written[:, i], expected)

# ---- nothing is lost ----

def stop_after_first_save(monkeypatch):
    """Run gpt.train() and stop it as Ctrl-C would when it tells of its first checkpoint."""
    def print_and_stop(*args, **kwargs):
        if 'best' in ''.join(args):
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gpt, 'print', print_and_stop, raising=False)
        gpt.train()

def test_a_resumed_run_is_the_run_that_never_stopped(data, monkeypatch):
    monkeypatch.setattr(gpt, 'dropout', 0.3)
    gpt.train()
    whole = torch.load('latest.pt', weights_only=True)
    stop_after_first_save(monkeypatch)
    assert torch.load('latest.pt', weights_only=True)['step'] == 6
    monkeypatch.setattr(gpt, 'resume', True)
    gpt.train()
    resumed = torch.load('latest.pt', weights_only=True)
    assert resumed['step'] == 12 and resumed['best_loss'] == whole['best_loss']
    for name, weight in whole['model'].items():
        assert torch.equal(weight, resumed['model'][name]), name

def test_only_the_same_model_of_the_same_text_is_resumed(data, monkeypatch):
    stop_after_first_save(monkeypatch)
    monkeypatch.setattr(gpt, 'resume', True)
    for name, value in (('n_layer', 3), ('n_head', 4), ('n_embd', 64), ('block_size', 8)):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match='latest.pt') as error:
            patch.setattr(gpt, name, value)
            gpt.train()
        assert '\n' not in str(error.value)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match='another model'):
        patch.setattr(gpt.F, 'gelu', F.relu)
        gpt.train()
    other_train = TEXT[:2700][::-1] + TEXT[2700:]  # the val loss alone would not tell
    for other in (TEXT.upper(), TEXT[::-1], other_train):
        write_data(other)
        with pytest.raises(SystemExit, match='latest.pt'):
            gpt.train()

def test_a_finished_run_is_resumed_only_if_max_iters_is_raised(data, monkeypatch):
    gpt.train()
    old = pathlib.Path('latest.pt').read_bytes()
    monkeypatch.setattr(gpt, 'resume', True)
    with pytest.raises(SystemExit, match='max_iters'):
        gpt.train()
    assert pathlib.Path('latest.pt').read_bytes() == old
    monkeypatch.setattr(gpt, 'max_iters', 18)
    gpt.train()
    assert torch.load('latest.pt')['step'] == 18

def test_an_overfitting_run_keeps_the_best_and_goes_on_from_the_latest(data, monkeypatch):
    losses = iter([2.0, 3.0])  # at step 6, then at step 12
    monkeypatch.setattr(gpt, 'estimate_loss', lambda *_: next(losses))
    gpt.train()
    best, latest = torch.load('ckpt.pt'), torch.load('latest.pt')
    assert (best['step'], best['val_loss']) == (6, 2.0)
    assert (latest['step'], latest['val_loss'], latest['best_loss']) == (12, 3.0, 2.0)
    assert not torch.equal(best['model']['wte.weight'], latest['model']['wte.weight'])

def test_two_processes_take_the_steps_of_one(data, monkeypatch):
    monkeypatch.setattr(gpt, 'max_iters', 6)
    gpt.train()
    one = torch.load('latest.pt', weights_only=True)
    torchrun = ('-m', 'torch.distributed.run', '--nproc_per_node=2')
    result = run('gpt.py', data, *torchrun, **TINY | {'max_iters': 6})
    assert result.returncode == 0 and result.stdout.count('val loss') == 1, result.stderr
    two = torch.load('latest.pt', weights_only=True)
    assert two['val_loss'] == pytest.approx(one['val_loss'], rel=1e-4)
    for name, weight in one['model'].items():
        assert_close(weight, two['model'][name], rtol=1e-3, atol=1e-3)

def test_products_in_bfloat16_round_the_training_but_not_the_evaluation(data, monkeypatch):
    losses, weights = [], []
    for bfloat16 in (False, True):
        monkeypatch.setattr(gpt, 'bfloat16', bfloat16)
        gpt.train()
        ckpt = torch.load('ckpt.pt')
        losses.append(ckpt['val_loss'])
        weights.append(ckpt['model'])
        assert all(weight.dtype == torch.float32 for weight in ckpt['model'].values())
        sample.load_model()  # accepts it: the probe was computed in float32
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert not torch.equal(weights[0]['wte.weight'], weights[1]['wte.weight'])

@pytest.fixture
def one_of_two(data, monkeypatch):
    """gpt.py as one of two processes, which rank says, that never hears from the other."""
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda: None)
    monkeypatch.setattr(torch.nn.parallel, 'DistributedDataParallel', lambda net: net)
    monkeypatch.setattr(gpt, 'world_size', 2)

def test_each_process_drops_other_channels_in_each_step(one_of_two, monkeypatch):
    seeds, manual_seed = [], torch.manual_seed
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: seeds.append(seed) or manual_seed(seed))
    for rank in (0, 1):
        monkeypatch.setattr(gpt, 'rank', rank)
        gpt.train()
    first, second = seeds[:13], seeds[13:]
    assert first[0] == second[0] == gpt.seed  # the same weights, then 12 steps of their own
    assert len(set(first[1:] + second[1:])) == 24

def test_the_processes_share_each_batch(one_of_two, monkeypatch):
    taken, get_batch = [], gpt.get_batch
    monkeypatch.setattr(gpt, 'get_batch', lambda data, starts: (
        taken.append(starts), get_batch(data, starts))[1])
    shares = []
    for rank in (0, 1):
        taken.clear()
        monkeypatch.setattr(gpt, 'rank', rank)
        gpt.train()
        shares.append(taken[1])  # of the first step; before it comes the probe
    _, starts = next(gpt.shuffle(gpt.load_data()[1]['train'], 0))
    assert len(shares[0]) == len(shares[1]) == 4
    assert sorted([*shares[0], *shares[1]]) == sorted(starts)

def test_a_kill_at_any_moment_leaves_checkpoints_that_load(data):
    gpt.train()
    edit('gpt.py', data, **TINY | {'max_iters': 10**6, 'eval_interval': 1})
    for wait in (0.0, 0.05, 0.13):
        before = os.stat('ckpt.pt').st_mtime_ns
        process = subprocess.Popen([sys.executable, 'gpt.py'], stdout=subprocess.DEVNULL)
        while os.stat('ckpt.pt').st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        for path in ('ckpt.pt', 'latest.pt'):
            assert torch.load(path, weights_only=True)['meta']['chars'] == read_data()[0]

def test_a_run_that_dies_between_its_two_saves_loses_nothing(data, monkeypatch):
    gpt.train()
    whole = torch.load('ckpt.pt')
    assert whole['step'] == 12
    saved, save = [], gpt.save
    def save_three(path, ckpt):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, ckpt)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gpt, 'save', save_three)
        gpt.train()
    assert saved == ['ckpt.pt', 'latest.pt', 'ckpt.pt']
    monkeypatch.setattr(gpt, 'resume', True)
    gpt.train()
    resumed = torch.load('ckpt.pt')
    assert (resumed['step'], resumed['val_loss']) == (12, whole['val_loss'])
    assert torch.load('latest.pt')['best_loss'] == whole['val_loss']

def test_ctrl_c_says_what_is_saved_and_how_to_go_on(data):
    edit('gpt.py', data, **TINY | {'max_iters': 10**6, 'eval_interval': 10})
    process = subprocess.Popen([sys.executable, 'gpt.py'], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=allow_ctrl_c)
    assert any('best' in line for line in process.stdout)  # reads on until there is one
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and len(stderr.strip().splitlines()) == 1
    assert 'resume = True' in stderr and not list(data.glob('*.tmp'))

def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays_whole(data):
    resource = pytest.importorskip('resource')
    gpt.train()
    old = pathlib.Path('ckpt.pt').read_bytes()
    size = len(old) // 2
    small_disk = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    result = run('gpt.py', data, preexec_fn=small_disk, **TINY)
    assert_one_line(result, 'ckpt.pt', 'disk full')
    assert pathlib.Path('ckpt.pt').read_bytes() == old and not list(data.glob('*.tmp'))

def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(data, monkeypatch):
    stop_after_first_save(monkeypatch)
    old = pathlib.Path('latest.pt').read_bytes()
    monkeypatch.setattr(gpt, 'learning_rate', 1e38)
    monkeypatch.setattr(gpt, 'resume', True)
    with pytest.raises(AssertionError, match='lower learning_rate'):
        gpt.train()
    assert pathlib.Path('latest.pt').read_bytes() == old

class Hostile:
    """What pickle turns into a command when it is loaded."""
    def __reduce__(self):
        return os.system, ('touch it-ran',)

def test_a_file_that_is_no_checkpoint_is_one_line_and_does_not_run(data, monkeypatch):
    gpt.train()
    whole = pathlib.Path('ckpt.pt').read_bytes()
    monkeypatch.setattr(gpt, 'resume', True)
    cuts = [0, 1, 100, *random.Random(0).sample(range(len(whole)), 20), len(whole) - 1]
    other = {'model': {}, 'meta': {}, 'muon': {}, 'adam': {}, 'n_layer': 10**9, 'n_head': 'x'}
    for wreck in [*cuts, {'model': Hostile()}, [1, 2], torch.zeros(3), {}, other]:
        for path, load in (('latest.pt', gpt.train), ('ckpt.pt', sample.load_model)):
            if isinstance(wreck, int):
                pathlib.Path(path).write_bytes(whole[:wreck])
            else:
                torch.save(wreck, path)
            with pytest.raises(SystemExit, match=path) as error:
                load()
            assert '\n' not in str(error.value)
    assert not os.path.exists('it-ran')

def test_damage_inside_a_checkpoint_is_never_sampled_from(data):
    gpt.train()
    whole = pathlib.Path('ckpt.pt').read_bytes()
    model, _ = sample.load_model()
    for i in random.Random(0).sample(range(len(whole)), 40):
        damaged = bytearray(whole)
        damaged[i] ^= 255
        pathlib.Path('ckpt.pt').write_bytes(damaged)
        try:
            loaded, _ = sample.load_model()
        except SystemExit as e:
            assert 'ckpt.pt' in str(e) and '\n' not in str(e)
        else:  # the byte is none that anything reads
            assert torch.equal(loaded.lm_head, model.lm_head)
            for ours, theirs in zip(loaded.blocks, model.blocks):
                assert all(map(torch.equal, ours, theirs))

def test_damage_in_any_number_of_latest_is_never_resumed_from(data, monkeypatch):
    stop_after_first_save(monkeypatch)
    monkeypatch.setattr(gpt, 'resume', True)
    whole = pathlib.Path('latest.pt').read_bytes()
    with zipfile.ZipFile('latest.pt') as archive:
        records = [archive.read(name) for name in archive.namelist()]
    for record in records:
        if len(record) > 100:
            damaged = bytearray(whole)
            damaged[whole.index(record) + 50] ^= 1
            pathlib.Path('latest.pt').write_bytes(damaged)
            with pytest.raises(SystemExit, match='latest.pt'):
                gpt.train()
    pathlib.Path('latest.pt').write_bytes(whole)
    gpt.train()

def test_data_that_does_not_fit_together_is_one_line(data):
    good = {name: pathlib.Path(name).read_bytes() for name in ('train.bin', 'val.bin', 'meta.json')}
    permuted = good['train.bin'][2:] + good['train.bin'][:2]
    cases = [
        ('train.bin', good['train.bin'][:-1]),
        ('train.bin', good['val.bin']),
        ('train.bin', permuted),
        ('train.bin', b'\xff' * len(good['train.bin'])),
        ('val.bin', b''),
        ('meta.json', b''),
        ('meta.json', b'\xff\x00'),
        ('meta.json', b'[]'),
        ('meta.json', b'null'),
        ('meta.json', b'[' * 10**5),
        ('meta.json', b'{"chars": "abc"}')]
    for name, content in cases:
        pathlib.Path(name).write_bytes(content)
        for script in (gpt, bigram):
            with pytest.raises(SystemExit, match='python prepare.py') as error:
                script.train()
            assert '\n' not in str(error.value)
        pathlib.Path(name).write_bytes(good[name])

def test_gpt_and_bigram_tell_what_is_wrong_with_the_settings(data):
    empty, short = data / 'empty', data / 'short'
    for folder in (empty, short):
        folder.mkdir()
    os.chdir(short)
    write_data('to be or not to be\n' * 5)
    results = in_parallel([
        lambda: run('gpt.py', empty), lambda: run('bigram.py', empty),
        lambda: run('gpt.py', short), lambda: run('bigram.py', short)])
    assert_one_line(results[0], 'meta.json', 'run python prepare.py')
    assert_one_line(results[1], 'meta.json', 'run python prepare.py')
    assert_one_line(results[2], 'block_size=128', '1 to 9')
    assert_one_line(results[3], 'block_size=32', '9')

@pytest.mark.parametrize('name, value', [
    ('batch_size', 0),
    ('batch_size', 10**7),
    ('block_size', 0),
    ('block_size', 10**6),
    ('max_iters', 0),
    ('eval_interval', -5),
    ('n_layer', 0),
    ('n_head', 0),
    ('n_embd', 33),
    ('dropout', 1),
    ('dropout', -0.1),
    ('eval_iters', 0),
    ('max_new_tokens', -1),
    ('device', 'cuda:99')])
def test_a_setting_that_cannot_work_ends_before_any_work(data, monkeypatch, name, value):
    for script in (gpt, bigram):
        if hasattr(script, name):
            with monkeypatch.context() as patch, pytest.raises(AssertionError) as error:
                patch.setattr(script, name, value)
                script.train()
            message = str(error.value)
            assert f'{name}={value!r}' in message and len(message) > len(f'{name}={value!r}')
            assert '\n' not in message
    assert not os.path.exists('ckpt.pt')

def test_a_seed_may_be_negative(data, monkeypatch):
    for script in (gpt, bigram):
        set_globals(monkeypatch, script, seed=-1, max_iters=2, eval_interval=2)
        script.train()
    assert torch.load('latest.pt')['step'] == 2

def test_a_bad_setting_is_one_line(data):
    results = in_parallel([
        lambda: run('gpt.py', data, n_layer=0), lambda: run('bigram.py', data, batch_size=-1)])
    assert_one_line(results[0], 'n_layer=0', '1 or more')
    assert_one_line(results[1], 'batch_size=-1', '1 or more')

@pytest.mark.parametrize('script', ['gpt.py', 'bigram.py'])
def test_an_assertion_that_an_edit_adds_is_a_traceback_if_it_has_no_message(data, script):
    (data / script).write_text((HERE / script).read_text().replace(
        '    torch.manual_seed(seed)', '    assert 1 > 2', 1))
    result = subprocess.run([sys.executable, script], cwd=data, capture_output=True, text=True)
    assert result.returncode == 1
    assert 'Traceback' in result.stderr and 'assert 1 > 2' in result.stderr

# ---- safe to change ----

EDITS = {  # what a user may do to gpt.py: from, to, from, to, ...
    'untied': [
        'self.lm_head.weight = self.wte.weight', 'pass'],
    'bias': [
        'bias=False', 'bias=True'],
    'an extra matrix': [
        'self.c_fc = ', 'self.extra = nn.Linear(n_embd, 40)\n'
        '        self.back = nn.Linear(40, n_embd)\n        self.c_fc = ',
        'self.c_fc(x)', 'self.c_fc(x + self.back(self.extra(x)))'],
    'SwiGLU': [
        'self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=False)',
        'self.c_fc = nn.Linear(n_embd, 77)\n        self.gate = nn.Linear(n_embd, 77)',
        'nn.Linear(4 * n_embd,', 'nn.Linear(77,',
        'F.gelu(self.c_fc(x))', 'F.silu(self.gate(x)) * self.c_fc(x)'],
    'one Linear for all three': [
        'self.query = nn.Linear(n_embd, n_embd, bias=False)',
        'self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)',
        'self.key = nn.Linear(n_embd, n_embd, bias=False)', 'pass',
        'self.value = nn.Linear(n_embd, n_embd, bias=False)', 'pass',
        'self.query(x), self.key(x), self.value(x)', 'self.c_attn(x).chunk(3, -1)'],
    'one Linear a head': [
        'self.query = nn.Linear(n_embd, n_embd, bias=False)',
        'self.query = nn.ModuleList(nn.Linear(n_embd, n_embd // n_head) for _ in range(n_head))',
        'self.query(x)', 'torch.cat([head(x) for head in self.query], -1)'],
    'an unused matrix': [
        'self.c_fc = ', 'self.unused = nn.Linear(n_embd, n_embd)\n        self.c_fc = '],
    'a scalar gate': [
        'self.mlp = MLP()', 'self.mlp = MLP()\n        self.gate = nn.Parameter(torch.ones(()))',
        'self.mlp(self.ln_2(x))', 'self.gate * self.mlp(self.ln_2(x))'],
    'ReLU': [
        'F.gelu', 'F.relu'],
    'post-norm': [
        'x + self.dropout(self.attn(self.ln_1(x)))', 'self.ln_1(x + self.dropout(self.attn(x)))',
        'x + self.dropout(self.mlp(self.ln_2(x)))', 'self.ln_2(x + self.dropout(self.mlp(x)))'],
    'RMSNorm': [
        'nn.LayerNorm(n_embd, bias=False)', 'nn.RMSNorm(n_embd)'],
    'no learned positions': [
        ' + self.wpe[:idx.shape[1]]', ''],
    'another rotary base': [
        '10000 **', '500 **'],
    'no QK-norm': [
        'rotate(F.layer_norm(u, [D]), angle)', 'rotate(u, angle)'],
    'no mask': [
        'scores + mask', 'scores'],
}

@pytest.mark.parametrize('name', EDITS)
def test_an_edited_model_trains_whole_and_is_sampled_as_it_is_or_not_at_all(
        data, monkeypatch, name):
    source = (HERE / 'gpt.py').read_text()
    for old, new in zip(EDITS[name][::2], EDITS[name][1::2]):
        assert old in source, f'gpt.py has no {old}'
        source = source.replace(old, new)
    edited = types.ModuleType('edited')
    exec(source, vars(edited))
    set_globals(monkeypatch, edited, **TINY)
    torch.manual_seed(edited.seed)
    first = edited.GPT(len(read_data()[0])).state_dict()
    edited.train()
    trained = torch.load('latest.pt', weights_only=True)['model']
    for key, weight in first.items():
        if 'unused' in key:  # it has no gradient
            assert torch.equal(weight, trained[key])
        else:
            left_out = name == 'no learned positions' and key == 'wpe'
            assert torch.equal(weight, trained[key]) == left_out, f'{key} was not trained'
    if name in ('untied', 'no learned positions'):  # zeros are added there, which changes nothing
        sample.load_model()
    else:
        with pytest.raises(SystemExit, match='does not compute: make the same') as error:
            sample.load_model()
        assert '\n' not in str(error.value)
        assert name != 'bias' or 'blocks.0.ln_1.bias' in str(error.value)

def test_the_data_may_lie_elsewhere_and_another_split_must_be_there(data):
    os.mkdir('elsewhere')
    for name in ('train.bin', 'val.bin', 'meta.json'):
        os.replace(name, f'elsewhere/{name}')
    source = (HERE / 'gpt.py').read_text()
    moved = source.replace("'meta.json'", "'elsewhere/meta.json'")
    moved = moved.replace('{split}.bin', 'elsewhere/{split}.bin')
    edited = types.ModuleType('edited')
    exec(moved, vars(edited))
    meta, splits = edited.load_data()
    assert len(splits['val']) == len(TEXT) // 10
    exec(moved.replace("('train', 'val')}", "('train', 'val', 'test')}"), vars(edited))
    with pytest.raises(SystemExit, match='elsewhere/test.bin'):
        edited.load_data()
    os.link('elsewhere/val.bin', 'elsewhere/test.bin')
    assert len(edited.load_data()[1]['test']) == len(TEXT) // 10

@pytest.mark.parametrize('device', ['cuda', 'cuda:1'])
def test_every_gpu_gets_the_larger_configuration(device):
    source = (HERE / 'gpt.py').read_text()
    source = re.sub('^device = .*', f'device = {device!r}', source, flags=re.M)
    edited = types.ModuleType('edited')
    exec(source, vars(edited))
    assert (edited.n_layer, edited.n_head, edited.n_embd) == (6, 6, 384)
    assert (edited.batch_size, edited.block_size, edited.dropout) == (64, 256, 0.2)
    assert edited.compile is edited.bfloat16 is True

# ---- sample.py ----

def train_and_load():
    """Leaves a checkpoint that was trained a little; gpt.py's model of it, and sample.py's."""
    gpt.train()
    ckpt = torch.load('ckpt.pt', weights_only=True)
    model = gpt.GPT(len(ckpt['meta']['chars'])).eval()
    model.load_state_dict(ckpt['model'])
    return model, *sample.load_model()

@pytest.fixture
def trained(data):
    return train_and_load()

@torch.no_grad()
def test_prefill_and_decode_give_the_logits_of_training(trained):
    model, run_model, chars = trained
    idx = torch.randint(len(chars), (3, 16))
    expected, _ = model(idx)
    for T in range(1, 17):  # prefill T, then decode the rest
        got = [run_model(idx[:, :T])]
        got += [run_model(idx[:, t:t + 1], t) for t in range(T, 16)]
        assert_close(torch.cat(got, dim=1), expected, rtol=0, atol=1e-4)

@torch.no_grad()
@pytest.mark.parametrize('length', [1, 5, 16, 40])
def test_greedy_text_is_the_argmax_of_training_beyond_the_window_too(trained, monkeypatch, length):
    """Both see the same: the whole text until it outgrows 16, then its last 8, growing to 16."""
    model, run_model, chars = trained
    set_globals(monkeypatch, sample, temperature=0, max_new_tokens=40)
    computed, forward = [], sample.Model.__call__  # the lengths of what it has to compute
    monkeypatch.setattr(sample.Model, '__call__', lambda model, idx, pos: (
        computed.append(idx.shape[1]), forward(model, idx, pos))[1])
    idx = torch.randint(len(chars), (2, length))
    got = torch.cat([token for token, _ in sample.generate(run_model, idx)], dim=1)
    context = idx if length <= 16 else idx[:, -8:]
    for i in range(40):
        token = model(context)[0][:, -1].argmax(dim=-1)
        assert torch.equal(got[:, i], token)
        context = torch.cat((context, token[:, None]), dim=1)
        context = context if context.shape[1] <= 16 else context[:, -8:]
    assert len(computed) == 40 and max(computed[1:]) == 8 and computed.count(1) >= 34

def test_the_start_may_be_long_or_nothing_and_the_seed_repeats_the_text(
        trained, capsys, monkeypatch):
    monkeypatch.setattr(sample, 'max_new_tokens', 30)
    def written(**globals):
        set_globals(monkeypatch, sample, **globals)
        sample.main()
        return capsys.readouterr().out
    capsys.readouterr()
    first = written(start='The quick', seed=1)
    assert first.startswith('The quick') and len(first) == len('The quick') + 30 + 1
    assert written() == first != written(seed=2)
    assert written(start=TEXT).startswith(TEXT)
    assert len(written(start='')) == 1 + 30 + 1
    three = written(num_samples=3).split('-' * 40)
    assert len(three) == 3 and len(set(three)) == 3
    assert all(len(text.strip('\n')) >= 25 for text in three)

def on_a_terminal(folder, **globals):
    """What sample.py writes when its output is a terminal."""
    pty = pytest.importorskip('pty')
    edit('sample.py', folder, max_new_tokens=20, **globals)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, 'sample.py'], cwd=folder, stdout=theirs)
    os.close(theirs)
    written = b''
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                written += os.read(ours, 10**6)
            except OSError:  # the other end is closed
                break
    assert process.wait() == 0
    return written.decode()

@torch.no_grad()
def test_the_picture_of_attention_shows_the_weights_of_each_head(tiny, monkeypatch):
    model = gpt.GPT(10)
    idx = torch.randint(10, (1, 5))
    shown, computed, softmax = [], [], torch.Tensor.softmax
    monkeypatch.setattr(sample, 'tint', lambda char, strength: shown.append(strength) or char)
    sample.print_attention(sample.Model(model.state_dict(), 2, 2), idx, 'abcde')
    monkeypatch.setattr(torch.Tensor, 'softmax', lambda scores, dim: (
        computed.append(softmax(scores, dim)) or computed[-1]))
    model(idx)
    rows = torch.cat(computed, dim=1)[0].flatten(0, 1)  # 4 heads, 5 rows each
    expected = [row[:i % 5 + 1] / row.max() for i, row in enumerate(rows)]
    assert_close(torch.stack(shown), torch.cat(expected))

def test_pictures_are_tinted_on_a_terminal_only(trained, tmp_path, monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    tinted = on_a_terminal(tmp_path, show='surprise', temperature=5.0)
    assert tinted.count('\x1b[30;48;2;') > 5
    picture = on_a_terminal(tmp_path, show='attention', start='The lazy')
    for name in ('block 1, head 1', 'block 2, head 2'):
        lines = picture.split(name)[1].splitlines()[1:9]
        plain = [re.sub('\x1b.*?m', '', line) for line in lines]
        assert plain == ['T', 'Th', 'The', 'The ', 'The l', 'The la', 'The laz', 'The lazy']
        assert all('\x1b' in line for line in lines)
    piped = run('sample.py', tmp_path, show='surprise')
    assert '\x1b' not in piped.stdout and len(piped.stderr.splitlines()) == 1
    monkeypatch.setenv('FORCE_COLOR', '1')
    forced = run('sample.py', tmp_path, show='surprise', temperature=5.0)
    assert forced.stdout.count('\x1b[30;48;2;') > 5
    monkeypatch.setenv('NO_COLOR', '1')
    assert '\x1b' not in on_a_terminal(tmp_path, show='surprise')

def test_what_a_terminal_could_take_for_a_command_is_shown_escaped(data, monkeypatch, capsys):
    write_data('\x1b[2J\tx\n' * 300)
    monkeypatch.setattr(bigram, 'max_iters', 10)
    bigram.train()
    gpt.train()
    written = capsys.readouterr().out
    assert '\x1b' not in written and '\\x1b' in written
    assert '\x1b' not in on_a_terminal(data, start='\x1b[2J')
    assert run('sample.py', data, start='\x1b[2J').stdout.startswith('\x1b[2J')

def test_a_closed_pipe_ends_sample_without_a_word(trained, tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
    edit('sample.py', tmp_path, num_samples=2, max_new_tokens=5)
    process = subprocess.Popen([sys.executable, 'sample.py'], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as head does, when it has seen enough
    assert process.stderr.read() == b'' and process.wait() == 130

def test_sample_tells_what_is_wrong(trained, tmp_path):
    cases = [
        ('start', 'The \xa7 dog', "'\xa7'"),
        ('top_k', -1, 'top_k=-1'),
        ('top_p', 0.0, 'top_p=0.0'),
        ('top_p', 2, 'top_p=2'),
        ('temperature', -1, 'temperature=-1'),
        ('num_samples', 0, 'num_samples=0'),
        ('max_new_tokens', -1, 'max_new_tokens=-1'),
        ('show', 'all', "show='all'"),
        ('show', 'attention', 'needs a start')]
    for name, value, words in cases:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError) as error:
            patch.setattr(sample, name, value)
            sample.main()
        assert words in str(error.value) and '\n' not in str(error.value)
    folders = [tmp_path / name for name in ('top_k', 'device')]
    for folder in folders:
        folder.mkdir()
        os.link('ckpt.pt', folder / 'ckpt.pt')
    results = in_parallel([
        lambda: run('sample.py', folders[0], top_k=-1),
        lambda: run('sample.py', folders[1], device='cuda:7')])
    assert_one_line(results[0], 'top_k=-1')
    assert_one_line(results[1], 'ckpt.pt', 'CUDA')
    assert 'run python gpt.py' not in results[1].stderr  # it would replace a good one
    os.remove('ckpt.pt')
    assert_one_line(run('sample.py', tmp_path), 'ckpt.pt', 'python gpt.py makes', 'No such file')

# ---- the scripts ----

def test_importing_a_script_does_nothing(tmp_path):
    code = f'import sys; sys.path.insert(0, {str(HERE)!r}); import bigram, gpt, prepare, sample'
    result = subprocess.run([sys.executable, '-B', '-c', code], cwd=tmp_path, capture_output=True,
                            text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert list(tmp_path.iterdir()) == []

def test_each_script_is_complete_on_its_own():
    for script in ('prepare', 'bigram', 'gpt', 'sample'):
        lines = (HERE / f'{script}.py').read_text().splitlines()
        assert max(map(len, lines)) <= 100, script
        assert lines[0] == '# /// script'
        imports = re.compile(r' *(from|import) (bigram|gpt|prepare|sample)\b')
        assert not any(map(imports.match, lines)), script

def test_each_name_and_test_in_the_readme_exists():
    table = (HERE / 'README.md').read_text(encoding='utf-8').split('## From the lecture to here')[1]
    rows = re.findall(r'^\|[^|]*\|([^|]*)\| `(test_\w+)` \|$', table, flags=re.M)
    scripts = [(HERE / f'{name}.py').read_text() for name in ('prepare', 'bigram', 'gpt')]
    assert len(rows) == 12
    for ours, test in rows:
        assert test in globals()
        for name in re.findall(r'`(\w+)`', ours):
            assert any(re.search(rf'\b{name}\b', script) for script in scripts), name

def edits_in_the_readme():
    """Each row of README's table of what a part is worth: its name, old lines and new lines."""
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    table = text.split('## What each part is worth')[1].split('\n## ')[0]
    code = re.compile('`([^`]+)`')
    rows = re.findall(r'^\| ([^|]+) \| (`[^|]+`) \| (`[^|]+`) \|', table, flags=re.M)
    return [(name, code.findall(old), code.findall(new)) for name, old, new in rows]

@pytest.mark.parametrize('name, old, new', edits_in_the_readme())
def test_each_edit_in_the_readme_can_be_made_and_trains(data, monkeypatch, name, old, new):
    lines = (HERE / 'gpt.py').read_text().splitlines()
    code = [line.split('  #')[0].strip() for line in lines]
    assert len(old) == len(new)
    for before, after in zip(old, new):
        assert code.count(before) == 1, f'gpt.py has not one line {before}'
        lines[code.index(before)] = lines[code.index(before)].replace(before, after)
    edited = types.ModuleType('edited')
    exec('\n'.join(lines), vars(edited))
    set_globals(monkeypatch, edited, max_iters=2, eval_interval=2, batch_size=4)  # quicker
    monkeypatch.setattr(edited.GPT, 'generate', lambda self, idx, n: idx)  # so is this
    edited.train()
    assert torch.load('latest.pt')['step'] == 2

def test_the_whole_path_from_a_text_to_a_sample(tmp_path):
    texts = [TEXT, 'Быть или не быть. ' * 100]  # the second without a newline

    def whole_path(text):
        folder = tmp_path / str(texts.index(text))
        folder.mkdir()
        (folder / 'input.txt').write_text(text, encoding='utf-8')
        return [run('prepare.py', folder),
                run('bigram.py', folder, max_iters=10, eval_interval=10, eval_iters=2),
                run('gpt.py', folder, **TINY | {'max_iters': 60, 'eval_interval': 60}),
                run('sample.py', folder, max_new_tokens=50)]

    results = in_parallel([functools.partial(whole_path, text) for text in texts])
    for text, steps in zip(texts, results):
        for step in steps:
            assert step.returncode == 0 and step.stderr == '', step.stderr
        assert f'{len(set(text))} distinct' in steps[0].stdout
        assert 'val loss' in steps[1].stdout
        assert 'val loss' in steps[2].stdout
        written = steps[3].stdout
        assert len(written) == 1 + 50 + 1
        assert set(written) <= set(text + '\n')
