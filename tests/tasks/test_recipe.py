from __future__ import annotations

import pytest

from meprop_bench.tasks.recipe import Recipe


@pytest.mark.parametrize(
    ("task", "stem"),
    [
        ("digits", "digits-unified-k=0.1"),
        ("/home/me/my_model.py:build", "my_model.py-build-unified-k=0.1"),
        ("../my_model.py", "my_model.py-unified-k=0.1"),
        ("package.models:build", "package.models-build-unified-k=0.1"),
    ],
)
def test_a_folder_is_called_after_the_last_part_of_a_path(task: str, stem: str) -> None:
    assert Recipe(task, method="unified", k=0.1, optimizer="adam").stem == stem
