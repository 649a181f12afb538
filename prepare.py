# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Turn input.txt into the numbers that bigram.py and gpt.py train on.

    python prepare.py

downloads Tiny Shakespeare if there is no input.txt (any UTF-8 text of any size will do) and leaves train.bin
and val.bin, with a uint16 token for each character, and meta.json, with the characters.
"""
import codecs
import hashlib
import io
import json
import os
import pathlib
import sys
import urllib.request

import numpy as np

url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # of that file
timeout = 10  # seconds to wait for an answer
train_share = 0.9  # of the characters; those after it validate
chunk_size = 1 << 22  # bytes in memory at a time

def open_text():
    """input.txt as a binary file, downloaded if need be; failing that, the Python language reference."""
    if not os.path.exists('input.txt'):
        try:
            text = urllib.request.urlopen(url, timeout=timeout).read()
        except Exception as e:  # no network, no answer, half an answer
            print(f'cannot download Tiny Shakespeare ({e}): put any text at input.txt and run this again. '
                  'For now the Python language reference takes its place.')
            from pydoc_data.topics import topics
            return io.BytesIO('\n'.join(topics.values()).encode())
        if hashlib.sha256(text).hexdigest() != sha256:
            sys.exit(f'{url} has the wrong sha256 and is not used: put any text at input.txt')
        pathlib.Path('input.txt.tmp').write_bytes(text)
        os.replace('input.txt.tmp', 'input.txt')
    return open('input.txt', 'rb')

def code_points(file):
    """Yield a UTF-8 file as arrays of code points, one for each chunk, without a byte order mark."""
    size, offset = file.seek(0, io.SEEK_END), file.seek(0)  # seek returns the place
    decoder = codecs.getincrementaldecoder('utf-8-sig')()  # keeps a character that a chunk's end cuts
    while chunk := file.read(chunk_size):
        try:
            text = decoder.decode(chunk, final=offset + len(chunk) >= size)
        except UnicodeDecodeError as e:
            place = offset + len(chunk) - len(e.object) + e.start
            sys.exit(f'input.txt is not UTF-8 at byte {place}: save it as UTF-8 and run this again')
        offset += len(chunk)
        if size > chunk_size:
            print(f'{offset / 1e6:,.0f} of {size / 1e6:,.0f} MB', end='\r', file=sys.stderr, flush=True)
        yield np.frombuffer(text.encode('utf-32-le'), '<u4')

def prepare():
    """Leave train.bin, val.bin and meta.json in the current folder."""
    with open_text() as file:
        seen, length, opening = np.zeros(sys.maxunicode + 1, bool), 0, ''
        for codes in code_points(file):
            seen[codes] = True
            length += len(codes)
            opening = opening or codes[:200].tobytes().decode('utf-32-le')
        chars = np.flatnonzero(seen).astype('<u4').tobytes().decode('utf-32-le')  # sorted, as code points are
        n = int(train_share * length)
        if length < 2 or len(chars) > 2**16:
            sys.exit(f'input.txt has {length:,} characters, {len(chars):,} of them distinct: '
                     'put a text there that has 2 or more, and at most 65,536 distinct ones')
        token = (np.cumsum(seen) - 1).astype(np.uint16)  # of each code point: its place in chars
        written = 0
        with open('train.bin.tmp', 'wb') as train, open('val.bin.tmp', 'wb') as val:
            for codes in code_points(file):
                cut = max(0, n - written)  # what lies before it in this chunk trains
                train.write(token[codes[:cut]])
                val.write(token[codes[cut:]])
                written += len(codes)
    meta = {'chars': chars, 'tokens': {'train': n, 'val': length - n}}
    pathlib.Path('meta.json.tmp').write_text(json.dumps(meta))
    for name in ('train.bin', 'val.bin', 'meta.json'):
        os.replace(f'{name}.tmp', name)  # only now that all is written
    print(f'length in characters: {length:,}\nthe characters: {chars!r}\nvocabulary size: {len(chars):,}\n'
          f'train has {n:,} tokens, val has {length - n:,}\nthe first lines:\n{opening}')

if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # where the terminal lacks a character, print ?
    try:
        prepare()
    except OSError as e:  # no right to read, a full disk
        sys.exit(f'{e.filename or "cannot write"}: {e.strerror or e}; mend that and run this again')
