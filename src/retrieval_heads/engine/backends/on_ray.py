"""vLLM's engine on the nodes of a Ray cluster: what the settings say of the cluster, and what is refused of it.

Where its replicas run and what becomes of them is `retrieval_heads.engine.ray_replicas`; on its node each is the engine
that it would be on this host.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from retrieval_heads.engine.backends.versions import has_cpu_build
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.engine.places import gpus_each
from retrieval_heads.errors import EngineError
from retrieval_heads.plain import Fields
from retrieval_heads.settings.messages import sentences
from retrieval_heads.settings.section import Number, Said, Section, Whole


class RaySettings(Section):
    """The keys of `engine` that are the cluster's."""

    address: Said = "auto"
    """Of its head, `host:port`; `auto`: as Ray finds it (`RAY_ADDRESS`, or the one of this machine)."""
    gpus: Annotated[Whole, Field(ge=0)] | None = None
    """That a replica asks for; left out as many as its ranks, and none where vLLM's CPU build is installed."""
    cpus: Annotated[Whole, Field(ge=1)] = 1
    """That a replica asks for."""
    place_limit: Annotated[Number, Field(gt=0)] = 60
    """Seconds in which the cluster must have room for all replicas."""

    @classmethod
    def of(cls, options: Fields) -> RaySettings:
        """Read them.

        Raises:
            EngineError: A key is unknown, or a value is not accepted.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            told = sentences(cls, error, "", "", ("engine",))
            raise EngineError("; ".join(one.removeprefix(": ") for one in told)) from None

    def gpus_of(self, model: Fields) -> int:
        """How many GPUs a replica asks Ray for; none where vLLM's own Ray executor asks for its ranks."""
        if model.get("distributed_executor_backend") == "ray":
            return 0
        if self.gpus is not None:
            return self.gpus
        return 0 if has_cpu_build() else gpus_each(model)


class OnRay(Engine):
    """vLLM's engine, of which each replica is on a node that Ray chooses."""

    capabilities: ClassVar = replace(Engine.capabilities, is_on_ray=True)
    indifferent: ClassVar = frozenset(RaySettings.model_fields)

    @classmethod
    def check_installed(cls, *, traced: bool) -> None:
        """See that Ray is there, and what is installed here of vLLM and nnsight is supported."""
        check_ray()
        super().check_installed(traced=traced)

    @classmethod
    def check_arguments(cls, model: Fields, options: Fields) -> None:
        """See that the `engine` section says what a cluster is asked, and vLLM takes the `model` section."""
        RaySettings.of(options)
        super().check_arguments(model, options)

    @classmethod
    def check_model(cls, model: Fields) -> bool:
        """See that there is a model of that name; whether the hub can be left alone is another matter on each node."""
        super().check_model(model)
        return False


def check_ray() -> None:
    """See that Ray is there.

    Raises:
        EngineError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise EngineError(
            "engine.kind: ray needs ray, which is not installed; pip install 'pytest-retrieval-heads[ray]'"
        )
