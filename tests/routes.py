"""Every route of a server that takes decoding parameters, with a body that it serves."""

from collections.abc import Mapping
from typing import Any

CHAT = [{"role": "user", "content": "judge 1+2*3=7"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "judge 1+2*3=7", "max_tokens": 8},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 8},
    "/v1/chat/completions/batch": {"messages": [CHAT, CHAT], "max_tokens": 8},
    "/v1/responses": {"input": "judge 1+2*3=7", "max_output_tokens": 8},
    "/v1/messages": {"messages": CHAT, "max_tokens": 8},
    "/inference/v1/generate": {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 8}},
    "/invocations": {"prompt": "judge 1+2*3=7", "max_tokens": 8},
}
# They turn bodies into prompts, for another server to generate from.
RENDERING = {
    f"{path}/render": BODIES[path]
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
}
PARAMETERS = {"max_tokens", "max_output_tokens", "temperature", "structured_outputs", "sampling_params"}


def routes_with_parameters(openapi: Mapping[str, Any]) -> set[str]:
    """Paths of an app whose POST bodies have decoding parameters, by its own description."""

    def properties(schema: Mapping[str, Any]) -> set[str]:
        if "$ref" in schema:
            schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        several = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        return set(schema.get("properties", ())).union(*map(properties, several))

    bodies = {
        path: content["schema"]
        for path, methods in openapi["paths"].items()
        for content in methods.get("post", {}).get("requestBody", {}).get("content", {}).values()
    }
    return {path for path, schema in bodies.items() if properties(schema) & PARAMETERS}


def constrained(path: str, regex: str) -> dict[str, Any]:
    """The route's body, its text held to a regular expression."""
    body, constraint = BODIES[path], {"structured_outputs": {"regex": regex}}
    if path == "/inference/v1/generate":
        return body | {"sampling_params": body["sampling_params"] | constraint}
    if path == "/v1/messages":
        schema = {"type": "string", "pattern": regex}
        return body | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    return body | constraint
