"""The models of the page, which are loaded once for all tests."""

import os

import pytest

from bua.weights.zoo import PACKAGED, fetch

# This is read when Gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def models():
    missing = [name for name in PACKAGED if not fetch(name).is_file()]
    if missing:
        pytest.skip(f"the models that come with the package are not there: {', '.join(missing)}")
    from bua.app.models import load_models

    return load_models(device="cpu")
