"""What the ``ie`` head is asked: a prompt for each name of a schema, alone or about an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._options import quoted
from erniem_rt.pipelines._uie_text import EncodedText, encode

if TYPE_CHECKING:
    from erniem_rt.pipelines._uie_schema import Node
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["Prompt", "PromptKey", "Prompter", "SchemaLanguage"]

SchemaLanguage = Literal["auto", "zh", "en"]
PromptKey = tuple[str, tuple[range, ...]]

# Most prompts that a prompter remembers.
_REMEMBERED = 1024
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class Prompt:
    """A prompt and, for a classification, where its options stand in it (code points).

    With ``text_first`` they are answers only where the text has none.
    """

    encoded: EncodedText
    options: tuple[range, ...]
    text_first: bool

    @property
    def text(self) -> str:
        """The prompt in words."""
        return self.encoded.text

    @property
    def key(self) -> PromptKey:
        """What tells prompts apart: an extraction about an answer like ``room [a,b]`` may read as a classification."""
        return self.text, self.options


class Prompter:
    """Makes prompts as the training of uie-m did.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Tokenizer | None = tokenizer
        # The same prompts come again with every text.
        self._encoded: dict[str, EncodedText] = {}

    def close(self) -> None:
        """Let go of the tokenizer."""
        self._tokenizer = None

    def __call__(self, node: Node, answer: str | None = None, *, max_length: int, language: SchemaLanguage) -> Prompt:
        """Ask for ``node``; about ``answer``, if it is a child.

        Args:
            node: What to ask for.
            answer: What to ask about.
            max_length: Most tokens in a row; a prompt must leave some for the text.
            language: ``"zh"`` asks about an answer with ``ANSWER的NAME``, ``"en"`` with ``NAME of ANSWER``; ``"auto"``
                as the name is written, Chinese if it has a Han character.

        Raises:
            InvalidInputError: The prompt leaves no room for a text, or nothing of it is left as tokens.
        """
        lead = _lead(node, answer, language)
        options = tuple(range(len(lead) + o.start, len(lead) + o.stop) for o in node.options)
        encoded = self._encode(lead + node.bracket)
        self._check(encoded, max_length)
        return Prompt(encoded, options, node.text_first)

    def _encode(self, text: str) -> EncodedText:
        encoded = self._encoded.get(text)
        if encoded is None:
            if len(self._encoded) >= _REMEMBERED:
                self._encoded.clear()
            encoded = self._encoded[text] = self._encode_anew(text)
        return encoded

    def _encode_anew(self, text: str) -> EncodedText:
        return encode(self._opened(), text, f"the prompt {quoted(text)}", narrow=True)

    def _check(self, prompt: EncodedText, max_length: int) -> None:
        special = self._opened().num_special_tokens_to_add(pair=True)
        if len(prompt.ids) + special >= max_length:
            raise InvalidInputError(
                f"the prompt {quoted(prompt.text)} takes {len(prompt.ids)} tokens; the limit is {max_length}, of which "
                f"{special} are special tokens and at least one is the text's. Use a shorter name or, where the prompt "
                "holds an answer that is not one, a higher threshold."
            )

    def _opened(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidInputError("the pipeline is closed; open it again.")
        return self._tokenizer


def _lead(node: Node, answer: str | None, language: SchemaLanguage) -> str:
    """The prompt up to the brackets that end it."""
    if answer is None:
        return node.label
    if language == "zh" or (language == "auto" and _HAN.search(node.name)):
        return f"{answer}的{node.label}"
    return f"{node.label.rstrip()} of {answer} " if node.bracket else f"{node.label} of {answer}"
