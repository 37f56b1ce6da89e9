"""OutputCollector: outputs grow in place."""

from __future__ import annotations

from ryzjax.serving.frontend.output_collector import OutputCollector
from ryzjax.serving.messages.request import StreamDelta, TokenLogprobs


class CountedText(str):
    """Text that counts how often it is copied into other text by `+`."""

    copies = 0

    def __add__(self, other: str) -> str:
        CountedText.copies += 1
        return str(self) + other

    def __radd__(self, other: str) -> str:
        CountedText.copies += 1
        return other + str(self)


def test_deltas_are_taken_in_once_each():
    collector = OutputCollector(2)
    count = 500
    lists = set()
    for i in range(count):
        for index in range(2):
            logprobs = (TokenLogprobs(token_id=i, logprob=-1.0, rank=1),)
            last = "length" if i == count - 1 else None
            text = CountedText(f"{i} ")
            collector.add(StreamDelta(index=index, text=text, token_ids=(i,), logprobs=logprobs, finish_reason=last))
            lists.add((index, id(collector._outputs[index].logprobs), id(collector._outputs[index].token_ids)))
    # The two lists are the same objects from the first delta to the last, and text is joined only at the end.
    assert len(lists) == 2 and CountedText.copies == 0
    output = collector.output(request_id="r", prompt=None, prompt_token_ids=(1, 2))
    for completion in output.outputs:
        assert completion.text == "".join(f"{i} " for i in range(count))
        assert completion.token_ids == list(range(count))
        assert [entry.token_id for entry in completion.logprobs or ()] == list(range(count))
        assert completion.finish_reason == "length"
