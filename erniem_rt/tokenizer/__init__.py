"""The tokenizer: text to the token ids of the reference ErnieM tokenizer, with character offsets.

The ids equal those of ``ErnieMTokenizer`` in transformers 4.57.6, whose rules are implemented here again;
``tests/parity`` compares the two.
"""

from __future__ import annotations

from .encoding import BatchEncoding, Encoding
from .settings import AddedToken, TokenizerSettings
from .tokenizer import Tokenizer

__all__ = ["AddedToken", "BatchEncoding", "Encoding", "Tokenizer", "TokenizerSettings"]
