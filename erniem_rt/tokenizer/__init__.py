"""The tokenizer: text to the token ids of the reference ErnieM tokenizer, with character offsets.

The ids equal those of ``ErnieMTokenizer`` in transformers 4.57.6, whose rules are implemented here again;
``tests/parity`` compares the two.
"""

from __future__ import annotations

from erniem_rt.tokenizer.encoding import BatchEncoding, Encoding
from erniem_rt.tokenizer.settings import AddedToken, TokenizerSettings
from erniem_rt.tokenizer.tokenizer import Tokenizer

__all__ = ["AddedToken", "BatchEncoding", "Encoding", "Tokenizer", "TokenizerSettings"]
