# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Turn input.txt into the numbers that bigram.py and gpt.py train on.

    python prepare.py

downloads Tiny Shakespeare if there is no input.txt (any UTF-8 text of any size will do). It leaves
train.bin and val.bin, with a uint16 token for each character, and meta.json, with the characters
and the sha256 of each split.
"""
import codecs
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from pydoc_data import topics
from urllib.request import urlopen

import numpy as np

url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # of that file
train_share = 0.9  # the share of the characters that is for training; the rest is val
chunk_size = 4_000_000  # bytes in memory at a time

def open_text(folder):
    """input.txt, downloaded if need be; failing that, the Python language reference."""
    if not Path('input.txt').exists():
        try:
            text = urlopen(url, timeout=10).read()
        except Exception as e:  # no network, no answer, half an answer
            print(f'no download ({e}), no input.txt: the Python language reference takes its place')
            return io.BytesIO('\n'.join(topics.topics.values()).encode())
        if hashlib.sha256(text).hexdigest() != sha256:
            sys.exit(f'{url} has the wrong sha256 and is not used: put any text at input.txt')
        Path(folder, 'input.txt').write_bytes(text)
        Path(folder, 'input.txt').replace('input.txt')
    return open('input.txt', 'rb')

def chunks(file):
    """The text in pieces of chunk_size bytes: it may be larger than the memory."""
    file.seek(0)
    return codecs.iterdecode(iter(lambda: file.read(chunk_size), b''), 'utf-8-sig')

def prepare(folder):
    """Write train.bin, val.bin and meta.json in folder, then move them to the current one."""
    file = open_text(folder)
    distinct = set()
    length = 0
    for text in chunks(file):
        distinct.update(text)
        length += len(text)
    chars = ''.join(sorted(distinct))  # a token is a character's place among them
    n = int(train_share * length)  # the first n characters train
    if not 0 < n < length or len(chars) > 65536:
        sys.exit(f'{train_share=}, {length=}, {len(chars)=}: an empty split or over 65536 chars')
    stoi = np.zeros(0x110000, np.uint16)  # for each code point of Unicode, its token
    stoi[[ord(char) for char in chars]] = range(len(chars))

    left = n
    with open(f'{folder}/train.bin', 'wb') as train, open(f'{folder}/val.bin', 'wb') as val:
        for text in chunks(file):
            tokens = stoi[np.frombuffer(text.encode('utf-32-le'), '<u4')]
            train.write(tokens[:left])
            val.write(tokens[left:])
            left = max(0, left - len(text))
    digests = [hashlib.sha256(np.memmap(split.name)).hexdigest() for split in (train, val)]
    Path(folder, 'meta.json').write_text(json.dumps({'chars': chars, 'sha256': digests}))
    for path in Path(folder).iterdir():
        path.replace(path.name)
    print(f'{n:,} characters train, {length - n:,} val; {len(chars):,} distinct ones: {chars!a}')

if __name__ == '__main__':
    try:
        with tempfile.TemporaryDirectory('.tmp', dir='.') as folder:
            prepare(folder)
    except (OSError, UnicodeError, KeyboardInterrupt) as e:
        sys.exit(f'stopped ({e}): this needs input.txt in UTF-8 and disk space of twice its size')
