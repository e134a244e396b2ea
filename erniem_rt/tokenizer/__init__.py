"""Text to token ids, as the reference ErnieM tokenizer does it, with character offsets.

The ids equal those of ``ErnieMTokenizer`` in transformers 4.57.6; its rules (which pieces are split further, what
happens around added tokens) are restated here and compared with it in ``tests/parity``.
"""

from __future__ import annotations

from .encoding import BatchEncoding, Encoding
from .settings import AddedToken, TokenizerSettings
from .tokenizer import Tokenizer

__all__ = ["AddedToken", "BatchEncoding", "Encoding", "Tokenizer", "TokenizerSettings"]
