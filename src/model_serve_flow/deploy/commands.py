"""Writes the commands that bring a model to a cluster: the README of the deploy folder."""

from __future__ import annotations

import json

from model_serve_flow.deploy.cluster import PORT
from model_serve_flow.deploy.endpoint_checks import ANSWER_TOKENS, QUESTION
from model_serve_flow.deploy.kserve import SECRET_KEY, resource_name
from model_serve_flow.flow.profile import FlowConfig

PULL_SECONDS = 300  # time to pull the image


def apply_commands(config: FlowConfig, name: str) -> str:
    """Returns Markdown with the commands that deploy this model to a cluster.

    The commands make a new API key on the cluster, or a token, and never print it.
    """
    deploy, resource = config.deploy, resource_name(config, name)
    runtime = [] if deploy.runtime else ["servingruntime.yaml"]
    files = " ".join(f"-f {file}" for file in [*runtime, "inferenceservice.yaml"])
    seconds = config.engine.startup_seconds + PULL_SECONDS
    theirs = f", on the cluster's runtime `{deploy.runtime}`" if deploy.runtime else ""
    make_key = "" if deploy.auth == "openshift" else _make_key(resource, deploy.namespace)
    ask = _ask_with_token if deploy.auth == "openshift" else _ask_with_key
    return f"""# Deploying {resource}

Not run by model-serve-flow: these need a cluster with KServe. `oc` takes the same arguments as `kubectl`.

1. Put the files of `models/{name}` where the cluster reads them, readable for every user id (`chmod -R a+rX`): `{deploy.storage_uri}`
2. Make the service{theirs}:
```bash
kubectl create namespace {deploy.namespace}
{make_key}kubectl apply --dry-run=server {files}
kubectl apply {files}
kubectl -n {deploy.namespace} wait --for=condition=Ready --timeout={seconds}s inferenceservice/{resource}
```
3. Ask it:
```bash
{ask(resource, deploy.namespace)}```
"""  # noqa: E501


def _make_key(resource: str, namespace: str) -> str:
    return f"""openssl rand -hex 32 | tr -d '\\n' |
  kubectl -n {namespace} create secret generic {resource}-api-key --from-file={SECRET_KEY}=/dev/stdin
"""  # noqa: E501


def _ask_with_key(resource: str, namespace: str) -> str:
    return f"""kubectl -n {namespace} port-forward deployment/{resource}-predictor {PORT}:{PORT} &
KEY=$(kubectl -n {namespace} get secret {resource}-api-key -o 'jsonpath={{.data.{SECRET_KEY}}}' | base64 -d)
{_question(f"http://127.0.0.1:{PORT}", resource)}"""  # noqa: E501


def _ask_with_token(resource: str, namespace: str) -> str:
    """Returns commands that ask with a token; its account may read this one service."""
    client = f"{resource}-client"
    return f"""oc -n {namespace} create serviceaccount {client}
oc -n {namespace} create role {client} --verb=get --resource=inferenceservices.serving.kserve.io --resource-name={resource}
oc -n {namespace} create rolebinding {client} --role={client} --serviceaccount={namespace}:{client}
KEY=$(oc -n {namespace} create token {client})
URL=$(oc -n {namespace} get inferenceservice/{resource} -o 'jsonpath={{.status.url}}')
{_question("$URL", resource)}"""  # noqa: E501


def _question(url: str, resource: str) -> str:
    question = {"role": "user", "content": QUESTION}
    body = json.dumps({"model": resource, "messages": [question], "max_tokens": ANSWER_TOKENS})
    return f"""curl -s "{url}/v1/chat/completions" -H @<(printf 'Authorization: Bearer %s' "$KEY") \\
  -H 'Content-Type: application/json' -d '{body}'
"""  # noqa: E501
