from meprop_bench.data.treebank import SIZES, made_up_treebank


def test_sentences_are_the_same_at_every_call_and_are_trees():
    bank = made_up_treebank()
    parts = (bank.train, bank.dev, bank.test)
    assert tuple(map(len, parts)) == SIZES
    assert parts == tuple(getattr(made_up_treebank(), part) for part in ("train", "dev", "test"))
    for sentence in (sentence for part in parts for sentence in part):
        assert sentence.projective
        assert [word.relation for word in sentence.words].count("root") == 1
        for number, word in enumerate(sentence.words, start=1):
            assert word.head != number
            assert 0 <= word.head <= len(sentence)
            assert (word.head == 0) == (word.relation == "root") == (word.upos == "VERB")


def test_a_word_does_not_tell_its_tag():
    words = {(word.form, word.upos) for sentence in made_up_treebank().train for word in sentence.words}
    assert {("walks", "NOUN"), ("walks", "VERB"), ("cold", "ADJ"), ("cold", "NOUN")} <= words
