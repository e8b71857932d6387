"""The marks of tests that start and kill Ray's processes."""

import pytest

RAY = [
    pytest.mark.ray,
    # Ray's and Tune's own files, threads and sockets, also when processes are killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
