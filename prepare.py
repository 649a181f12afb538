"""Turn input.txt into the numbers that bigram.py and gpt.py train on.

    python prepare.py

downloads Tiny Shakespeare if there is no input.txt (any text in UTF-8 will do, of any size). It
leaves train.bin and val.bin, two bytes for each character, and meta.json with what they stand for.
"""
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
    """Bring Tiny Shakespeare to input.txt or, without a network, the Python language reference."""
    try:
        text = urlopen(url, timeout=10).read()
        if hashlib.sha256(text).hexdigest() != sha256:
            sys.exit(f'{url} is not what it was: put any text at input.txt instead')
    except OSError as e:
        print(f'no download ({e}): the Python language reference becomes input.txt')
        text = '\n'.join(topics.topics.values()).encode()
    Path('input.txt.tmp').write_bytes(text)
    Path('input.txt.tmp').replace('input.txt')

def pieces():
    """Yield input.txt, which may be larger than the memory, piece by piece. Lines end in \\n."""
    with open('input.txt', encoding='utf-8-sig') as file:
        try:
            yield from iter(lambda: file.read(1_000_000), '')
        except UnicodeDecodeError as e:
            sys.exit(f'input.txt is not in UTF-8: {e.reason}')

def prepare():
    """Write train.bin, val.bin and meta.json beside their places, then move them there."""
    length = sum(map(len, pieces()))
    if length < 20:
        sys.exit(f'input.txt has {length} characters: 20 are the least to train on and judge by')
    chars = ''.join(sorted(set().union(*map(set, pieces()))))  # the distinct ones
    stoi = {char: i for i, char in enumerate(chars)}  # a token is a character's place among them
    n = left = int(0.9 * length)  # the first nine tenths train, the rest is val
    with open('train.bin.tmp', 'wb') as train, open('val.bin.tmp', 'wb') as val:
        for piece in pieces():
            tokens = np.fromiter(map(stoi.get, piece), np.uint16)
            train.write(tokens[:left])
            val.write(tokens[left:])
            left = max(0, left - len(piece))
    digest = hashlib.file_digest(open('input.txt', 'rb'), 'sha256').hexdigest()  # which text it is
    Path('meta.json.tmp').write_text(json.dumps({'chars': chars, 'sha256': digest}))
    for name in ('train.bin', 'val.bin', 'meta.json'):
        Path(f'{name}.tmp').replace(name)
    print(f'{n:,} characters train, {length - n:,} val; {len(chars):,} different: {chars!r}')

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # ? for a character that cannot be shown here
    if not Path('input.txt').exists():
        download()
    prepare()
