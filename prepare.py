# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Turn a text into the numbers that bigram.py and gpt.py train on.

    python prepare.py

reads input.txt (and brings Tiny Shakespeare if there is none), numbers its distinct characters, and writes
train.bin and val.bin (uint16 token ids) and meta.json (the characters). Any UTF-8 text will do, in any
language and of any size: it passes through memory a few megabytes at a time, once to see which characters
there are and once to encode them.
"""
import codecs
import hashlib
import http.client
import io
import json
import os
import sys
import urllib.request

import numpy as np

url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # of what lies there
timeout = 10  # seconds to wait for an answer
train_share = 0.9  # of the characters, from the start of the text; the rest validates
chunk_size = 1 << 22  # bytes read at a time

# ---- the text ----

def download():
    """Bring Tiny Shakespeare to input.txt, whole and checked or not at all; OSError if it can't be reached."""
    try:
        text = urllib.request.urlopen(url, timeout=timeout).read()
    except http.client.HTTPException as e:
        raise OSError(f'the download broke off: {e!r}')
    if hashlib.sha256(text).hexdigest() != sha256:
        sys.exit(f'the download from {url} is not the text expected (its sha256 differs) and was not used: '
                 'try again later, or put any text at input.txt')
    with open('input.txt.tmp', 'wb') as f:
        f.write(text)
    os.replace('input.txt.tmp', 'input.txt')

def open_text():
    """The text to encode, as a binary file: input.txt, or where none can be had, Python's own reference."""
    if not os.path.exists('input.txt'):
        try:
            download()
        except OSError as e:
            print(f'cannot download Tiny Shakespeare ({e}): using the Python language reference instead. '
                  'To train on another text, put it at input.txt and run this again.')
            from pydoc_data.topics import topics
            return io.BytesIO('\n'.join(topics.values()).encode())
    return open('input.txt', 'rb')

def code_points(file):
    """Yield the whole UTF-8 file as arrays of Unicode code points, one for each chunk."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    offset = file.seek(3 if file.read(3) == codecs.BOM_UTF8 else 0)  # a byte order mark is not text
    decoder = codecs.getincrementaldecoder('utf-8')()  # keeps a character that the end of a chunk cuts in two
    while chunk := file.read(chunk_size):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=offset + len(chunk) >= size)
        except UnicodeDecodeError as e:
            sys.exit(f'input.txt is not UTF-8 (byte {offset - pending + e.start:,}): save it as UTF-8 and try again')
        offset += len(chunk)
        if size > chunk_size:
            print(f'\r{offset / 1e6:,.0f} of {size / 1e6:,.0f} MB', end='', file=sys.stderr, flush=True)
        yield np.frombuffer(text.encode('utf-32-le'), '<u4')

# ---- the data ----

def prepare():
    """Read the text twice and leave train.bin, val.bin and meta.json in the current folder."""
    with open_text() as file:
        opening, length, seen = '', 0, np.zeros(sys.maxunicode + 1, bool)  # seen: which of all characters occur
        for codes in code_points(file):
            opening = opening or codes[:200].tobytes().decode('utf-32-le')
            length += len(codes)
            seen[codes] = True
        chars = np.flatnonzero(seen).astype('<u4').tobytes().decode('utf-32-le')  # sorted, as code points are
        n = int(train_share * length)
        if not 0 < n < length:
            sys.exit(f'input.txt has {length} characters, too few to split into train and val: put a longer text there')
        if len(chars) > 2**16:
            sys.exit(f'input.txt has {len(chars):,} distinct characters and train.bin holds at most 65,536: '
                     'is it really text?')
        token_of = np.cumsum(seen).astype(np.uint16) - np.uint16(1)  # a character's token is its place in chars
        with open('train.bin.tmp', 'wb') as train, open('val.bin.tmp', 'wb') as val:
            done = 0
            for codes in code_points(file):
                cut = max(0, n - done)  # where in this chunk the train split ends
                token_of[codes[:cut]].tofile(train)
                token_of[codes[cut:]].tofile(val)
                done += len(codes)
    with open('meta.json.tmp', 'w') as f:
        json.dump({'chars': chars, 'tokens': {'train': n, 'val': length - n}}, f)
    for name in ('train.bin', 'val.bin', 'meta.json'):  # only now, all written, does the new data replace the old
        os.replace(name + '.tmp', name)
    print(f'length of the text in characters: {length:,}')
    print(f'the characters: {chars!r}')
    print(f'vocabulary size: {len(chars):,}')
    print(f'train has {n:,} tokens, val has {length - n:,}')
    print(f'it begins:\n{opening}')

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # a terminal that lacks a character shows ? instead
    try:
        prepare()
    except OSError as e:
        sys.exit(f'{e.filename or "input.txt"}: {e.strerror or e}: nothing was replaced; mend that and run again')
