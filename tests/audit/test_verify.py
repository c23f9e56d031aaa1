"""The verify step: requests to each endpoint, made on the host itself."""

from __future__ import annotations

import json

from rigup.audit.check import check
from rigup.audit.expect import expect
from rigup.audit.subject import Subject

# A command that takes longer than a batch allows is run again on its own.
PATIENCE_S = 120


@check("critical", "endpoints", repair=("serve",))
def test_verify_health(rig: Subject) -> None:
    """The health check must answer."""
    for endpoint in rig.plan.endpoints:
        url = f"{endpoint.url}{endpoint.ready_path}"
        code = rig.host.run("curl -q -sS -m 20 -o /dev/null -w '%%{http_code}' %s", url)
        expect({url: "200"}, {url: str(code.stdout) if code.rc == 0 else str(code.stderr).strip()})


@check("critical", "endpoints", "recipe", repair=("serve",))
def test_verify_models(rig: Subject) -> None:
    """Clients ask for the model by name: the endpoint must list it."""
    for endpoint in rig.plan.endpoints:
        listed = rig.json("curl -q -sS -m 20 %s", f"{endpoint.url}/v1/models") or {}
        names = [model.get("id") for model in listed.get("data", [])]
        expect([endpoint.served_name], names)


@check("critical", "endpoints", "recipe", repair=("serve",))
def test_verify_completion(rig: Subject) -> None:
    """A chat completion must return at least one token."""
    for endpoint in rig.plan.endpoints:
        question = {
            "model": endpoint.served_name,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 8,
        }
        answer = rig.host.run(
            f"curl -q -sS -m {PATIENCE_S} -H Content-Type:application/json -d %s %s",
            json.dumps(question),
            f"{endpoint.url}/v1/chat/completions",
        )
        try:
            tokens = json.loads(answer.stdout)["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError):
            output = str(answer.stdout if answer.rc == 0 else answer.stderr).strip()
            tokens = 0
            expect("a chat completion", output[:300])
        if tokens < 1:
            expect("at least one token", f"{tokens}")
