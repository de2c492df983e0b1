"""What a text encoder reads of a prompt, and how many tokens that is. Torch-free: the driver checks instructions with it."""

import html
import re
from functools import cache
from pathlib import Path
from typing import Any


def clean_prompt(text: str) -> str:
    """Wan's cleaning before its tokenizer: mended characters, no HTML entities, single spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def num_tokens(text: str, tokenizer: Path | None) -> int:
    """Tokens of a prompt with its end: of `tokenizer`'s folder, or bytes where there is none."""
    if tokenizer is None:
        return len(text.encode()) + 1
    return len(load_tokenizer(tokenizer / "tokenizer.json").encode(clean_prompt(text)).ids)


@cache
def load_tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
