"""Tables of the commands."""

import pytest

from radar.tools.table import table


def test_numbers_stand_to_the_right_and_words_to_the_left():
    text = table(["decoder", "speed [tokens/s]", "why"], [["plain", "9.50", "a tie"], ["RADAR", "1,120.00", None]])
    assert text.splitlines() == [
        "decoder  speed [tokens/s]  why",
        "-------  ----------------  -----",
        "plain                9.50  a tie",
        "RADAR            1,120.00",
    ]


def test_a_column_with_one_word_is_words_and_an_empty_one_is_too():
    assert table(["n", "empty"], [["1", ""], ["none", ""]], indent="  ").splitlines() == [
        "  n     empty",
        "  ----  -----",
        "  1",
        "  none",
    ]
    assert table(["percent", "times"], [["97.5 %", "1.27 x"], ["-0.1 %", "nan"]]).splitlines()[2:] == [
        " 97.5 %  1.27 x",
        " -0.1 %     nan",
    ]


def test_no_rows_are_a_header():
    assert table(["a", "b"], []) == "a  b\n-  -"


def test_a_row_of_another_length_is_a_mistake():
    with pytest.raises(ValueError, match="argument"):
        table(["a", "b"], [["1"]])
