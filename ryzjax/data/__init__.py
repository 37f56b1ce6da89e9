"""Text in and out: tokenizers, chat templates, incremental detokenization and stop strings.

`data.training` turns rows into batches of tokens, and `data.synthetic` writes the rows of the demo model. Nothing here
imports jax at import time, and nothing knows of models or of the engine.
"""

from ryzjax.data.chat import ChatTemplate
from ryzjax.data.detokenizer import IncrementalDetokenizer
from ryzjax.data.stop_strings import StopStringMatcher
from ryzjax.data.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "IncrementalDetokenizer", "StopStringMatcher", "Tokenizer"]
