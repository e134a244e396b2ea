"""Text to token ids, as the reference ErnieM tokenizer does it, with character offsets.

The ids equal those of ``ErnieMTokenizer`` in transformers 4.57.6; its rules (which pieces are split further, what
happens around added tokens) are restated here and compared with it in ``tests/parity``.
"""

from __future__ import annotations

from ._added_tokens import AddedToken
from ._batch_encoding import BatchEncoding
from ._encoding import Encoding
from ._settings import TokenizerSettings
from ._tokenizer import Tokenizer

__all__ = ["AddedToken", "BatchEncoding", "Encoding", "Tokenizer", "TokenizerSettings"]
