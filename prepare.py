"""Turn input.txt into the numbers that bigram.py and gpt.py train on.

    python prepare.py

downloads Tiny Shakespeare, if there is no input.txt. (Any text in UTF-8 will do, however long.) A
token is the number of a character, two bytes: train.bin and val.bin hold the tokens of the two
splits, meta.json holds the characters."""
import hashlib
import json
import sys
from pathlib import Path
from pydoc_data import topics
from urllib.request import urlopen
import numpy as np

# ---- settings ----
url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # of that file

# ---- data ----
def download():
    """Write input.txt: Tiny Shakespeare or, without a network, Python's own language reference."""
    try:
        text = urlopen(url, timeout=10).read()
        if hashlib.sha256(text).hexdigest() != sha256:
            sys.exit(f'{url} has changed: put any text at input.txt instead')
    except OSError as e:
        print(f'no download ({e}): the Python language reference becomes input.txt')
        text = '\n'.join(topics.topics.values()).encode()
    Path('input.txt.tmp').write_bytes(text)
    Path('input.txt.tmp').replace('input.txt')

def pieces():
    """Yield the text in pieces, as it may be larger than the memory. All line ends become \\n."""
    with open('input.txt', encoding='utf-8-sig') as file:
        try:
            yield from iter(lambda: file.read(1_000_000), '')  # until there is nothing left
        except UnicodeDecodeError as e:
            sys.exit(f'input.txt is not in UTF-8: {e.reason} after {e.object[:e.start][-30:]}')

def prepare():
    """Write train.bin, val.bin and meta.json under other names, then rename them."""
    length = sum(map(len, pieces()))
    if length < 20:
        sys.exit(f'input.txt has {length} characters: at least 20 are needed')
    chars = ''.join(sorted({char for piece in pieces() for char in piece}))  # the different ones
    stoi = {char: i for i, char in enumerate(chars)}  # a token is a character's place in chars
    n = todo = int(0.9 * length)  # the first nine tenths train, the rest is val
    with open('train.bin.tmp', 'wb') as train, open('val.bin.tmp', 'wb') as val:
        for piece in pieces():
            tokens = np.fromiter(map(stoi.get, piece), np.uint16)
            train.write(tokens[:todo])
            val.write(tokens[todo:])
            todo = max(0, todo - len(piece))  # left to train
    digest = hashlib.file_digest(open('input.txt', 'rb'), 'sha256').hexdigest()  # tells texts apart
    Path('meta.json.tmp').write_text(json.dumps({'chars': chars, 'sha256': digest}))
    for name in ('train.bin', 'val.bin', 'meta.json'):
        Path(f'{name}.tmp').replace(name)
    print(f'{n:,} characters train, {length - n:,} val; {len(chars):,} different: {chars!r}')

if __name__ == '__main__':
    getattr(sys.stdout, 'reconfigure', dict)(errors='replace')  # what a terminal lacks: ?
    if not Path('input.txt').exists():
        download()
    prepare()
