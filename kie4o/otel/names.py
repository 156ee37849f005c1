"""Names of attributes and their values. Those that begin with "gen_ai" or "error" are those of the semantic
conventions of OpenTelemetry, version 1.37; the others are ours."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SCOPE = "kie4o"  # of the tracer and the meter
SCHEMA = "https://opentelemetry.io/schemas/1.37.0"

MODEL = "gen_ai.request.model"
OPERATION = "gen_ai.operation.name"
OUTPUT = "gen_ai.output.type"
PROVIDER = "gen_ai.provider.name"
TASK = "gen_ai.response.id"
ERROR = "error.type"

CALL = "kie4o.call"
CAUSE = "kie4o.cause"
CODE = "kie4o.code"
CREDITS = "kie4o.credits"
KEY = "kie4o.key"
PROGRESS = "kie4o.progress"
SECONDS = "kie4o.seconds"
STATE = "kie4o.state"
VERDICT = "kie4o.verdict"
VERIFIED = "kie4o.verified"
WHAT = "kie4o.what"

# The conventions have no value for drawing a picture, and none for Kie. The model is named as in Kie's paths.
OF_GENERATION: Mapping[str, str] = MappingProxyType(
    {OPERATION: "generate_content", PROVIDER: "kie_ai", MODEL: "gpt4o-image"}
)
