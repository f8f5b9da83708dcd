"""Ends of texts: strings, and criteria beside them."""

import torch
from decoders import WordTokenizer

from radar.generation.stops import StopStrings, TextEnd


def test_a_stop_string_may_begin_in_the_prompt_and_is_read_on_the_host():
    """The device is asked for nothing; a criterion is not asked about a text that has ended."""
    asked = []
    criteria = [StopStrings(WordTokenizer(), "w4 w5"), lambda ids, scores: asked.append(ids.shape[1]) or False]
    end = TextEnd([2, 4], 9, frozenset(), criteria, torch.device("cpu"))
    assert end.reason([2, 4, 5], None) == "stop"
    assert asked == []
    end = TextEnd([2, 4], 9, frozenset(), criteria, torch.device("cpu"))
    assert end.reason([2, 4, 6], None) is None
    assert end.reason([2, 4, 6, 4], None) is None
    assert end.reason([2, 4, 6, 4, 5], None) == "stop"
    assert asked == [3, 4]
    assert TextEnd([4, 5], 9, frozenset(), criteria[:1], torch.device("cpu")).reason([4, 5, 6], None) is None
    assert TextEnd([2, 4], 9, frozenset(), criteria[:1], torch.device("meta")).reason([2, 4, 5], None) == "stop"
