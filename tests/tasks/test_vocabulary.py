"""Numbers for words."""

from meprop_bench.tasks.text import UNKNOWN, Vocabulary


def test_the_frequent_first_and_the_rare_unknown():
    table = Vocabulary(["b", "a", "c", "a", "b", "a"], least=2)
    assert [table[word] for word in ("a", "b", "c", "never")] == [1, 2, UNKNOWN, UNKNOWN]
    assert len(table) == 3


def test_the_order_of_the_words_does_not_matter():
    assert Vocabulary(["x", "y", "z"]).words == Vocabulary(["z", "x", "y"]).words
