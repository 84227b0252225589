"""Whatever is sent to our routes, drawn from the server's own OpenAPI schema, is never a server error."""

import re
from collections import Counter

import httpx
import pytest
import schemathesis
from clients import wait_until_idle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from server import is_healthy
from waiting import PATIENCE

from vllm_infogain.embedded import SERVED_NAME
from vllm_infogain.request.params import PARSERS

pytestmark = pytest.mark.engine

ROUTES = r"^/(v1/completions$|infogain)"
EXAMPLES = 500  # of each route and mode

# Of most bodies only a few fields are kept: of a dozen random ones there is always one that is refused first.
small = st.integers(0, 4) | st.sampled_from(
    ["info_gain", "beam", "best_of_n", "ar", "dual", "prefix", "only", "cosine"]
)
number = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
anything = st.one_of(small, number, st.booleans(), st.text(max_size=5), st.lists(small, max_size=2))
knobs = st.dictionaries(st.sampled_from(sorted(PARSERS)), small | anything, max_size=2)
aims = st.tuples(st.integers(0, 3), st.sets(st.integers(0, 40), max_size=2), knobs)


@pytest.fixture(scope="module")
def url(embedded_url: str) -> str:
    return embedded_url


def aim(body: dict, kept: set[int], knobs: dict) -> dict:
    """A request for our model that keeps a few of the generated fields."""
    fields = {name: value for index, (name, value) in enumerate(sorted(body.items())) if index in kept}
    return {"prompt": "judge 1+1=2", "max_tokens": 4, "vllm_xargs": knobs} | fields | {"model": SERVED_NAME}


def test_no_request_that_the_schema_allows_or_forbids_is_a_server_error(url: str):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").include(path_regex=ROUTES)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert any(operation.path == "/v1/completions" for operation in operations)
    seen: Counter[int] = Counter()
    for operation in operations:
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:

            @settings(
                max_examples=EXAMPLES, derandomize=True, database=None,
                phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode), aimed=aims)
            def no_server_error(case, aimed) -> None:
                is_aimed, kept, knobs = aimed
                if is_aimed and isinstance(case.body, dict) and case.path == "/v1/completions":
                    case.body = aim(case.body, kept, knobs)
                response = case.call(timeout=PATIENCE)
                seen[response.status_code] += 1
                wrong = response.status_code >= 500 or re.search(r'"code": ?5\d\d', response.text)
                assert not wrong, f"{case.as_curl_command()}\n{response.status_code} {response.text}"

            no_server_error()
    assert min(seen[200], seen[400]) > 100, seen
    assert is_healthy(url)
    wait_until_idle(url)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("route", ["", "/", "/page.js", "/samplers", "/../v1/models", "/%00", "/%2e%2e/plugin.py"])
def test_no_request_to_the_page_is_a_server_error(url: str, route: str, method: str):
    response = httpx.request(method, f"{url}/infogain{route}", params={"x": "'><script>"}, timeout=PATIENCE)
    assert response.status_code < 500
