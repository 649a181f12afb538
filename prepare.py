# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Turn input.txt into the numbers that bigram.py and gpt.py train on.

    python prepare.py

The script downloads Tiny Shakespeare if there is no input.txt. You can save any other text in UTF-8
as input.txt. Run prepare.py again whenever the text has changed. A token is the number of a
character. train.bin and val.bin hold the tokens of the two splits, with two bytes per token.
meta.json holds the different characters and a checksum of the text."""
import hashlib
import http.client
import json
import os
import sys
from pydoc_data.topics import topics  # the texts of Python's help()
from urllib.request import urlopen
import numpy as np

# ---- settings ----
url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # of the text at url

# ---- the text ----
def download():
    """Write Tiny Shakespeare to input.txt, or another text if the download fails."""
    try:
        content = urlopen(url, timeout=10).read()
    except (OSError, http.client.HTTPException) as e:
        print(f'Tiny Shakespeare could not be downloaded ({e}). Instead, input.txt will hold the\n'
              "texts of Python's help(), which come with Python. The model will not write like\n"
              'Shakespeare. To try the download again, delete input.txt. To train on a text of\n'
              'your own, save it as input.txt. Then run python prepare.py.')
        content = '\n'.join(topics.values()).encode()
    else:
        if hashlib.sha256(content).hexdigest() != sha256:
            sys.exit(f'{url} now holds another text. Save a text of your own as input.txt.')
    with open('input.txt.tmp', 'wb') as file:
        file.write(content)
    os.replace('input.txt.tmp', 'input.txt')

def pieces():
    """Yield the text in pieces, because it may not fit into memory. Line ends become \\n."""
    with open('input.txt', encoding='utf-8-sig') as file:  # -sig: without a byte-order mark
        try:
            while piece := file.read(1_000_000):
                yield piece
        except UnicodeDecodeError as e:
            before = e.object[max(0, e.start - 30):e.start]
            sys.exit(f'Save input.txt as UTF-8, which it is not: {e.reason} after {before}.')

def encode(text, chars):
    """Turn text into an array of tokens: a token is the index of a character in chars."""
    stoi = {char: i for i, char in enumerate(chars)}
    return np.array([stoi[char] for char in text], np.uint16)

# ---- main ----
def prepare():
    """Write the tokens to train.bin and val.bin, and the characters and a checksum to meta.json."""
    length = 0
    distinct = set()
    digest = hashlib.sha256()  # a checksum that tells this text from others
    for piece in pieces():
        length += len(piece)
        distinct.update(piece)
        digest.update(piece.encode())
    if length < 20:
        sys.exit(f'input.txt has {length} characters: save a longer text (gpt.py needs 1,300).')
    chars = ''.join(sorted(distinct))

    with open('tokens.tmp', 'wb') as file:
        for piece in pieces():
            file.write(encode(piece, chars))
    tokens = np.memmap('tokens.tmp', np.uint16, 'r')
    n = int(0.9 * len(tokens))  # the first nine tenths are for training, the rest for validation
    n_val = len(tokens) - n
    with open('train.bin.tmp', 'wb') as file:
        file.write(tokens[:n])
    with open('val.bin.tmp', 'wb') as file:
        file.write(tokens[n:])
    del tokens  # Windows cannot remove a file that is still in use
    with open('meta.json.tmp', 'w') as file:
        json.dump({'chars': chars, 'sha256': digest.hexdigest()}, file)
    if os.path.exists('meta.json'):
        os.remove('meta.json')  # a crash in the next lines then cannot leave data of two texts
    for name in ('train.bin', 'val.bin', 'meta.json'):
        os.replace(f'{name}.tmp', name)
    os.remove('tokens.tmp')
    print(f'{n:,} characters for training, {n_val:,} for validation')
    print(f'{len(chars):,} different characters: {chars!r}')

if __name__ == '__main__':
    if hasattr(sys.stdout, 'reconfigure'):  # a notebook's output has no such method
        sys.stdout.reconfigure(errors='replace')  # a character that cannot be shown becomes a ?
    if not os.path.exists('input.txt'):
        download()
    prepare()
