from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small_models(one_thread: None) -> None:
    """All that is set up here is small."""
