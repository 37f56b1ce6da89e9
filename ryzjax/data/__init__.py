"""Text in and out: tokenizer, chat templates, incremental detokenization, stop strings."""

from ryzjax.data.chat import ChatTemplate
from ryzjax.data.detokenizer import IncrementalDetokenizer
from ryzjax.data.stop_strings import StopStringMatcher
from ryzjax.data.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "IncrementalDetokenizer", "StopStringMatcher", "Tokenizer"]
