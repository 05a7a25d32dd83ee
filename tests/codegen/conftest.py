"""Kernels built by these tests stay out of the user's cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from thalweg.compiler.build import can_compile


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not can_compile():
        pytest.skip("needs a C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THALWEG_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield
