"""One thread for torch and numpy, here and in whatever a test starts: two would wait for each other.

Set before either is imported. These matrices are small: most of the processor time was threads in wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    import quick_interpreter  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def _templates_are_rendered_here(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process with torch and all tests in it takes longer to fork than to build a prompt, and properties build many.

    What a template refuses is still refused by the child; `test_rendering` has nothing but children.
    """

    from retrieval_heads.prompts import prompt, rendering

    def rendered(render: Callable[[], str]) -> str:
        try:
            return render()
        except Exception:
            return rendering.render_limited(render)

    with pytest.MonkeyPatch.context() as patched:
        if request.path.stem != "test_rendering":
            patched.setattr(prompt, "render_limited", rendered)
        yield
