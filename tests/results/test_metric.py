import pytest

from meprop_bench.results.metric import QualityMetric

TEXTS = {
    "accuracy_percent": ("accuracy", "sweep"),
    "UAS on the test set, at the best development score": ("UAS", "test"),
    "-bits/character on the development set, at the end": ("-bits/character", "development"),
    "F1, at the end": ("F1", "own"),
    "F1 on the street, at the end": ("F1 on the street", "own"),
    "test UAS": ("test UAS", "unknown"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_apart_and_made_again(text):
    found = QualityMetric.read(text)
    assert ((found.name, found.of), found.text) == (TEXTS[text], text)


@pytest.mark.parametrize("text", ["accuracy %, at the end", "accuracy, %, at the end", "accuracy%, at the end"])
def test_the_sign_of_a_percentage_in_rows_of_before_is_no_part_of_the_name(text):
    assert QualityMetric.read(text) == QualityMetric("accuracy", "own")
