"""What the scripts promise, as tests that run without a network, without input.txt and without a trace.

    python -m pytest

Each test is named after the fact it holds. The small ones show how a GPT works; read them beside gpt.py.
"""
import hashlib
import json
import os
import pathlib
import pty
import random
import re
import resource
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bigram
import gpt
import prepare
import sample

os.environ['OMP_NUM_THREADS'] = '1'  # models this small gain nothing from more, and lose on a busy machine
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent
TEXT = 'The quick brown fox jumps over the lazy dog; the dog, being lazy, lets it.\n' * 40
TINY = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=8, max_iters=12, eval_interval=6,
            warmup_iters=2, dropout=0.0, device='cpu')

# ---- help ----

def edit(script, folder, **globals):
    """Leave a copy of a script in folder, with globals edited as a user would edit them."""
    source = (HERE / script).read_text()
    for name, value in globals.items():
        source, n = re.subn(rf'^{name} = .*', lambda _: f'{name} = {value!r}', source, flags=re.M)
        assert n == 1, f'{script} has not one line for {name}'
    (folder / script).write_text(source)

def run(script, folder, *command, preexec_fn=None, **globals):
    edit(script, folder, **globals)
    return subprocess.run([sys.executable, *command, script], cwd=folder, capture_output=True, text=True,
                          timeout=100, preexec_fn=preexec_fn)

def assert_one_line(result, *words, status=1):
    """It failed as a user may expect: one line that says what is wrong, no traceback."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == status and len(lines) == 1, result.stderr
    assert 'Traceback' not in result.stderr and all(word in lines[0] for word in words), lines[0]

def in_parallel(cases):
    """The results of some calls, made two at a time: most of a script's start is waiting for import torch."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda case: case(), cases))

def set_globals(monkeypatch, script, **globals):
    """What edit() does, to a script that is imported here."""
    for name, value in globals.items():
        monkeypatch.setattr(script, name, value)

@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """An empty folder as the current one, and gpt.py with a model that trains in a moment."""
    monkeypatch.chdir(tmp_path)
    set_globals(monkeypatch, gpt, **TINY)
    monkeypatch.setattr(bigram, 'device', 'cpu')
    monkeypatch.setattr(sample, 'device', 'cpu')
    torch.manual_seed(0)
    return tmp_path

@pytest.fixture
def data(tiny):
    """The same with TEXT prepared in it."""
    write_data(TEXT)
    return tiny

def write_data(text):
    pathlib.Path('input.txt').write_text(text, encoding='utf-8', newline='')
    prepare.prepare()

def read_data():
    chars = json.loads(pathlib.Path('meta.json').read_text())['chars']
    return chars, *(np.fromfile(f'{split}.bin', np.uint16) for split in ('train', 'val'))

# ---- prepare.py ----

@pytest.mark.parametrize('text', [
    'Hello, world!\n', 'Быть или не быть\r\n', '生存还是毁灭，这是一个问题。', 'שלום עולם مرحبا',
    '👩\u200d🚀 and a \0 and a\rcarriage return', '\ufeff\ufeffa byte order mark, then one in the text'])
@pytest.mark.parametrize('chunk_size', [1, 7, 1 << 22])
def test_encoding_loses_nothing_in_any_script_however_it_is_read(text, chunk_size, tiny, monkeypatch):
    monkeypatch.setattr(prepare, 'chunk_size', chunk_size)
    write_data(text)
    chars, train, val = read_data()
    assert list(chars) == sorted(set(text.removeprefix('\ufeff')))
    assert ''.join(chars[i] for i in [*train, *val]) == text.removeprefix('\ufeff')

def test_the_first_nine_tenths_train(tiny):
    write_data('x' * 90 + 'y' * 10)
    _, train, val = read_data()
    assert train.tolist() == [0] * 90 and val.tolist() == [1] * 10

def test_prepare_tells_what_is_wrong_with_a_text(tmp_path):
    many = ''.join(map(chr, [*range(0xD800), *range(0xE000, 0x14000)])).encode()
    cases = {'empty': (b'', '2 or more'), 'one': (b'x', '2 or more'),
             'latin1': (b'caf\xe9 noir', 'not UTF-8', 'byte 3'), 'cut': (b'caf\xc3', 'not UTF-8', 'byte 3'),
             'surrogate': (b'a\xed\xa0\x80', 'not UTF-8', 'byte 1'), 'bom': (b'\xef\xbb\xbfa\xff', 'byte 4'),
             'many': (many, '65,536'), 'folder': (None, 'input.txt')}
    for name, (content, *words) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        if content is None:
            (folder / 'input.txt').mkdir()
        else:
            (folder / 'input.txt').write_bytes(content)
        assert_one_line(run('prepare.py', folder), *words)
        assert not (folder / 'train.bin').exists() and not (folder / 'meta.json').exists()

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
    assert sorted(p.name for p in tmp_path.iterdir()) == ['meta.json', 'prepare.py', 'train.bin', 'val.bin']

# ---- what a GPT is made of ----

def test_three_ways_to_average_the_past_are_one():
    B, T, C = 2, 5, 3
    x = torch.randn(B, T, C)
    by_loop = torch.stack([torch.stack([x[b, :t + 1].mean(dim=0) for t in range(T)]) for b in range(B)])
    triangle = torch.tril(torch.ones(T, T))
    by_product = (triangle / triangle.sum(dim=1, keepdim=True)) @ x
    by_softmax = torch.zeros(T, T).masked_fill(triangle == 0, -torch.inf).softmax(dim=-1) @ x
    torch.testing.assert_close(by_loop, by_product)
    torch.testing.assert_close(by_loop, by_softmax)

def test_fused_attention_is_the_formula():
    q, k, v = torch.randn(3, 2, 4, 8, 16)  # (B, H, T, D) each
    att = (q @ k.transpose(2, 3) / 16 ** 0.5).masked_fill(torch.ones(8, 8).triu(1) == 1, -torch.inf)
    by_formula = att.softmax(dim=-1) @ v
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=True), by_formula)

def test_rotary_positions_tell_how_far_apart_two_characters_are(tiny):
    block = gpt.Block()
    q, k = torch.randn(2, 16)  # (D,) each
    turn = lambda x, t: x * block.cos[t, 0] + x.roll(8) * block.sin[t, 0]
    scores = torch.tensor([[turn(q, i) @ turn(k, j) for j in range(10)] for i in range(10)])
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3])
    torch.testing.assert_close(turn(q, 5).norm(), q.norm())

def test_the_future_cannot_change_the_past(tiny):
    model = gpt.GPT(10)
    idx = torch.randint(10, (1, 16))
    changed = idx.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 10
    torch.testing.assert_close(model(idx)[0][0, :9], model(changed)[0][0, :9])
    assert not torch.allclose(model(idx)[0][0, 9], model(changed)[0][0, 9])

@pytest.mark.parametrize('shape', [dict(n_layer=4, n_head=2, n_embd=128),
                                   dict(n_layer=6, n_head=6, n_embd=384)])
def test_before_training_every_character_is_as_likely(tiny, monkeypatch, shape):
    set_globals(monkeypatch, gpt, block_size=256, **shape)
    idx = torch.randint(65, (4, 257))
    _, loss = gpt.GPT(65)(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(np.log(65), rel=0.05)

def test_tied_weights_are_one_tensor(tiny):
    model = gpt.GPT(10)
    assert model.lm_head.weight is model.wte.weight

def test_dropout_acts_in_training_only(tiny, monkeypatch):
    monkeypatch.setattr(gpt, 'dropout', 0.5)
    model, idx = gpt.GPT(10), torch.randint(10, (1, 16))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])

def test_muon_steps_the_same_way_in_every_direction(tiny):
    p = torch.nn.Parameter(torch.zeros(32, 128))
    p.grad = torch.randn(32, 8) @ torch.randn(8, 128) + 0.1 * torch.randn(32, 128)  # few directions dominate
    gpt.Muon([p], {'lr': 1.0}).step()
    for grad, step in zip(p.grad.split(32, dim=1), p.detach().split(32, dim=1)):
        before, after = torch.linalg.svdvals(grad), torch.linalg.svdvals(step)
        assert before[0] / before[-8] > 100 and after[0] / after[-8] < 8 and 0.5 < after.median() < 1.5
        assert (grad * step).sum() < 0  # downhill

# ---- training ----

@pytest.mark.parametrize('script', [bigram, gpt])
def test_every_target_is_the_input_moved_by_one(data, script):
    chars, (train, val) = read_data()[0], script.load_data()[1].values()
    starts = [np.array([0, 5])] if script is gpt else []  # bigram.py draws its own
    x, y = script.get_batch(train, *starts, len(chars))
    assert x.shape == y.shape == (len(x), script.block_size)
    assert torch.equal(x[:, 1:], y[:, :-1])
    text = ''.join(chars[i] for i in train)
    for window, target in zip(x, y):
        assert ''.join(chars[i] for i in [*window, target[-1]]) in text

def test_the_trained_bigram_is_the_best_by_counting(data, monkeypatch):
    set_globals(monkeypatch, bigram, max_iters=400, eval_interval=400, eval_iters=1, learning_rate=0.1)
    chars, train, _ = read_data()
    counts = np.zeros((len(chars), len(chars)))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    best = np.maximum(counts, 1e-9) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    learned = bigram.train().table.weight.detach().log_softmax(dim=1).numpy()
    loss_of = lambda log_probs: -(counts * log_probs)[counts > 0].sum() / counts.sum()
    assert loss_of(np.log(best)) <= loss_of(learned) < loss_of(np.log(best)) + 0.02

def test_the_model_can_learn_one_batch_by_heart(tiny):
    model = gpt.GPT(20)
    idx = torch.randint(20, (4, 17))
    muon = gpt.Muon([p for p in model.blocks.parameters() if p.ndim == 2], {'lr': 0.05})
    adamw = torch.optim.AdamW([model.wte.weight, model.wpe.weight], lr=0.02)
    for _ in range(100):
        _, loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.05

def test_training_finds_what_only_attention_can(tiny, monkeypatch):
    """Each word of random letters stands twice: who looks back knows the second one, a bigram never does."""
    set_globals(monkeypatch, gpt, block_size=32, n_embd=64, batch_size=32, max_iters=300, eval_interval=300)
    words = (''.join(random.Random(i).choices('abcdefgh', k=8)) for i in range(2500))
    write_data(''.join(word + word for word in words))
    gpt.train()
    half_guessed = np.log(8) / 2  # the first half of each pair can only be guessed, the second be copied
    assert torch.load('ckpt.pt')['val_loss'] < half_guessed + 0.35 < np.log(8) - 0.6

def test_evaluation_is_the_plain_mean_over_the_whole_split(data):
    chars, _, val = read_data()
    model = gpt.GPT(len(chars)).eval()
    n = (len(val) - 1) // 16
    x, y = (torch.from_numpy(val[i:i + 16 * n].astype(np.int64)).view(n, 16) for i in (0, 1))
    loss = gpt.estimate_loss(model, gpt.load_data()[1], 'val')
    assert loss == pytest.approx(model(x, y)[1].item(), rel=1e-5)

def test_the_checkpoint_holds_all_that_it_should(data, capsys):
    gpt.train()
    ckpt = torch.load('ckpt.pt', weights_only=True)
    assert ckpt['config'].items() >= (TINY | {'vocab_size': len(ckpt['chars']), 'resume': False}).items()
    assert ckpt['chars'] == read_data()[0] and ckpt['step'] in (6, 12)
    model = gpt.GPT(len(ckpt['chars']))
    model.load_state_dict(ckpt['model'])
    assert gpt.estimate_loss(model, gpt.load_data()[1], 'val') == pytest.approx(ckpt['val_loss'], rel=1e-5)
    assert f"best val loss {ckpt['val_loss']:.4f}" in capsys.readouterr().out.splitlines()[-1]

# ---- nothing is lost ----

def stop_after_first_save(monkeypatch):
    """Run gpt.train() and stop it as Ctrl-C would when it tells of its first checkpoint."""
    def print_and_stop(*args, **kwargs):
        if 'val loss' in ''.join(args) and 'best' not in args[0]:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(gpt, 'print', print_and_stop, raising=False)
        gpt.train()
    assert stopped.value.code == 130

def test_a_resumed_run_is_the_run_that_never_stopped(data, monkeypatch):
    monkeypatch.setattr(gpt, 'dropout', 0.3)
    gpt.train()
    whole = torch.load('ckpt.pt', weights_only=True)
    stop_after_first_save(monkeypatch)
    assert torch.load('ckpt.pt', weights_only=True)['latest']['step'] == 6
    monkeypatch.setattr(gpt, 'resume', True)
    gpt.train()
    resumed = torch.load('ckpt.pt', weights_only=True)
    assert resumed['val_loss'] == whole['val_loss'] and resumed['latest']['step'] == 12
    for name, weight in whole['latest']['model'].items():
        assert torch.equal(weight, resumed['latest']['model'][name]), name

def test_only_the_same_model_of_the_same_text_is_resumed(data, monkeypatch):
    stop_after_first_save(monkeypatch)
    monkeypatch.setattr(gpt, 'resume', True)
    for name, value in (('n_layer', 3), ('n_head', 4), ('n_embd', 64), ('block_size', 8)):
        was = getattr(gpt, name)
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f'{name} = {was}'):
            patch.setattr(gpt, name, value)
            gpt.train()
    write_data(TEXT.upper())
    with pytest.raises(SystemExit, match='characters'):
        gpt.train()

def test_an_overfitting_run_keeps_the_best_and_goes_on_from_the_latest(data, monkeypatch):
    losses = iter([1.0, 2.0, 1.0, 3.0])  # train and val at step 6, then at step 12
    monkeypatch.setattr(gpt, 'estimate_loss', lambda *_: next(losses))
    gpt.train()
    ckpt = torch.load('ckpt.pt', weights_only=True)
    assert (ckpt['step'], ckpt['val_loss'], ckpt['latest']['step']) == (6, 2.0, 12)
    assert not torch.equal(ckpt['model']['wte.weight'], ckpt['latest']['model']['wte.weight'])

def test_two_processes_take_the_steps_of_one(data, monkeypatch):
    monkeypatch.setattr(gpt, 'max_iters', 6)
    gpt.train()
    one = torch.load('ckpt.pt', weights_only=True)
    torchrun = ('-m', 'torch.distributed.run', '--nproc_per_node=2')
    result = run('gpt.py', data, *torchrun, **TINY | {'max_iters': 6})
    assert result.returncode == 0 and result.stdout.count('best val loss') == 1, result.stderr
    two = torch.load('ckpt.pt', weights_only=True)
    assert two['val_loss'] == pytest.approx(one['val_loss'], rel=1e-4)
    for name, weight in one['latest']['model'].items():
        torch.testing.assert_close(weight, two['latest']['model'][name], rtol=1e-3, atol=1e-4)

def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(data):
    gpt.train()
    edit('gpt.py', data, **TINY | {'max_iters': 10**6, 'eval_interval': 1})
    for wait in (0.0, 0.05, 0.13):
        before = os.stat('ckpt.pt').st_mtime_ns
        process = subprocess.Popen([sys.executable, 'gpt.py'], stdout=subprocess.DEVNULL)
        while os.stat('ckpt.pt').st_mtime_ns == before:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        assert torch.load('ckpt.pt', weights_only=True)['chars'] == read_data()[0]

def test_ctrl_c_says_what_is_saved_and_how_to_go_on(data):
    edit('gpt.py', data, **TINY | {'max_iters': 10**6, 'eval_interval': 10})
    process = subprocess.Popen([sys.executable, 'gpt.py'], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while 'val loss' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and len(stderr.strip().splitlines()) == 1
    assert re.search(r'step \d+0\b', stderr) and 'resume = True' in stderr and os.path.exists('ckpt.pt')

def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays_whole(data):
    gpt.train()
    old = pathlib.Path('ckpt.pt').read_bytes()
    small_disk = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, len(old) // 2))
    result = run('gpt.py', data, preexec_fn=small_disk, **TINY)
    assert_one_line(result, 'stopped in step 6', 'OSError', 'nothing new is saved')
    assert pathlib.Path('ckpt.pt').read_bytes() == old

def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(data, monkeypatch):
    stop_after_first_save(monkeypatch)
    old = pathlib.Path('ckpt.pt').read_bytes()
    monkeypatch.setattr(gpt, 'learning_rate', 1e38)
    monkeypatch.setattr(gpt, 'resume', True)
    with pytest.raises(SystemExit, match='not finite'):
        gpt.train()
    assert pathlib.Path('ckpt.pt').read_bytes() == old

class Hostile:
    """What pickle turns into a command when it is loaded."""
    def __reduce__(self):
        return os.system, ('touch it-ran',)

def test_a_file_that_is_no_checkpoint_is_one_line_and_does_not_run(data, monkeypatch):
    gpt.train()
    whole = pathlib.Path('ckpt.pt').read_bytes()
    monkeypatch.setattr(gpt, 'resume', True)
    wrecks = [whole[:n] for n in [0, 1, 100, *random.Random(0).sample(range(len(whole)), 30), len(whole) - 1]]
    other_version = {'model': {}, 'config': {}, 'chars': 'ab', 'latest': {}}
    for wreck in [*wrecks, {'model': Hostile()}, [1, 2], torch.zeros(3), {}, other_version]:
        if isinstance(wreck, bytes):
            pathlib.Path('ckpt.pt').write_bytes(wreck)
        else:
            torch.save(wreck, 'ckpt.pt')
        for load in (gpt.train, sample.load_model):
            with pytest.raises(SystemExit, match='cannot (resume from|use) ckpt.pt') as error:
                load()
            assert '\n' not in str(error.value)
    assert not os.path.exists('it-ran')

def test_data_that_does_not_fit_together_is_one_line(data):
    good = {name: pathlib.Path(name).read_bytes() for name in ('train.bin', 'val.bin', 'meta.json')}
    other = b'{"chars": "abc", "tokens": {"train": 1, "val": 2}}'
    cases = [('train.bin', good['train.bin'][:-1]), ('val.bin', b''), ('train.bin', good['val.bin']),
             ('train.bin', b'\xff' * len(good['train.bin'])), ('meta.json', b''), ('meta.json', b'\xff\x00'),
             ('meta.json', b'[]'), ('meta.json', b'{"chars": 5}'), ('meta.json', b'[' * 10**5),
             ('meta.json', b'null'), ('meta.json', other), ('meta.json', b'{"chars": "abc"}')]
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
        lambda: run('gpt.py', short), lambda: run('bigram.py', short),
        lambda: run('gpt.py', data, **TINY | {'n_embd': 33})])
    assert_one_line(results[0], 'meta.json', 'run python prepare.py')
    assert_one_line(results[1], 'meta.json', 'run python prepare.py')
    assert_one_line(results[2], 'block_size = 256')
    assert_one_line(results[3], 'block_size = 32')
    assert_one_line(results[4], 'n_embd = 33', 'n_head = 2')

# ---- sample.py ----

def train_and_load():
    """Leaves a checkpoint that was trained a little; gpt.py's model of it, and sample.py's."""
    gpt.train()
    torch.set_float32_matmul_precision('highest')  # train() has lowered it, which on some CPUs means bfloat16
    ckpt = torch.load('ckpt.pt', weights_only=True)
    model = gpt.GPT(len(ckpt['chars'])).eval()
    model.load_state_dict(ckpt['model'])
    return model, sample.load_model()

@pytest.fixture
def trained(data):
    return train_and_load()

@pytest.mark.parametrize('switches', [{}, {'rotary': 0.0, 'qk_norm': False}])
def test_prefill_and_decode_give_the_logits_of_training(data, monkeypatch, switches):
    set_globals(monkeypatch, gpt, **switches)
    model, run_model = train_and_load()
    idx = torch.randint(len(run_model.chars), (3, 16))
    with torch.no_grad():
        expected, _ = model(idx)
        for T in range(1, 17):  # prefill T, then decode the rest
            cache = run_model.new_cache(3)
            got = [run_model.forward(idx[:, :T], cache)]
            got += [run_model.forward(idx[:, t:t + 1], cache, t) for t in range(T, 16)]
            torch.testing.assert_close(torch.cat(got, dim=1), expected, rtol=0, atol=1e-4)

@torch.no_grad()
@pytest.mark.parametrize('length', [1, 5, 16, 40])
def test_greedy_text_is_the_argmax_of_training_beyond_the_window_too(trained, monkeypatch, length):
    """Both see the same: the whole text until it outgrows block_size = 16, then its last 8, growing to 16."""
    model, run_model = trained
    set_globals(monkeypatch, sample, temperature=0, max_new_tokens=40)
    computed, forward = [], run_model.forward  # the lengths of what it has to compute
    run_model.forward = lambda idx, *past: computed.append(idx.shape[1]) or forward(idx, *past)
    idx = torch.randint(len(run_model.chars), (2, length))
    got = torch.stack([token for token, _ in sample.generate(run_model, idx)], dim=1)
    context = idx[:, -16:]
    for i in range(40):
        token = model(context)[0][:, -1].argmax(dim=-1)
        assert torch.equal(got[:, i], token)
        context = torch.cat((context, token[:, None]), dim=1)
        context = context if context.shape[1] <= 16 else context[:, -8:]
    assert len(computed) == 40 and max(computed[1:]) == 8 and computed.count(1) >= 34

def test_sampling_chooses_among_what_it_may(monkeypatch):
    monkeypatch.setattr(sample, 'temperature', 1.0)
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(20000, 4)
    share = lambda: (torch.bincount(sample.choose(logits), minlength=4) / 20000).tolist()
    torch.manual_seed(0)
    assert share() == pytest.approx([0.1, 0.4, 0.3, 0.2], abs=0.02)
    monkeypatch.setattr(sample, 'temperature', 0.5)  # squares the odds
    assert share() == pytest.approx([1 / 30, 16 / 30, 9 / 30, 4 / 30], abs=0.02)
    monkeypatch.setattr(sample, 'temperature', 1.0)
    monkeypatch.setattr(sample, 'top_k', 2)
    assert share() == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=0.02)
    monkeypatch.setattr(sample, 'top_k', 200)
    for top_p, expected in ((0.8, [0, 4 / 9, 3 / 9, 2 / 9]), (0.39, [0, 1, 0, 0]), (1e-9, [0, 1, 0, 0])):
        monkeypatch.setattr(sample, 'top_p', top_p)
        assert share() == pytest.approx(expected, abs=0.02)
    for temperature in (0, 1e-40):
        monkeypatch.setattr(sample, 'temperature', temperature)
        assert share() == [0, 1, 0, 0]

def test_the_start_may_be_a_file_long_or_nothing_and_the_seed_repeats_the_text(trained, capsys, monkeypatch):
    monkeypatch.setattr(sample, 'max_new_tokens', 30)
    def written(**globals):
        set_globals(monkeypatch, sample, **globals)
        sample.main()
        return capsys.readouterr().out
    capsys.readouterr()
    first = written(start='The quick', seed=1)
    assert first.startswith('The quick') and len(first) == len('The quick') + 30 + 1
    assert written() == first != written(seed=2)
    pathlib.Path('start.txt').write_text(TEXT)
    assert written(start='FILE:start.txt').startswith(TEXT)
    assert len(written(start='')) == 31
    three = written(num_samples=3).split('-' * 40)
    assert len(three) == 3 and len(set(three)) == 3 and all(len(text.strip('\n')) >= 25 for text in three)

def on_a_terminal(folder, **globals):
    """What sample.py writes when its output is a terminal."""
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

def test_pictures_are_drawn_on_a_terminal_only(trained, tmp_path, monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert on_a_terminal(tmp_path, show='surprise').count('\x1b[30;48;2;') == 20
    picture = on_a_terminal(tmp_path, show='attention', start='The lazy dog')
    for name in ('block 1 head 1', 'block 2 head 2'):
        line = next(line for line in picture.splitlines() if line.startswith(name))
        assert re.sub('\x1b.*?m', '', line) == f'{name} The lazy dog'
    assert '\x1b' not in run('sample.py', tmp_path, show='surprise').stdout
    monkeypatch.setenv('NO_COLOR', '1')
    assert '\x1b' not in on_a_terminal(tmp_path, show='surprise')

def test_a_closed_pipe_ends_sample_without_a_word(trained, tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
    edit('sample.py', tmp_path, num_samples=2, max_new_tokens=5)
    process = subprocess.Popen([sys.executable, 'sample.py'], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.close()  # as head does, when it has seen enough
    assert process.stderr.read() == b'' and process.wait() == 130

def test_sample_tells_what_is_wrong(trained, tmp_path):
    cases = [({'start': 'The \xa7 dog'}, ["'\xa7'", 'character 5']), ({'start': 'FILE:none'}, ['FILE:none']),
             ({'top_k': 0}, ['top_k = 0']), ({'top_p': 0.0}, ['top_p = 0.0']), ({'top_p': 2}, ['top_p = 2']),
             ({'temperature': -1}, ['temperature = -1']), ({'num_samples': 0}, ['num_samples = 0'])]
    for settings, words in cases:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as error:
            set_globals(patch, sample, **settings)
            sample.main()
        assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)
    assert_one_line(run('sample.py', tmp_path, top_k=0), 'top_k = 0')
    os.remove('ckpt.pt')
    assert_one_line(run('sample.py', tmp_path), 'ckpt.pt', 'run python gpt.py')

# ---- the scripts ----

def test_importing_a_script_does_nothing(tmp_path):
    code = f'import sys; sys.path.insert(0, {str(HERE)!r}); import bigram, gpt, prepare, sample'
    result = subprocess.run([sys.executable, '-B', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr, list(tmp_path.iterdir())) == (0, '', '', [])

def test_each_script_is_complete_and_within_its_budget():
    for script, budget in (('prepare', 95), ('bigram', 110), ('gpt', 240), ('sample', 160)):
        lines = (HERE / f'{script}.py').read_text().splitlines()
        assert len(lines) <= budget and max(map(len, lines)) <= 110, script
        assert lines[0] == '# /// script'
        assert not re.search(r'^ *(from|import) (bigram|gpt|prepare|sample)\b', '\n'.join(lines), re.M)

def test_the_whole_path_from_a_text_to_a_sample(tmp_path):
    (tmp_path / 'input.txt').write_text(TEXT)
    steps = [run('prepare.py', tmp_path),
             run('bigram.py', tmp_path, max_iters=10, eval_interval=10, eval_iters=2),
             run('gpt.py', tmp_path, **TINY | {'max_iters': 60}),
             run('sample.py', tmp_path, max_new_tokens=50)]
    for step in steps:
        assert step.returncode == 0 and step.stderr == '', step.stderr
    assert 'vocabulary size: 32' in steps[0].stdout and 'val loss' in steps[1].stdout
    assert steps[2].stdout.splitlines()[-1].endswith('python sample.py')
    assert len(steps[3].stdout) == 1 + 50 + 1 and set(steps[3].stdout) <= set(TEXT)
