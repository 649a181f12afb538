"""First a walk through the ideas of a GPT, to be read beside gpt.py, then what the scripts promise.
Each test is named after the fact it holds. `pytest` needs no network and no data."""
import json
import os
import re
import subprocess
import sys
import time
import types
from itertools import islice
from pathlib import Path
import numpy as np
import pytest
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
HERE = Path(__file__).parent
TEXT = 'The quick brown fox jumps over the lazy dog; the dog, being lazy, lets it.\n' * 40
TINY = dict(device='cpu', batch_size=8, block_size=16, max_iters=12, eval_interval=6, n_layer=2,
            n_head=2, n_embd=32, dropout=0.0, learning_rate=1e-2, weight_decay=0.3, seed=1337,
            resume=False, compile=False, bfloat16=False)
WRITE = dict(device='cpu', start='', num_samples=1, max_new_tokens=30, temperature=1.0, top_k=200,
             top_p=1.0, seed=1337, show='')

def set_globals(monkeypatch, script, **globals):
    """Edit the globals of a script, for this test."""
    for name, value in globals.items():
        monkeypatch.setattr(script, name, value)

@pytest.fixture(autouse=True)
def small_and_seeded(monkeypatch, tmp_path):
    """Every test starts in an empty folder, with the same seed and a model that trains at once."""
    monkeypatch.chdir(tmp_path)
    set_globals(monkeypatch, gpt, gpu=False, **TINY)
    set_globals(monkeypatch, sample, **WRITE)
    set_globals(monkeypatch, bigram, device='cpu', batch_size=8, block_size=16, max_iters=300,
                eval_interval=300, eval_iters=100, learning_rate=0.1)
    torch.manual_seed(0)

# ---- a walk through GPT, one idea a test ----
def test_a_token_is_a_place_among_the_sorted_distinct_characters():
    text = 'hello world, hello you'
    Path('input.txt').write_text(text)
    prepare.prepare()
    chars = json.loads(Path('meta.json').read_text())['chars']
    tokens = [*np.fromfile('train.bin', np.uint16), *np.fromfile('val.bin', np.uint16)]
    assert chars == ' ,dehloruwy' == ''.join(sorted(set(text)))
    assert tokens[:6] == [4, 3, 5, 5, 6, 0]
    assert ''.join(chars[i] for i in tokens) == text  # decoding undoes encoding

def test_nine_characters_hold_eight_examples(monkeypatch):
    monkeypatch.setattr(gpt, 'block_size', 8)
    text = np.array([18, 47, 56, 57, 58, 1, 15, 47, 58])
    x, y = gpt.get_batch(text, [0])  # (1, 8) each
    for t in range(8):  # one example for each length of context
        context = x[0, :t + 1]
        target = y[0, t]
        assert context.tolist() == text[:t + 1].tolist()
        assert target == text[t + 1]

def test_the_loss_is_minus_the_log_of_the_probability_given_to_what_came():
    logits = torch.randn(1, 65)
    probs = logits.softmax(-1)
    assert_close(F.cross_entropy(logits, torch.tensor([7])), -probs[0, 7].log())
    idx = torch.randint(65, (4, 17))
    _, loss = gpt.GPT(65)(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(np.log(65), rel=0.05)  # untrained, a guess among 65

def test_a_trained_bigram_is_a_table_of_counts():
    text = torch.tensor([0, 1, 0, 2, 0, 1, 1, 0, 0])
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

def test_a_batch_is_a_noisy_estimate_of_the_loss_of_a_split():
    model = gpt.GPT(10).eval()
    text = np.random.default_rng(0).integers(10, size=4001)
    losses = []
    for i in range(0, 4000, 160):
        x, y = gpt.get_batch(text, range(i, i + 160, 16))
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

def attend(q, k, v):
    """softmax(q k^T / sqrt(D)) v, where no position sees a later one. All are (.., T, D)."""
    T, D = q.shape[-2:]
    wei = q @ k.mT / D ** 0.5  # (.., T, T)
    wei = wei.masked_fill(torch.tril(torch.ones(T, T)) == 0, -torch.inf)
    return wei.softmax(-1) @ v

def test_a_head_mixes_values_of_the_past_in_shares_that_queries_and_keys_decide():
    x = torch.randn(2, 10, 32)  # (B, T, C)
    W_q, W_k, W_v = torch.randn(3, 32, 8)  # (C, D) each
    q = x @ W_q  # what each position looks for
    k = x @ W_k  # what it can be found by
    v = x @ W_v  # what it passes on when found
    y = attend(q, k, v)
    assert_close(attend(q, k, 2 * v), 2 * y)
    assert_close(y[:, 0], v[:, 0])  # the first has only itself to ask
    assert not torch.allclose(attend(k, q, v), y, atol=0.1)  # queries are not keys

def test_the_large_product_with_a_mask_is_many_small_ones_without():
    q, k, v = torch.randn(3, 10, 8)
    rows = []
    for t in range(10):
        shares = (k[:t + 1] @ q[t] / 8 ** 0.5).softmax(0)  # a map: each key so far gets its share
        rows.append(shares @ v[:t + 1])  # a reduce: the weighted sum
    assert_close(attend(q, k, v), torch.stack(rows))

def test_many_heads_are_single_heads_side_by_side_then_a_projection():
    attention = gpt.CausalSelfAttention()
    x = torch.randn(3, 10, 32)
    angle = torch.arange(10)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)  # (T, D/2)
    heads = []
    for channels in (slice(0, 16), slice(16, 32)):  # the plain head, QK-norm, rotary positions
        q = gpt.rotate(gpt.norm(attention.query(x)[..., channels]), angle)
        k = gpt.rotate(gpt.norm(attention.key(x)[..., channels]), angle)
        heads.append(attend(q, k, attention.value(x)[..., channels]))
    assert_close(attention(x), attention.c_proj(torch.cat(heads, dim=-1)))

def test_pytorch_has_attention_in_one_call(monkeypatch):
    attention = gpt.CausalSelfAttention()
    x = torch.randn(3, 10, 32)
    written_out = attention(x)
    monkeypatch.setattr(gpt, 'gpu', True)  # FlashAttention, where there is one
    assert_close(attention(x), written_out)

def test_scores_grow_with_D_and_the_softmax_of_large_scores_is_nearly_one_hot():
    for D in (16, 64, 256):
        q, k = torch.randn(2, 4000, D)
        scores = (q * k).sum(dim=1)
        assert scores.std().item() == pytest.approx(D ** 0.5, rel=0.1)  # hence the division
    scores = torch.tensor([0.1, -0.2, 0.3, -0.2, 0.5])
    large = 20 * scores
    assert scores.softmax(-1).max() < 0.3
    assert large.softmax(-1).max() > 0.9

def test_qk_norm_bounds_every_score():
    q, k = 100 * torch.randn(2, 50, 64)  # however long queries and keys become
    q, k = gpt.norm(q), gpt.norm(k)
    assert_close(q.norm(dim=1), torch.full((50,), 8.0))  # all have length sqrt(D)
    assert (q @ k.mT / 64 ** 0.5).abs().max() <= 8.001

def test_without_positions_attention_does_not_know_the_order_of_the_past(monkeypatch):
    attention = gpt.CausalSelfAttention()
    x = torch.randn(1, 10, 32)
    order = [3, 0, 8, 5, 1, 7, 2, 6, 4, 9]  # the last one stays the last
    shuffled = x[:, order]
    assert not torch.allclose(attention(x)[0, 9], attention(shuffled)[0, 9], atol=1e-3)
    monkeypatch.setattr(gpt, 'rotate', lambda x, angle: x)
    assert_close(attention(x)[0, 9], attention(shuffled)[0, 9])

def test_rotary_positions_tell_how_far_apart_two_characters_are():
    q, k = torch.randn(2, 16)  # (D,) each
    angle = gpt.CausalSelfAttention().angle[:10]  # (T, D/2)
    q = gpt.rotate(q.expand(10, 16), angle)  # the same query at 10 positions
    k = gpt.rotate(k.expand(10, 16), angle)
    scores = q @ k.mT
    assert_close(scores[3:, 3:], scores[:-3, :-3])
    assert scores[0].std() > 0.1  # at another distance, another score
    assert q.norm(dim=1).std() < 1e-5  # all 10 keep their length

def test_the_future_cannot_change_the_past():
    model = gpt.GPT(10)
    idx = torch.randint(10, (1, 16))
    changed = idx.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 10
    before, _ = model(idx)
    after, _ = model(changed)
    assert_close(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9], after[0, 9])
    assert not torch.allclose(before[0, 15], after[0, 15])  # it sees all: enough to write

def loss_after_training(model, batches):
    """Train on batches (N, B, T+1), one after the other. The last one's loss before its step."""
    optimizers = gpt.make_optimizers(model)
    for idx in batches:
        _, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    return loss

def test_without_the_mask_the_loss_falls_below_what_is_possible():
    batches = torch.randint(10, (150, 16, 17))  # nobody can know the next of random characters
    assert loss_after_training(gpt.GPT(10), batches) > np.log(10) - 0.05
    unmasked = edited_gpt([('scores.masked_fill(future, -torch.inf)', 'scores')])
    assert loss_after_training(unmasked.GPT(10), batches) < np.log(10) - 1  # it saw the answers

def test_the_mlp_sees_each_position_alone():
    mlp = gpt.MLP()
    x = torch.randn(1, 10, 32)
    assert_close(mlp(x)[:, 4], mlp(x[:, 4]))  # computation, after communication

def test_layernorm_normalizes_each_position_and_does_not_care_who_else_is_in_the_batch():
    x = torch.randn(8, 32)
    y = gpt.norm(3 * x + 2)
    assert_close(y.mean(1), torch.zeros(8))
    assert_close(y.var(1, correction=0), torch.ones(8))
    assert_close(gpt.norm(x)[:4], gpt.norm(x[:4]))
    batch_norm = torch.nn.BatchNorm1d(32)
    assert not torch.allclose(batch_norm(x)[:4], batch_norm(x[:4]), atol=0.01)

def test_a_block_is_two_branches_off_a_residual_stream_each_behind_its_norm():
    block = gpt.Block().eval()
    x = torch.randn(1, 10, 32)
    y = x + block.attn(gpt.norm(x))
    assert_close(block(x), y + block.mlp(gpt.norm(y)))  # pre-norm; post-norm: norm(x + attn(x))

def test_residuals_let_gradients_reach_the_start():
    for residual, low, high in ((1, 0.5, 2), (0, 0, 1e-5)):
        x = start = torch.randn(1, 10, 32, requires_grad=True)
        for _ in range(12):  # layers
            x = residual * x + gpt.MLP()(x)
        x.sum().backward()
        share = start.grad.norm() / torch.ones_like(x).norm()  # of the gradient at the end
        assert low <= share < high

def test_dropout_acts_in_training_only_and_on_both_branches(monkeypatch):
    x = torch.randn(1, 10, 32)
    monkeypatch.setattr(gpt, 'dropout', 0.5)
    block = gpt.Block()
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
    monkeypatch.setattr(gpt, 'dropout', 1.0)
    assert torch.equal(gpt.Block()(x), x)  # nothing is left of either

def test_tied_weights_are_one_table_for_input_and_output():
    model = gpt.GPT(10)
    idx = torch.tensor([[3]])
    before, _ = model(idx)
    model.wte.data[7] *= 2  # a character that is not in the input
    after, _ = model(idx)
    assert_close(after[..., 7], 2 * before[..., 7])

def test_the_parameters_are_a_table_and_twelve_squares_a_layer(monkeypatch):
    for n_layer, C in ((2, 32), (4, 32), (2, 64)):  # linear in depth, quadratic in width
        set_globals(monkeypatch, gpt, n_layer=n_layer, n_embd=C)
        n = sum(p.numel() for p in gpt.GPT(65).parameters())
        assert n == 65 * C + 12 * n_layer * C ** 2  # attention 4, MLP 8

def test_attention_is_quadratic_in_T_and_the_rest_is_linear(monkeypatch):
    monkeypatch.setattr(gpt, 'block_size', 128)
    def flops(T):
        with FlopCounterMode(display=False) as counter:
            gpt.GPT(65)(torch.zeros(1, T, dtype=torch.long))
        return counter.get_total_flops()
    attention = 2 * 2 * 64 ** 2 * 32 * 2  # multiply, add; two products; T * T * C; layers
    assert flops(128) - 2 * flops(64) == (4 - 2) * attention  # what is linear cancels

@torch.no_grad()
def test_to_write_is_to_predict_sample_append_and_predict_again():
    model = gpt.GPT(10).eval()
    idx = torch.randint(10, (1, 3))
    torch.manual_seed(0)
    written = model.generate(idx, 20)
    torch.manual_seed(0)
    for _ in range(20):
        logits, _ = model(idx[:, -16:])  # no more than a window
        probs = logits[:, -1].softmax(-1)  # of what follows the last character
        idx = torch.cat((idx, torch.multinomial(probs, 1)), dim=1)
    assert torch.equal(written, idx)

@torch.no_grad()
def test_a_cache_of_keys_and_values_saves_computing_the_past_again():
    model, functions = gpt_and_sample()
    cache = sample.new_cache(functions, 2)
    idx = torch.randint(10, (2, 12))
    sample.gpt(idx[:, :8], functions, cache)  # prefill
    for t in range(8, 12):  # decode: one character in, the logits of the next out
        logits = sample.gpt(idx[:, t:t + 1], functions, cache, t)
        expected, _ = model(idx[:, :t + 1])
        assert_close(logits[:, -1], expected[:, -1])

@pytest.mark.parametrize('settings, expected', [
    ({}, [0.1, 0.4, 0.3, 0.2]),
    ({'temperature': 0.5}, [1 / 30, 16 / 30, 9 / 30, 4 / 30]),  # squares the odds
    ({'temperature': 0}, [0, 1, 0, 0]),
    ({'top_k': 2}, [0, 4 / 7, 3 / 7, 0]),
    ({'top_p': 0.69}, [0, 4 / 7, 3 / 7, 0])])
def test_temperature_top_k_and_top_p_choose_among_the_likelier(monkeypatch, settings, expected):
    set_globals(monkeypatch, sample, **settings)
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(20000, 4)
    share = torch.bincount(sample.choose(logits)[:, 0], minlength=4) / 20000
    assert share.tolist() == pytest.approx(expected, abs=0.02)

# ---- help ----
def edited(script, edits=(), **globals):
    """The source of a script, edited as users edit it: (old, new) in its text, and globals."""
    source = (HERE / script).read_text(encoding='utf-8')
    for old, new in edits:
        assert old in source, f'{script} has no {old}'
        source = source.replace(old, new)
        globals.pop(new.split(' = ')[0], None)  # an edit counts more than a global
    for name, value in globals.items():
        source, n = re.subn(rf'^{name} = .*', lambda _: f'{name} = {value!r}', source, flags=re.M)
        assert n == 1, f'{script} has not one line for {name}'
    return source

def edited_gpt(edits, **globals):
    """gpt.py as a module, with these edits and the tests' globals."""
    module = types.ModuleType('edited')
    exec(edited('gpt.py', edits, **TINY | globals), vars(module))
    return module

def start(script, *command, **edits):
    """Start an edited copy of a script."""
    Path(script).write_text(edited(script, **edits), encoding='utf-8')
    return subprocess.Popen([sys.executable, *command, script], text=True, errors='replace',
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def run(script, *command, **edits):
    """Do the same to the end. Its status, and what it wrote to the two streams."""
    process = start(script, *command, **edits)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err

def gpt_and_sample():
    """An untrained model of gpt.py that could have been trained, and what sample.py makes of it."""
    model = gpt.GPT(10).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    config = dict(chars='abcdefghij', n_layer=2, n_head=2, n_embd=32, block_size=gpt.block_size)
    idx = torch.randint(10, (1, 16))
    gpt.save('ckpt.pt', config=config, model=model.state_dict(),
             probe=(idx, model(idx)[0].detach()))
    return model, sample.load_model()

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
                                  '👩\u200d🚀 and a \0 and more', 'é日😀' * 400_000])
def test_encoding_loses_nothing_however_long_the_text(text):
    write_data(text)
    chars, train, val = read_data()
    assert list(chars) == sorted(set(text))
    assert ''.join(chars[i] for i in [*train, *val]) == text
    assert len(train) == int(0.9 * len(text))  # the first nine tenths train

def test_a_mark_at_the_start_and_the_kind_of_line_ends_change_nothing():
    write_data('\ufeff' + TEXT.replace('\n', '\r\n'))
    chars, train, val = read_data()
    assert ''.join(chars[i] for i in [*train, *val]) == TEXT

@pytest.mark.parametrize('content, words', [
    (b'', '0 characters'), (b'too short', '9 characters'), (b'caf\xe9 noir' * 9, 'UTF-8'),
    (b'cut in a character \xc3', 'UTF-8')])
def test_prepare_tells_what_is_wrong_with_a_text(content, words):
    Path('input.txt').write_bytes(content)
    with pytest.raises(SystemExit, match=words):
        prepare.prepare()
    assert not Path('meta.json').exists()

def test_a_download_is_used_only_if_it_is_the_right_one(monkeypatch, capsys):
    Path('theirs').write_text(TEXT)
    monkeypatch.setattr(prepare, 'url', Path('theirs').absolute().as_uri())
    with pytest.raises(SystemExit, match='theirs'):
        prepare.download()
    assert not Path('input.txt').exists()
    os.remove('theirs')  # as without a network
    prepare.download()
    assert 'Python language reference' in capsys.readouterr().out
    assert Path('input.txt').stat().st_size > 100_000

# ---- training ----
def test_orthogonalize_keeps_the_directions_and_makes_them_about_equally_strong():
    for rows, columns in ((32, 32), (32, 128), (40, 7)):
        U, S, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
        G = gpt.orthogonalize(U @ torch.linspace(1, 0.05, len(S)).diag() @ Vh)
        after = U.mT @ G @ Vh.mT / max(rows, columns) ** 0.5
        assert_close(after, after.diagonal().diag(), rtol=0, atol=1e-3)
        assert 0.2 < after.diagonal().min() and after.diagonal().max() < 1.25
    assert not gpt.orthogonalize(torch.zeros(3, 5)).any()  # no nan either

def test_a_step_of_muon_is_the_formula():
    p = torch.nn.Parameter(torch.randn(8, 32))
    muon = gpt.Muon([p], dict(lr=0.1, weight_decay=0.5))
    momentum = torch.zeros(8, 32)
    for _ in range(3):
        before, p.grad = p.detach().clone(), torch.randn(8, 32)
        momentum = 0.9 * momentum + 0.1 * p.grad
        muon.step()
        update = 0.3 * gpt.orthogonalize(0.1 * p.grad + 0.9 * momentum)
        assert_close(p.detach(), (1 - 0.1 * 0.5) * before - 0.1 * update)

def test_muon_trains_the_matrices_of_the_blocks_and_adam_every_other_parameter():
    model = edited_gpt([('bias=False', 'bias=True')]).GPT(10)
    muon, adam = gpt.make_optimizers(model)
    which = {p: optimizer for optimizer in (muon, adam)
             for p in optimizer.param_groups[0]['params']}
    for name, p in model.named_parameters():
        assert which[p] is (adam if name == 'wte' or 'bias' in name else muon)
    assert muon.param_groups[0]['weight_decay'] == 0.3

@pytest.mark.parametrize('optimizer, rate', [
    ('make_optimizers(model)', 1e-2), ('[torch.optim.AdamW(model.parameters(), lr=1e-3)]', 1e-3),
    ('[torch.optim.SGD(model.parameters(), lr=0.1)]', 0.1)])
def test_any_optimizer_trains_at_its_own_rate_which_falls_in_a_line_to_nothing(optimizer, rate):
    write_data()
    spied = edited_gpt([('optimizers = make_optimizers(model)', f'optimizers = {optimizer}'), (
        'for part in', 'rates.append(optimizers[-1].param_groups[0]["lr"])\n        for part in')],
                       max_iters=4)
    spied.rates = []
    spied.train()
    assert spied.rates == pytest.approx([rate, 0.75 * rate, 0.5 * rate, 0.25 * rate])

def test_an_epoch_takes_each_character_at_most_once_and_nearly_all():
    starts = [*islice(gpt.window_starts(range(1000)), 2 * 57)]  # 57 windows of 17 an epoch
    for epoch in (starts[:57], starts[57:]):
        seen = (np.array(epoch)[:, None] + np.arange(17)).flatten()
        assert len(set(seen)) == len(seen) == 57 * 17
        assert seen.min() >= 0 and seen.max() < 1000
        assert (np.diff(epoch) < 0).sum() > 15  # in random order
    assert not set(starts[:57]) & set(starts[57:])  # cut at other places

def test_a_run_says_what_it_does_and_leaves_what_sample_needs(monkeypatch, capsys):
    write_data()
    monkeypatch.setattr(gpt, 'dropout', 0.5)
    gpt.train()
    out = capsys.readouterr().out
    assert '2,700 train, 300 val, 32 different' in out and 'python sample.py' in out
    assert re.search(r'step 12: train loss [\d.]+, val loss [\d.]+\n', out)
    assert f"best weights, val loss {torch.load('latest.pt')['best_loss']:.4f}" in out
    assert sample.load_model()['chars'] == read_data()[0]

@pytest.mark.parametrize('script', [bigram, gpt])
def test_val_loss_is_that_of_unseen_text(script, monkeypatch, capsys):
    write_data('ab' * 900 + 'aabb' * 50)
    set_globals(monkeypatch, script, max_iters=200, eval_interval=200)
    script.train()
    out = capsys.readouterr().out
    train_loss, val_loss = re.search(r'train loss (.*), val loss (.*)', out).groups()
    assert float(val_loss) > float(train_loss) + 0.1

# ---- nothing is lost, nothing is wrong without a word ----
def test_a_resumed_run_is_the_run_that_never_stopped(monkeypatch):
    write_data()
    monkeypatch.setattr(gpt, 'dropout', 0.3)
    gpt.train()
    whole = torch.load('latest.pt')
    edited_gpt([('max_iters + 1)', '7)')], dropout=0.3).train()  # ends at step 6
    assert torch.load('latest.pt')['step'] == 6
    monkeypatch.setattr(gpt, 'resume', True)
    gpt.train()
    assert torch.load('latest.pt')['best_loss'] == whole['best_loss']
    for name, weight in whole['model'].items():
        assert torch.equal(weight, weights()[name]), name

def test_settings_come_from_the_file_and_only_weights_and_state_from_latest(monkeypatch):
    write_data()
    gpt.train()
    latest = torch.load('latest.pt')
    set_globals(monkeypatch, gpt, learning_rate=0.5, weight_decay=0.25)
    model = gpt.GPT(32)
    optimizers = gpt.make_optimizers(model)
    gpt.restore(model, optimizers, latest['config'])
    for optimizer, state in zip(optimizers, latest['states']):
        assert optimizer.param_groups[0]['lr'] == 0.5
        assert_close(optimizer.state_dict()['state'], state, rtol=0, atol=0)
    assert optimizers[0].param_groups[0]['weight_decay'] == 0.25

@pytest.mark.parametrize('text, change', [
    (TEXT[::-1], {}), (TEXT, dict(n_head=4)), (TEXT, dict(batch_size=4))])
def test_only_the_same_text_model_and_batch_size_is_resumed(monkeypatch, text, change):
    write_data()
    gpt.train()
    write_data(text)
    set_globals(monkeypatch, gpt, resume=True, max_iters=18, **change)
    with pytest.raises(AssertionError, match='another text, model or batch_size'):
        gpt.train()

def test_the_best_is_kept_and_comes_back_when_it_is_moved_away(monkeypatch):
    write_data()
    losses = iter([9.0, 2.0, 9.0, 3.0, 9.0, 4.0])  # train and val at steps 6, 12, 18
    monkeypatch.setattr(gpt, 'estimate_loss', lambda *_: next(losses))
    gpt.train()
    assert torch.load('latest.pt')['best_loss'] == 2.0
    assert not torch.equal(weights('ckpt.pt')['wte'], weights()['wte'])
    os.remove('ckpt.pt')
    set_globals(monkeypatch, gpt, resume=True, max_iters=18)
    gpt.train()
    assert torch.equal(weights('ckpt.pt')['wte'], weights()['wte'])

def test_a_kill_at_any_moment_leaves_checkpoints_that_load():
    write_data()
    gpt.train()
    for wait in (0.0, 0.07):
        before = os.stat('latest.pt').st_mtime_ns
        process = start('gpt.py', **TINY | {'max_iters': 10**6, 'eval_interval': 1})
        while os.stat('latest.pt').st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        assert weights('ckpt.pt').keys() == weights('latest.pt').keys()

def test_a_loss_that_is_not_finite_stops_the_run_when_it_is_seen_and_replaces_nothing(monkeypatch):
    write_data()
    gpt.train()
    old = Path('latest.pt').read_bytes()
    for interval, step in ((1, 1), (999, 50)):
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match=f'step={step}'):
            set_globals(patch, gpt, learning_rate=1e30, max_iters=60, eval_interval=interval)
            gpt.train()
    assert Path('latest.pt').read_bytes() == old

class Hostile:
    """What pickle turns into a command when it is loaded."""
    def __reduce__(self):
        return os.system, ('touch it-ran',)

def test_a_hostile_file_runs_nothing(monkeypatch):
    write_data()
    monkeypatch.setattr(gpt, 'resume', True)
    for path, load in (('latest.pt', gpt.train), ('ckpt.pt', sample.load_model)):
        torch.save({'model': Hostile()}, path)
        with pytest.raises(Exception, match='weights_only'):
            load()
    assert not Path('it-ran').exists()

def test_what_is_not_there_yet_or_too_short_is_one_line(monkeypatch):
    for script in (gpt, bigram):
        with pytest.raises(SystemExit, match='run python prepare.py'):
            script.train()
    with pytest.raises(SystemExit, match='run python gpt.py'):
        sample.main()
    write_data('a short poem\n' * 5)
    for script in (gpt, bigram):
        with pytest.raises(SystemExit, match='block_size=16: at most 6'):
            script.train()
        monkeypatch.setattr(script, 'block_size', 6)
        script.train()

@pytest.mark.parametrize('n_embd', [0, 33, 34])
def test_heads_that_do_not_fit_are_refused(monkeypatch, n_embd):
    monkeypatch.setattr(gpt, 'n_embd', n_embd)
    with pytest.raises(AssertionError, match='n_embd'):
        gpt.GPT(10)

@pytest.mark.parametrize('old', ['meta = json', 'cos, sin = ', 'latest = torch', 'torch.save('])
def test_a_mistake_of_ones_own_is_not_swallowed(old):
    write_data()
    gpt.train()
    with pytest.raises(KeyError, match='mine'):
        edited_gpt([(old, f"raise KeyError('mine'); {old}")], resume=True, max_iters=18).train()

# ---- safe to change ----
EDITS = {  # what a user may do to gpt.py: (old, new), ...
    'bias': [('bias=False', 'bias=True')],
    'gains': [('self.mlp = MLP()', 'self.mlp = MLP(); self.ln = nn.LayerNorm(n_embd)'),
              ('self.mlp(norm(x))', 'self.mlp(self.ln(x))')],
    'ReLU': [('F.gelu', 'F.relu')],
    'post-norm': [('x + self.dropout(self.mlp(norm(x)))', 'norm(x + self.dropout(self.mlp(x)))')],
    'no mask': [('scores.masked_fill(future, -torch.inf)', 'scores')],
}

@pytest.mark.parametrize('name', EDITS)
def test_an_edited_model_trains_whole_and_is_not_sampled_as_another(name):
    write_data()
    edited = edited_gpt(EDITS[name])
    torch.manual_seed(edited.seed)
    first = edited.GPT(32).state_dict()
    edited.train()
    for key, weight in first.items():
        assert not torch.equal(weight, weights()[key]), f'{key} was not trained'
    with pytest.raises(SystemExit, match='change sample.py as gpt.py was changed'):
        sample.load_model()

# ---- sample.py ----
@torch.no_grad()
@pytest.mark.parametrize('length', [1, 5, 16, 40])
def test_greedy_text_is_the_argmax_of_training_beyond_the_window_too(monkeypatch, length):
    """Both see the same: the whole text until it outgrows 16, then its last 8, growing to 16."""
    set_globals(monkeypatch, sample, temperature=0, max_new_tokens=40)
    model, functions = gpt_and_sample()
    idx = torch.randint(10, (2, length))
    context = idx if length <= 16 else idx[:, -8:]
    for idx_next in sample.generate(idx, functions):
        logits, _ = model(context)
        assert torch.equal(idx_next[:, 0], logits[:, -1].argmax(dim=-1))
        context = torch.cat((context, idx_next), dim=1)
        context = context if context.shape[1] <= 16 else context[:, -8:]

def test_start_samples_and_seed_do_what_they_say(monkeypatch, capsys):
    gpt_and_sample()
    def written(**globals):
        set_globals(monkeypatch, sample, **WRITE | globals)
        sample.main()
        return capsys.readouterr().out
    first = written(start='badge')
    assert first.startswith('badge') and len(first) == 5 + 30 + 1
    assert written(start='badge') == first != written(start='badge', seed=2)
    assert len(written(start='abc' * 20)) == 60 + 30 + 1
    three = written(num_samples=3).split('-' * 40)
    assert len(set(three)) == 3 and all(len(text.strip('\n')) == 31 for text in three)
    with pytest.raises(SystemExit, match="'z'"):
        written(start='zz')

@torch.no_grad()
def test_the_picture_of_attention_shows_the_weights_of_each_head(capsys):
    _, functions = gpt_and_sample()
    sample.print_attention(torch.tensor([[1, 0, 3, 6, 4]]), functions, 'badge')
    line = capsys.readouterr().out.split('block 2, head 2\n')[1].splitlines()[2]
    assert re.sub('\x1b.*?m', '', line) == 'bad'
    q, keys = functions['blocks'][1]['last']
    shares = (q @ keys.mT / 4)[0, 1, 2, :3].softmax(-1)  # of the third character
    reds = [int(red) for red in re.findall(r'255;(\d+);', line)]
    assert reds == pytest.approx((255 - 155 * shares / shares.max()).tolist(), abs=0.6)

# ---- the scripts ----
@pytest.mark.parametrize('script', ['bigram', 'gpt', 'prepare', 'sample'])
def test_each_script_is_complete_on_its_own_and_says_nothing_when_imported(script, capsys):
    source = (HERE / f'{script}.py').read_text(encoding='utf-8')
    assert not re.search(r'^ *(from|import) (bigram|gpt|prepare|sample)\b', source, flags=re.M)
    exec(source, {'__name__': script})
    assert capsys.readouterr() == ('', '') and not list(Path().iterdir())

def test_the_whole_path_from_a_text_to_a_sample_where_not_every_character_can_be_shown(monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    Path('input.txt').write_text('Быть или не быть. “Être” 日本 😀 ' * 50, encoding='utf-8')
    for script, globals in (('prepare.py', {}), ('bigram.py', dict(max_iters=10, eval_iters=2)),
                            ('gpt.py', TINY), ('sample.py', dict(device='cpu'))):
        status, out, err = run(script, **globals)
        assert (status, err) == (0, '') and '?' in out

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('bfloat16', [False, True])
def test_a_gpu_trains_resumes_and_writes(bfloat16):
    write_data()
    cuda = TINY | dict(device='cuda', dropout=0.2, bfloat16=bfloat16)
    for globals in ({}, dict(resume=True, max_iters=18)):
        assert run('gpt.py', **cuda | globals)[0] == 0
    assert run('sample.py')[0] == 0

# ---- README ----
def table(heading):
    """The rows of README's table under a heading, each a list of cells, without the title row."""
    text = (HERE / 'README.md').read_text(encoding='utf-8').split(f'## {heading}\n')[1]
    rows = re.findall(r'^\| .*\|$', text.split('\n## ')[0], flags=re.M)
    return [[cell.strip() for cell in row.strip('|').split(' | ')] for row in rows[1:]]

def test_each_name_in_the_readme_exists():
    rows = table('From the lecture to here')
    scripts = ''.join((HERE / name).read_text(encoding='utf-8')
                      for name in ('prepare.py', 'bigram.py', 'gpt.py'))
    assert len(rows) >= 11
    for _, ours in rows:
        for name in re.findall(r'`(\w+)`', ours):
            assert re.search(rf'\b{name}\b', scripts), name

def edits_of(row):
    """The (old, new) edits in two cells of a row."""
    source = (HERE / 'gpt.py').read_text(encoding='utf-8')
    old, new = [re.findall('`([^`]+)`', cell) for cell in row]
    assert len(old) == len(new) and all(source.count(text) == 1 for text in old), old
    return list(zip(old, new))

def test_each_edit_in_the_readme_can_be_made_and_trains():
    write_data()
    for row in table('What each part is worth')[1:]:
        print(row[0])
        edited_gpt(edits_of(row[1:3]), max_iters=2, batch_size=4).train()
        assert torch.load('latest.pt')['step'] == 2

def test_two_processes_are_one_after_the_edits_in_the_readme():
    write_data()
    gpt.train()
    one = torch.load('latest.pt')
    rows = table('Several GPUs, or processes')
    edits = [edit for row in rows for edit in edits_of(row)]
    status, _, err = run('gpt.py', '-m', 'torch.distributed.run', '--nproc_per_node=2',
                         edits=edits, **TINY)
    assert status == 0, err
    assert torch.load('latest.pt')['best_loss'] == pytest.approx(one['best_loss'], rel=1e-4)
    for name, weight in one['model'].items():
        assert_close(weight, weights()[name], rtol=1e-3, atol=1e-3)
